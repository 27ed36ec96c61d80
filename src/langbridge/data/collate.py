"""Examples -> Batch: the one place where text becomes the model's tokens, for training, generation and scoring."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from langbridge.data.cutting import CUT, cut_ids
from langbridge.data.examples import Example, has_lone_surrogate
from langbridge.errors import PromptError
from langbridge.model.langbridge import Batch
from langbridge.prompt import PromptTemplate


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Cuts text with both tokenizers and pads it: encoder input on the right, everything of the LM on the left."""

    encoder_tokenizer: PreTrainedTokenizerBase
    lm_tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    longest_source: int
    """Most encoder tokens of a source."""
    prefix: str = ""
    """Text put in front of every source, where the encoder was trained with one."""
    suffix: str = ""
    """Text put behind every source: the end of a template that goes through the encoder."""

    def __call__(self, examples: Sequence[Example], *, end: bool = True, longest_target: int | None = None) -> Batch:
        """Return a Batch; with `end` the LM's end token closes each complete target.

        `longest_target`: LM tokens of a target, the rest of which is left out. Where every example has a `text` that
        the LM reads itself, the batch has its tokens too.
        Raises PromptError for an empty source and for one that is over-long; nothing is ever cut silently.
        """
        sources = [self.source_ids(example.source) for example in examples]
        before = [self._before(example.instruction) for example in examples]
        after = [self._after for _ in examples]
        targets = [
            self.target_ids(example.target, end=end and example.complete)[:longest_target] if example.target else []
            for example in examples
        ]
        encoder_ids, encoder_mask = pad(sources, self.encoder_tokenizer.pad_token_id, left=False)
        fill = self.lm_tokenizer.pad_token_id
        before_ids, before_mask = pad(before, fill)
        after_ids, after_mask = pad(after, fill)
        target_ids, target_mask = pad(targets, fill)
        return Batch(
            encoder_ids=encoder_ids,
            encoder_mask=encoder_mask,
            before_ids=before_ids,
            before_mask=before_mask,
            after_ids=after_ids,
            after_mask=after_mask,
            target_ids=target_ids,
            target_mask=target_mask,
            **(self._texts(examples) if all(example.text for example in examples) else {}),
        )

    def text_ids(self, text: str) -> list[int]:
        """Return the LM's tokens of a prompt that it reads itself; control tokens in a user's text stay text."""
        return list(self.lm_tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def _texts(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        ids, mask = pad([self.text_ids(example.text) for example in examples], self.lm_tokenizer.pad_token_id)
        return {"text_ids": ids, "text_mask": mask}

    def whole(self, text: str) -> str:
        """Return a source as the encoder reads it."""
        return self.prefix + text + self.suffix

    def source_ids(self, text: str) -> list[int]:
        """Return the encoder's tokens of one text, its special tokens included."""
        if not text.strip():
            raise PromptError("the prompt is empty: give some text.")
        if has_lone_surrogate(text):
            raise PromptError(f"the prompt holds half a character (a lone surrogate): {text[:60]!a}.")
        ids = self._encoded(text)
        if len(ids) > self.longest_source:
            raise PromptError(
                f"the prompt has {len(ids)} encoder tokens, more than the {self.longest_source} this model takes: "
                f"shorten it. It begins: {text[:60]!r}"
            )
        return ids

    def source_length(self, text: str) -> int:
        """Return how many encoder tokens a source takes, over-long ones too."""
        return len(self._encoded(text))

    def _encoded(self, text: str) -> list[int]:
        if CUT in text:
            return cut_ids(self.encoder_tokenizer, self.whole(text))
        return list(self.encoder_tokenizer(self.whole(text), verbose=False).input_ids)

    def target_ids(self, text: str, *, end: bool = True) -> list[int]:
        """Return the LM's tokens of a target, closed by its end token."""
        closing = [self.lm_tokenizer.eos_token_id] if end and self.lm_tokenizer.eos_token_id is not None else []
        return self.text_ids(text) + closing

    def around(self, instruction: str) -> int:
        """Return how many LM tokens stand around the soft prompt, the target not counted."""
        return len(self._before(instruction)) + len(self._after)

    def _before(self, instruction: str) -> list[int]:
        return self.template.with_instruction(instruction).before_ids(self.lm_tokenizer)

    @cached_property
    def _after(self) -> list[int]:
        return self.template.after_ids(self.lm_tokenizer)


def pad(rows: Sequence[Sequence[int]], fill: int, *, left: bool = True) -> tuple[Tensor, Tensor]:
    """Pad rows of ids to one length: (rows, longest) ids and mask, int64."""
    longest = max(map(len, rows), default=0)
    ids = torch.full((len(rows), longest), fill, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.int64)
        mask[i, where] = 1
    return ids, mask
