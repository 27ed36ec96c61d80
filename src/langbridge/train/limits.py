"""Which examples are too long to be used: known before training, so that no batch fails within it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch

from langbridge.checkpoint import LangBridge
from langbridge.data import Collator, Example
from langbridge.data.bad import LONG_PROMPT, LONG_SOURCE, LONG_TARGET, Bad

SPECIAL = 8
"""More special tokens than any tokenizer puts around a text."""
UNKNOWN = 2**30
"""Bound of a text's tokens that only the tokenizer knows."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Most tokens of a source, of a target, and of everything that the LM reads of one example."""

    collate: Collator
    longest_target: int
    positions: int | None
    """Positions the LM was made for; None: it does not say."""
    prompt: Callable[[int], int]
    """LM positions of the soft prompt for so many encoder tokens."""

    @classmethod
    def of(cls, model: LangBridge) -> Self:
        """Take the limits from a model and its recipe."""
        return cls(
            collate=model.collate,
            longest_target=model.recipe.data.longest_target,
            positions=model.language_model.longest,
            prompt=lambda tokens: int(model.bridge.lengths(torch.ones(1, tokens))),
        )

    def fits(self, example: Example) -> bool:
        """Tell whether an example can be used: it has a source, and is not over-long."""
        return bool(example.source.strip()) and self.excess(example) is None

    def excess(self, example: Example) -> Bad | None:
        """Return in what way an example is over-long; most need no tokenizer to be seen not to be."""
        collate = self.collate
        source, target = _at_most(collate.whole(example.source)), _at_most(example.target)
        if source > collate.longest_source:
            source = collate.source_length(example.source)
            if source > collate.longest_source:
                return Bad(LONG_SOURCE, f"source of {source} encoder tokens, at most {collate.longest_source} are read")
        if target > self.longest_target:
            target = len(collate.target_ids(example.target, end=example.complete))
            if target > self.longest_target:
                return Bad(LONG_TARGET, f"target of {target} LM tokens, more than data.longest_target")
        if self.positions is not None and self._around(example, exact=False) + self.prompt(source) + target > (
            self.positions
        ):
            source = collate.source_length(example.source)
            target = len(collate.target_ids(example.target, end=example.complete)) if example.target else 0
            whole = self._around(example, exact=True) + self.prompt(source) + target
            if whole > self.positions:
                return Bad(LONG_PROMPT, f"{whole} LM tokens in all, but the LM was made for {self.positions}")
        return None

    def _around(self, example: Example, *, exact: bool) -> int:
        """Return the LM's own tokens around the soft prompt."""
        if exact or not example.instruction.isascii():
            return self.collate.around(example.instruction)
        return self.collate.around("") + len(example.instruction)


def _at_most(text: str) -> int:
    """Return a bound of a text's tokens: one for each character, if no tokenizer makes more of these."""
    return len(text) + SPECIAL if text.isascii() else UNKNOWN
