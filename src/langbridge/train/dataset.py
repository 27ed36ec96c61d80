"""Training records as a map-style data set; the same seed gives the same noise."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch.utils.data import Dataset

from langbridge.config import DataConfig
from langbridge.data import Collator, Example
from langbridge.data.bad import Bad, BadRecords
from langbridge.data.cutting import with_cuts
from langbridge.data.examples import PAIR, PROMPT, TEXT, Fields, good
from langbridge.data.noise import glossed, shuffled
from langbridge.data.states import StateCache
from langbridge.errors import DataError
from langbridge.model import Batch
from langbridge.train.limits import Limits

Item = TypeVar("Item")


class Examples(Dataset[Example]):
    """Examples with reproducible noise, fresh in every epoch.

    Index `i + epoch * len` is record `i` as it looks in that epoch, whoever reads it.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        data: DataConfig,
        seed: int,
        fits: Callable[[Example], bool] = lambda example: bool(example.source.strip()),
    ) -> None:
        """`fits`: whether an example can be used; one of which noise leaves nothing, or too much, stays as it is."""
        self.examples, self.data, self.seed, self.fits = examples, data, seed, fits

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        epoch, record = divmod(index, len(self.examples))
        example = self.examples[record]
        changed = noised(example, self.data, random.Random(f"{self.seed}-{epoch}-{record}"))
        return changed if changed is example or self.fits(changed) else example


def noised(example: Example, data: DataConfig, rng: random.Random) -> Example:
    """Return an example with the noise of a recipe in its source."""
    source = example.source
    if example.source == example.target:  # noise only where the clean sentence is the target
        if rng.random() < data.shuffle_words:
            source = shuffled(glossed(source, data.gloss, rng), data.shuffle_reach, rng)
        if rng.random() < data.plain_case:
            source = source.lower().rstrip(".!?")
    if data.cut_words:
        source = with_cuts(source, data.cut_words, rng)
    return example if source == example.source else replace(example, source=source)


@dataclass(frozen=True, kw_only=True)
class Split(Generic[Item]):
    """What is trained on, what is held out, and what could not be used."""

    training: list[Item]
    validation: list[Item]
    bad: BadRecords


def split(data: DataConfig, limits: Limits, seed: int, *, own_answers: bool = False) -> Split[Example]:
    """Read and part examples; `own_answers`: the LM will answer, and targets may be absent.

    Raises DataError for records that the recipe refuses, and when too few are left.
    """
    fields = PROMPT if own_answers else PAIR
    found = parted(data, fields, Example.of, limits.excess, seed)
    return found if data.answers is None else replace(found, training=_mix(found.training, data.answers))


def split_texts(data: DataConfig, unfit: Callable[[str], Bad | None], seed: int) -> Split[str]:
    """Read and part unlabelled texts; `unfit` tells why a text cannot be used. Raises DataError as `split` does."""
    return parted(data, TEXT, lambda record: record["text"], unfit, seed)


def parted(
    data: DataConfig,
    fields: Fields,
    make: Callable[..., Item],
    unfit: Callable[[Item], Bad | None],
    seed: int,
) -> Split[Item]:
    """Read all records, leave out what cannot be used, and hold some out; raises DataError."""
    bad = watching(data)
    fitting = []
    for record, where in good(data.train, fields, bad):
        item = make(record)
        if found := unfit(item):
            bad.add(found, where)
        else:
            fitting.append(item)
    bad.check()
    random.Random(seed).shuffle(fitting)
    validation, training = fitting[: data.validation], fitting[data.validation :][: data.limit]
    if not training or not validation:
        raise DataError(
            f"{data.train}: {bad.read} records, {len(fitting)} within the length limits, "
            f"{data.validation} of them for validation: nothing is left to train on."
        )
    return Split(training=training, validation=validation, bad=bad)


def watching(data: DataConfig) -> BadRecords:
    """Return an empty count of bad records with the policy of a recipe."""
    return BadRecords(bad=data.bad_records, over_long=data.over_long, most=data.most_bad)


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
