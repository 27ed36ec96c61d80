"""Training records as a map-style data set; the same seed gives the same noise."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch.utils.data import Dataset

from langbridge.config import DataConfig
from langbridge.data import Collator, Example, read_examples, read_prompts, read_texts
from langbridge.data.cutting import with_cuts
from langbridge.data.noise import glossed, shuffled
from langbridge.data.states import StateCache
from langbridge.errors import DataError
from langbridge.model import Batch

Item = TypeVar("Item")


class Examples(Dataset[Example]):
    """Examples with reproducible noise, fresh in every epoch.

    Index `i + epoch * len` is record `i` as it looks in that epoch, whoever reads it.
    """

    def __init__(
        self, examples: Sequence[Example], data: DataConfig, seed: int, fits: Callable[[str], bool] = lambda text: True
    ) -> None:
        """`fits`: whether a source is short enough for the encoder; one that noise makes too long stays as it is."""
        self.examples, self.data, self.seed, self.fits = examples, data, seed, fits

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        epoch, record = divmod(index, len(self.examples))
        example = self.examples[record]
        rng = random.Random(f"{self.seed}-{epoch}-{record}")
        source = example.source
        if example.source == example.target:  # noise only where the clean sentence is the target
            if rng.random() < self.data.shuffle_words:
                source = shuffled(glossed(source, self.data.gloss, rng), self.data.shuffle_reach, rng)
            if rng.random() < self.data.plain_case:
                source = source.lower().rstrip(".!?")
        if self.data.cut_words:
            source = with_cuts(source, self.data.cut_words, rng)
        return replace(example, source=source) if self.fits(source) else example


def split(
    data: DataConfig, collate: Collator, seed: int, *, own_answers: bool = False
) -> tuple[list[Example], list[Example], int]:
    """Return (training, validation) examples and how many over-long records were skipped.

    `own_answers`: the LM will answer, and targets may be absent. Raises DataError when too few are left.
    """
    examples = (read_prompts if own_answers else read_examples)(data.train)
    fitting = [example for example in examples if _fits(example, data, collate)]
    training, validation = _parted(fitting, len(examples), data, seed)
    if data.answers is not None:
        training = _mix(training, data.answers)
    return training, validation, len(examples) - len(fitting)


def split_texts(data: DataConfig, fits: Callable[[str], bool], seed: int) -> tuple[list[str], list[str], int]:
    """Return (training, validation) texts and how many were skipped; raises DataError when too few are left."""
    texts = read_texts(data.train)
    fitting = [text for text in texts if fits(text)]
    training, validation = _parted(fitting, len(texts), data, seed)
    return training, validation, len(texts) - len(fitting)


def _parted(fitting: list[Item], found: int, data: DataConfig, seed: int) -> tuple[list[Item], list[Item]]:
    random.Random(seed).shuffle(fitting)
    validation, training = fitting[: data.validation], fitting[data.validation :][: data.limit]
    if not training or not validation:
        raise DataError(
            f"{data.train}: {found} records, {len(fitting)} within the length limits, "
            f"{data.validation} of them for validation: nothing is left to train on."
        )
    return training, validation


def _fits(example: Example, data: DataConfig, collate: Collator) -> bool:
    # a token has at least one character: most records need no tokenizer to be seen to fit
    if max(len(collate.whole(example.source)), len(example.target)) < min(collate.longest_source, data.longest_target):
        return True
    source = collate.encoder_tokenizer(collate.whole(example.source), verbose=False).input_ids
    return len(source) <= collate.longest_source and len(collate.target_ids(example.target)) <= data.longest_target


def _mix(examples: list[Example], answers: float) -> list[Example]:
    """Drop records of the larger kind until the wanted share of them is answered rather than repeated."""
    answered = [example for example in examples if example.source != example.target]
    repeated = [example for example in examples if example.source == example.target]
    total = min(
        len(answered) / answers if answers > 0 else float("inf"),
        len(repeated) / (1 - answers) if answers < 1 else float("inf"),
    )
    keep = set(map(id, answered[: round(total * answers)])) | set(map(id, repeated[: round(total * (1 - answers))]))
    return [example for example in examples if id(example) in keep]


class ToBatch:
    """Collate function for a DataLoader: examples -> dict of tensors, as transformers' Trainer wants it."""

    def __init__(self, collate: Collator) -> None:
        self.collate = collate
        self.cache: StateCache | None = None
        """Encoder states that were computed before."""

    def __call__(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """Return the fields of a Batch."""
        return self.fields(self.collate(examples))

    def length(self, example: Example) -> int:
        """Return how many LM tokens an example takes, but for the template's own."""
        collate = self.collate
        target = collate.target_ids(example.target, end=example.complete)
        return len(collate.source_ids(example.source)) + len(target) + len(collate.text_ids(example.instruction))

    def fields(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the fields of a Batch, with encoder states where they are cached."""
        if self.cache is not None:
            rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch.encoder_ids, batch.encoder_mask, strict=True)]
            batch = replace(batch, encoder_states=self.cache.batch(rows))
        return batch.parts()
