"""Messages -> what the LM's chat template makes of them, with a slot for what each message says.

What users and systems say goes through the encoder, each message by itself; the template's own tokens and what the
assistant said stay LM tokens: they are in the LM's language, and it was made to see them so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import jinja2
from transformers import PreTrainedTokenizerBase

from langbridge.errors import PromptError
from langbridge.prompt import SLOT, PromptTemplate


class Kind(Enum):
    """How a piece of a prompt is read."""

    FORM = "form"
    """Text of a template: control tokens are control tokens."""
    READ = "read"
    """Text in any language: by the encoder, or by the LM where the route says so; control tokens are plain text."""
    SAID = "said"
    """Text in the LM's language: by the LM; control tokens are plain text."""


@dataclass(frozen=True)
class Slot:
    """A piece of a prompt."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: str
    """system, user or assistant."""
    text: str


def single(template: PromptTemplate, text: str, answer: str = "") -> list[Slot]:
    """Return one prompt in a run's template, and the beginning of its answer."""
    found = [Slot(Kind.FORM, template.before), Slot(Kind.READ, text), Slot(Kind.FORM, template.after)]
    return [*found, Slot(Kind.SAID, answer)] if answer else found


class Conversations:
    """Puts conversations into the form that a run was trained in."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> None:
        self._tokenizer, self._template = tokenizer, template
        chat = PromptTemplate.of("chat", tokenizer) if tokenizer.chat_template else None
        self._chats = chat == template

    def slots(self, turns: Sequence[Turn]) -> list[Slot]:
        """Return the pieces of a conversation, up to where the LM goes on.

        A last turn of the assistant is the beginning of the answer. Raises PromptError for a conversation without a
        user's turn, for empty turns, and for what the LM's own template refuses.
        """
        answer = turns[-1].text if turns and turns[-1].role == "assistant" else ""
        asked = turns[:-1] if turns and turns[-1].role == "assistant" else turns
        if not asked or asked[-1].role != "user":
            raise PromptError("the conversation must end with a user's turn, or with one and the answer's beginning.")
        for number, turn in enumerate(asked):
            if turn.role != "assistant" and not turn.text.strip():
                raise PromptError(f"message {number} ({turn.role}) is empty: give some text.")
        found = self._chat(asked) if self._chats else self._repeated(asked)
        return [*found, Slot(Kind.SAID, answer)] if answer else found

    def _chat(self, turns: Sequence[Turn]) -> list[Slot]:
        marks = [f"<<slot {number}>>" for number in range(len(turns))]
        messages = [{"role": turn.role, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
        try:
            text = str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except jinja2.TemplateError as error:
            raise PromptError(f"the LM's chat template refuses this conversation: {error}") from error
        slots = []
        for turn, mark in zip(turns, marks, strict=True):
            form, found, text = text.partition(mark)
            if not found or mark in text:
                raise PromptError(f"the LM's chat template has no place for a {turn.role}'s turn there.")
            slots += [Slot(Kind.FORM, form), _said(turn)]
        return [*slots, Slot(Kind.FORM, text)]

    def _repeated(self, turns: Sequence[Turn]) -> list[Slot]:
        """Repeat the run's own template for each user's turn; what a system says stands in front of the next turn."""
        slots: list[Slot] = []
        pending: list[Slot] = []
        for turn in turns:
            if turn.role == "system":
                pending.append(_said(turn))
            elif turn.role == "user":
                before, after = Slot(Kind.FORM, self._template.before), Slot(Kind.FORM, self._template.after)
                slots += [before, *pending, _said(turn), after]
                pending = []
            else:
                slots.append(_said(turn))
        return slots

    @property
    def form(self) -> str:
        """Return how turns are put together, for people."""
        return "the LM's chat template" if self._chats else f"the run's template {self._template.before!r}{SLOT}"


def _said(turn: Turn) -> Slot:
    return Slot(Kind.SAID if turn.role == "assistant" else Kind.READ, turn.text)
