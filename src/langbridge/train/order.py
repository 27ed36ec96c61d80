"""The order in which a map-style data set is read: random, grouped by length, a function of the seed alone.

Knows nothing of processes and workers: they all take their share of this one order.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from torch.utils.data import Sampler

from langbridge.config import TrainingConfig

Item = TypeVar("Item")

POOL = 32
"""Batches that are sorted by length together ..."""
LARGEST_POOL = 2**14
"""... or fewer, as all their records are looked at before the first is read."""


class GroupedByLength(Sampler[int]):
    """Batches of records of similar length, one epoch after another, without a short batch at an epoch's end.

    Gives `i + epoch * count`, so that the data set knows the epoch too. Of each epoch every record comes once.
    """

    def __init__(
        self, length: Callable[[int], int], count: int, *, batch_size: int, batches: int, seed: int, start: int = 0
    ) -> None:
        """`length` is asked for numbers as they are given. The first `start` batches will be skipped by the reader."""
        self.length, self.count, self.batch_size, self.batches = length, count, batch_size, batches
        self.seed, self.start = seed, start

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        numbers = self._numbers()
        pooled = max(2, min(POOL, LARGEST_POOL // self.batch_size))
        for first in range(0, self.batches, pooled):
            pool = list(islice(numbers, pooled * self.batch_size))  # the last one too: what is cut off must not matter
            if first + pooled > self.start:  # skipped pools need no order, so nothing is counted for them
                pool = self._grouped(pool, first)
            yield from pool[: (self.batches - first) * self.batch_size]

    def _numbers(self) -> Iterator[int]:
        epoch = 0
        while True:
            order = list(range(self.count))
            random.Random(f"{self.seed}-{epoch}").shuffle(order)
            yield from (i + epoch * self.count for i in order)
            epoch += 1

    def _grouped(self, pool: list[int], first: int) -> list[int]:
        return grouped(pool, self.length, self.batch_size, random.Random(f"{self.seed}-pool-{first}"))


def grouped(pool: Sequence[Item], length: Callable[[Item], int], batch_size: int, rng: random.Random) -> list[Item]:
    """Return a pool as batches of similar length, one behind the other in random order."""
    found = sorted(pool, key=length)
    batches = [found[i : i + batch_size] for i in range(0, len(found), batch_size)]
    rng.shuffle(batches)
    return [record for batch in batches for record in batch]


def reads(training: TrainingConfig, processes: int) -> int:
    """Return how many records a run reads, over all its processes; those of later epochs count again."""
    return training.steps * training.batch_size * processes


def order_of(
    records: Any, to_batch: Any, training: TrainingConfig, processes: int, *, start: int = 0
) -> GroupedByLength:
    """Return the order in which a run reads `records`, as `to_batch` measures them, over all its processes."""
    return GroupedByLength(
        lambda number: to_batch.length(records[number]),
        len(records),
        batch_size=training.batch_size * processes,
        batches=training.steps,
        seed=training.seed,
        start=start,
    )
