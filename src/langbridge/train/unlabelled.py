"""Objective `prefix_lm`: unlabelled text cut in two, the first part through the encoder, the loss on the second.

One length is drawn for a whole batch, so that it holds little padding (LangBridge, section 4.1): the cut lies at
U[shortest, longest] encoder tokens, and U[continuation, longest + continuation - cut] LM tokens follow it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from langbridge.config import ObjectiveConfig
from langbridge.data import Collator, Example
from langbridge.data.bad import ONE_PART, Bad
from langbridge.train.dataset import ToBatch

PREVIEW = 64
"""Tokens of both parts in the examples that a bridge's start and validation look at."""
HEAD = 2000
"""Characters of a text that are looked at to see whether it can be cut."""


@dataclass(frozen=True)
class Text:
    """One text, and its number counted through all epochs."""

    text: str
    index: int


class Texts(Dataset[Text]):
    """Texts by number; index `i + epoch * len` is text `i` in that epoch."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.examples = [Example(source=text) for text in texts]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Text:
        return Text(self.examples[index % len(self.examples)].source, index)


class ToCuts(ToBatch):
    """Collate function: texts -> both parts as a batch; the same texts in the same epoch are cut at the same place."""

    def __init__(self, collate: Collator, objective: ObjectiveConfig, seed: int) -> None:
        super().__init__(collate)
        self.objective, self.seed = objective, seed

    def __call__(self, texts: list[Text]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Return the fields of a Batch."""
        rng = random.Random(f"{self.seed}-cut-{texts[0].index}")
        longest = min(self.objective.longest, self.collate.longest_source)
        cut, room = drawn(self.objective, longest, rng)
        examples = [halves(text.text, cut, self.collate) for text in texts]
        return self.fields(self.collate(examples, longest_target=room))

    def length(self, text: Text) -> int:  # type: ignore[override]
        """Return a length to sort by: texts of a batch are cut to one length, unless they are shorter."""
        return len(text.text)


def drawn(objective: ObjectiveConfig, longest: int, rng: random.Random) -> tuple[int, int]:
    """Draw the encoder tokens in front of a batch's cut, and the LM tokens behind it."""
    cut = rng.randint(min(objective.shortest, longest), longest)
    return cut, rng.randint(objective.continuation, longest + objective.continuation - cut)


def halves(text: str, tokens: int, collate: Collator) -> Example:
    """Cut a text in front of the encoder token that would be too many, special tokens counted.

    A text that is shorter than that is cut in its middle.
    """
    place = cut_place(text, tokens, collate)
    return Example(source=text[:place], target=text[place:], complete=False)


def cut_place(text: str, tokens: int, collate: Collator) -> int:
    """Return the character to cut at, so that the first part has text and at most `tokens` encoder tokens.

    The tokenizer's offsets tell where each token's characters begin: a token inside a character of several bytes
    begins where the character does, so no character is lost or repeated. 0 where the text cannot be cut.
    """
    tokenizer = collate.encoder_tokenizer
    starts = [first for first, last in offsets(tokenizer, text) if last > first]
    places = sorted({start for start in starts if text[:start].strip() and text[start:].strip()})
    if not places:
        return 0
    fixed = len(tokenizer(collate.whole("a"), verbose=False).input_ids) - 1  # special tokens and template
    wanted = tokens - fixed
    if wanted >= len(starts):
        wanted = len(starts) // 2
    best = max((place for place in places if place <= starts[max(wanted, 0)]), default=places[0])
    while best != places[0] and len(tokenizer(collate.whole(text[:best]), verbose=False).input_ids) > tokens:
        best = places[places.index(best) - 1]  # a part may be cut into more tokens alone than within its text
    return best


def uncuttable(text: str, collate: Collator) -> Bad | None:
    """Return why a text cannot be used: it has no two parts."""
    return None if cut_place(text[:HEAD], PREVIEW, collate) else Bad(ONE_PART, f"no two parts with text: {text[:40]!r}")


def offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Return (first, last + 1) character of each token, special tokens left out."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(found.offset_mapping)


def preview(text: str, collate: Collator, tokens: int) -> Example:
    """Return a short cut of a text: few tokens on both sides, as text."""
    whole = halves(text, tokens, collate)
    spans = offsets(collate.lm_tokenizer, whole.target)
    end = spans[min(tokens, len(spans)) - 1][1]
    return Example(source=whole.source, target=whole.target[:end], complete=False)
