"""Training records as a map-style data set, grouped by length; the same seed gives the same order and noise."""

import random
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Dataset, Sampler

from langbridge.config import DataConfig
from langbridge.data import Collator, Example, read_examples
from langbridge.data.cutting import with_cuts
from langbridge.data.noise import glossed, shuffled
from langbridge.errors import DataError

POOL = 32
"""Batches that are sorted by length together."""


class Examples(Dataset[Example]):
    """Examples with reproducible noise, fresh in every epoch.

    Index `i + epoch * len` is record `i` as it looks in that epoch, whoever reads it.
    """

    def __init__(self, examples: Sequence[Example], data: DataConfig, seed: int) -> None:
        self.examples, self.data, self.seed = examples, data, seed

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
        return Example(source=source, target=example.target, instruction=example.instruction)


class LengthGroupedSampler(Sampler[int]):
    """A random order in which neighbours have similar lengths; a function of seed and epoch alone.

    Gives `i + epoch * len`, so that the data set knows the epoch too.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; called by the trainer, also when it resumes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed}-{self.epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        pool = POOL * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            part = sorted(order[start : start + pool], key=lambda i: self.lengths[i])
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        last = [batch for batch in batches if len(batch) < self.batch_size]  # the short batch stays last
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rng.shuffle(full)
        return iter([i + self.epoch * len(order) for batch in full + last for i in batch])


def split(data: DataConfig, collate: Collator, seed: int) -> tuple[list[Example], list[Example], int]:
    """Return (training, validation) examples and how many over-long records were skipped.

    Raises DataError when too few are left.
    """
    examples = read_examples(data.train)
    fitting = [example for example in examples if _fits(example, data, collate)]
    random.Random(seed).shuffle(fitting)
    validation, training = fitting[: data.validation], fitting[data.validation :][: data.limit]
    if data.answers is not None:
        training = _mix(training, data.answers)
    if not training or not validation:
        raise DataError(
            f"{data.train}: {len(examples)} records, {len(fitting)} within the length limits, "
            f"{data.validation} of them for validation: nothing is left to train on."
        )
    return training, validation, len(examples) - len(fitting)


def _fits(example: Example, data: DataConfig, collate: Collator) -> bool:
    # a token has at least one character: most records need no tokenizer to be seen to fit
    if max(len(example.source), len(example.target)) < min(collate.longest_source, data.longest_target):
        return True
    source = collate.encoder_tokenizer(collate.prefix + example.source, verbose=False).input_ids
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


def length_of(example: Example) -> int:
    """Return a length to sort by, in characters."""
    return len(example.source) + len(example.target) + len(example.instruction)


class ToBatch:
    """Collate function for a DataLoader: examples -> dict of tensors, as transformers' Trainer wants it."""

    def __init__(self, collate: Collator) -> None:
        self.collate = collate
        self.tokens = 0
        """LM tokens given out so far, padding not counted; right where the loader has no workers."""

    def __call__(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """Return the fields of a Batch."""
        batch = self.collate(examples)
        masks = (batch.before_mask, batch.encoder_mask, batch.after_mask, batch.target_mask)
        self.tokens += sum(int(mask.sum()) for mask in masks) + len(examples)  # one boundary vector each
        return dict(vars(batch))
