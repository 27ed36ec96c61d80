"""Slots -> what an engine is given: who reads each text, what the encoder made of it, how much it counts."""

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from langbridge.checkpoint import LangBridge
from langbridge.config import RoutingConfig
from langbridge.data.examples import has_lone_surrogate
from langbridge.engine import Engine, Part, Scoring
from langbridge.errors import PromptError
from langbridge.routing import BRIDGE, PLAIN, REMEMBERED, Route, Router, effort_opening
from langbridge.serve.conversation import Kind, Slot, single
from langbridge.serve.encoding import EncoderQueue

RAW = "raw"
READERS = (BRIDGE, PLAIN, RAW)
"""What can stand behind a model's name: always the bridge, the LM alone in the run's template, the LM on bare text."""
BORDER = "<|answer|>"
"""In a completion's prompt: what stands behind it is the beginning of the LM's answer, and not read by the encoder."""


@dataclass(frozen=True)
class Echo:
    """What `echo` tells of a prompt: its text, and its LM tokens."""

    text: str
    silent: tuple[int, ...] = ()
    """First tokens, which have no likelihood: the encoder read them, or nothing stands in front of them."""
    context: tuple[Part, ...] = ()
    """What stands in front of the tokens that have one."""
    target: tuple[int, ...] = ()
    """Tokens that are scored."""
    form: tuple[int, int] = (0, 0)
    """From where to where they are the template's and not the user's: those are not told."""


@dataclass(frozen=True)
class Prepared:
    """A prompt as an engine takes it."""

    parts: tuple[Part, ...]
    reader: str
    """bridge, plain, raw, or mixed where several texts went different ways."""
    encoder_tokens: int = 0
    routes: tuple[Route, ...] = ()
    """Of each text that there was a choice for."""
    echo: Echo | None = None

    @property
    def length(self) -> int:
        """LM positions."""
        return sum(map(len, self.parts))

    @property
    def alone(self) -> bool:
        """Whether the LM is asked without its adapters."""
        return self.reader in (PLAIN, RAW)

    def record(self) -> dict[str, Any]:
        """Return who read the prompt, as answers tell it."""
        found: dict[str, Any] = {"reader": self.reader}
        if self.routes:
            found["route"] = self.routes[-1].record()
        return found


@dataclass(frozen=True)
class Piece:
    """A part of a prompt and where it came from."""

    part: Part
    reader: str | None = None
    """Of a text that the encoder or the LM reads."""
    encoder_tokens: int = 0
    route: Route | None = None


class Prompts:
    """Prepares prompts for one model."""

    def __init__(self, model: LangBridge, encoder: EncoderQueue, engine: Engine, routing: RoutingConfig) -> None:
        self.model, self.encoder, self.engine = model, encoder, engine
        self.tokenizer = copy.deepcopy(model.lm_tokenizer)  # a tokenizer is of one thread: here the event loop's
        self.template = model.template
        self.router = None if routing.kind == "off" else Router(routing)
        self._bos = self.template.before_ids(self.tokenizer)[:1] == [self.tokenizer.bos_token_id]
        self._opening = tuple(effort_opening(model))
        self._routes: OrderedDict[str, Route] = OrderedDict()

    async def prepare(self, slots: Sequence[Slot], reader: str | None) -> Prepared:
        """Return slots as parts; raises PromptError where a text cannot be read."""
        for slot in slots:
            check_text(slot.text)
        pieces = await asyncio.gather(*(self._piece(slot, reader, number == 0) for number, slot in enumerate(slots)))
        readers = {piece.reader for piece in pieces if piece.reader is not None}
        return Prepared(
            tuple(piece.part for piece in pieces if len(piece.part)),
            readers.pop() if len(readers) == 1 else "mixed",
            sum(piece.encoder_tokens for piece in pieces),
            tuple(piece.route for piece in pieces if piece.route is not None),
        )

    async def _piece(self, slot: Slot, reader: str | None, first: bool) -> Piece:
        if slot.kind is Kind.SAID:
            return Piece(self._text_ids(slot.text))
        if slot.kind is Kind.FORM:
            return Piece(self._form_ids(slot.text, first=first))
        if not slot.text.strip():
            raise PromptError("the prompt is empty: give some text.")
        route = await self.route(slot.text) if reader is None else None
        who = reader or (route.to if route is not None else BRIDGE)
        if who == PLAIN:
            return Piece(self._text_ids(slot.text), who, 0, route)
        encoded = await self.encoder.encode(slot.text)
        return Piece(encoded.soft, who, encoded.tokens, route)

    async def completion(self, prompt: str | Sequence[int], reader: str | None) -> Prepared:
        """Return a completion's prompt: bare for `raw`, in the run's template for all others."""
        if reader == RAW:
            return self._raw(prompt)
        whole = prompt if isinstance(prompt, str) else self.decode(prompt)
        text, _, answer = whole.partition(BORDER)
        found = await self.prepare(single(self.template, text, answer), reader)
        own, said = self._text_ids(text), self._text_ids(answer)
        if found.reader == BRIDGE:
            echo = Echo(whole, silent=own, context=found.parts[:-1] if said else (), target=said)
        else:
            before = self._form_ids(self.template.before, first=True)
            after = self._form_ids(self.template.after, first=False) if said else ()
            silent = () if before else own[:1]
            target = (*own[len(silent) :], *after, *said)
            start = len(own) - len(silent)
            echo = Echo(whole, silent, (before or silent,), target, (start, start + len(after)))
        return replace(found, echo=echo)

    def _raw(self, prompt: str | Sequence[int]) -> Prepared:
        """Return bare text of the LM, control tokens and all, or its tokens as they are."""
        if isinstance(prompt, str):
            check_text(prompt)
            every = tuple(self.tokenizer(prompt).input_ids)
            own = tuple(self.tokenizer(prompt, add_special_tokens=False).input_ids)
            every = every[: len(every) - len(own)] + own if every[-len(own) :] == own else own
        else:
            every = own = tuple(prompt)
        if not own:
            raise PromptError("the prompt is empty: give some text.")
        text = prompt if isinstance(prompt, str) else self.decode(prompt)
        begin = every[: len(every) - len(own)]  # what the tokenizer puts in front of every text
        silent = () if begin else own[:1]
        return Prepared((every,), RAW, echo=Echo(text, silent, (begin or silent,), own[len(silent) :]))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of LM tokens, control tokens included; raises PromptError for a token that there is not."""
        if wrong := [i for i in ids if i >= len(self.tokenizer)]:
            raise PromptError(
                f"the prompt has token {wrong[0]}, but the LM's tokenizer ends at {len(self.tokenizer) - 1}."
            )
        text: str = self.tokenizer.decode(list(ids))
        return text

    def _text_ids(self, text: str) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids if text else ()
        return tuple(ids)

    def _form_ids(self, text: str, *, first: bool) -> tuple[int, ...]:
        ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        bos = self.tokenizer.bos_token_id
        return tuple([bos, *ids] if first and self._bos and ids[:1] != [bos] else ids)

    async def route(self, text: str) -> Route | None:
        """Return who reads a text, None where routing is off; the LM's own effort is asked for where that decides."""
        if self.router is None:
            return None
        if text in self._routes:
            self._routes.move_to_end(text)
            return self._routes[text]
        if self.router.by_language:
            measure = self.router.probability(text)
        else:
            target = self._text_ids(text)
            if not target:
                raise PromptError("the prompt is empty: give some text.")
            said = await self.engine.score(Scoring(parts=(self._opening,), target=target, alone=True))
            pieces = await self.encoder.run(lambda: len(self._pieces(text)))
            measure = -sum(token.logprob for token in said) / max(1, pieces)
        self._routes[text] = self.router.route(measure)
        while len(self._routes) > REMEMBERED:
            self._routes.popitem(last=False)
        return self._routes[text]

    def _pieces(self, text: str) -> list[int]:
        return list(self.model.encoder_tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def check_text(text: str) -> None:
    """Raise PromptError for half a character, which no tokenizer takes."""
    if has_lone_surrogate(text):
        raise PromptError(f"the prompt holds half a character (a lone surrogate): {text[:60]!a}.")
