"""Training data that is read while training: one endless order of records, of which every process takes its share.

The stream is cut into pools of equally many good records; each pool is shuffled and grouped by length. A record has a
number in this order, whatever process or worker reads it, so that nothing is lost or doubled between them. A batch
carries the place where its pool begins: a checkpoint keeps that, and a resumed run reads on from there.
"""

import contextlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from langbridge.config import DataConfig, TrainingConfig
from langbridge.data.bad import HARMLESS, Bad, BadRecords
from langbridge.data.streaming import Source, source_of
from langbridge.data.tables import Record
from langbridge.errors import DataError
from langbridge.train.dataset import ToBatch, watching
from langbridge.train.order import POOL, grouped

PLACE = "place"
"""Field of a batch: what a checkpoint needs, as JSON in bytes."""
FILE = "stream.json"
"""The same in a checkpoint."""

Item = TypeVar("Item")
Place = dict[str, Any]


class Endless(Generic[Item]):
    """Good records of a source, one epoch behind the other, with what is bad counted in the first."""

    def __init__(
        self, source: Source, make: Callable[[Record], Item | Bad], data: DataConfig, *, held_out: int
    ) -> None:
        """`make` turns a record into what is trained on, or says what is wrong; the first `held_out` are left out."""
        self.source, self.make, self.data, self.held_out = source, make, data, held_out
        self.bad = watching(data)
        self.epoch = self.taken = 0
        self._mark: Any = None
        self._begun: Iterator[Item] | None = None

    def take(self, count: int) -> list[Item]:
        """Return the next records; raises DataError for what is refused, and where nothing is left to train on."""
        self._begun = self._begun or self._items()
        return list(islice(self._begun, count))

    def state(self) -> Place:
        """Return where it stands."""
        mark = self.source.mark() if self._begun is not None else self._mark
        return {"epoch": self.epoch, "taken": self.taken, "mark": mark, "bad": self.bad.record()}

    def go_to(self, state: Place) -> None:
        """Go on from where another one stood."""
        self.epoch, self.taken, self._mark = state["epoch"], state["taken"], state["mark"]
        self.bad.take(state["bad"])

    def _items(self) -> Iterator[Item]:
        last = self.held_out + self.data.limit if self.data.limit is not None else None
        while True:
            for found, where in self.source.read(self._mark):
                if self.taken == last:
                    break
                item = found if isinstance(found, Bad) else self.make(found)
                self._count(item, where)
                if not isinstance(item, Bad):
                    self.taken += 1
                    if self.taken > self.held_out:
                        yield item
            self.bad.check(streaming=True)
            if self.taken <= self.held_out:
                raise DataError(
                    f"{self.data.train}: {self.bad.read} records, {self.taken} of them good, {self.held_out} for "
                    "validation: nothing is left to train on."
                )
            self.epoch, self.taken, self._mark = self.epoch + 1, 0, None

    def _count(self, item: Item | Bad, where: str) -> None:
        if self.epoch == 0:
            self.bad.read += not (isinstance(item, Bad) and item.kind in HARMLESS)
            if isinstance(item, Bad):
                self.bad.add(item, where)
                self.bad.check(streaming=True, ended=False)


class Chunk(list[Any]):
    """Records of one batch, with the place where their pool begins."""

    def __init__(self, records: Sequence[Any], place: Place) -> None:
        super().__init__(records)
        self.place = place


class Stream(Dataset[Any]):
    """The endless order as a map-style data set: numbers must come in rising order, from any of them on."""

    def __init__(
        self,
        records: Callable[[], Endless[Any]],
        look: Callable[[Any, int], Any],
        length: Callable[[Any], int],
        *,
        training: TrainingConfig,
        processes: int,
        buffer: int,
        place: Place | None = None,
    ) -> None:
        """`look` shows a record as it looks at its number; `length` is what records are grouped by.

        `place`: where a pool begins that is read first.
        """
        self.records, self.look, self.length = records, look, length
        self.batch = training.batch_size * processes
        self.count, self.seed = training.steps * self.batch, training.seed
        self.size = max(1, buffer // self.batch) * self.batch
        self.place = place
        self._pool = place["pool"] - 1 if place is not None else -1
        self._reader: Endless[Any] | None = None
        self._held: list[Any] = []
        self._place: Place = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> Chunk:
        pool = numbers[0] // self.size
        assert all(number // self.size == pool for number in numbers)
        self._go_to(pool)
        return Chunk([self.look(self._held[number % self.size], number) for number in numbers], self._place)

    def _go_to(self, pool: int) -> None:
        assert pool >= self._pool, f"pool {pool} behind pool {self._pool}: a stream cannot go back"
        if self._reader is None:
            self._reader = self.records()
            if self.place is not None:
                self._reader.go_to(self.place["start"])
        while self._pool < pool:
            start = self._reader.state()
            found = self._reader.take(self.size)
            self._pool += 1
            if self._pool == pool:
                self._held = self._ordered(found)
                self._place = {"pool": pool, "start": start, "bad": self._reader.bad.record()}

    def _ordered(self, found: list[Any]) -> list[Any]:
        rng = random.Random(f"{self.seed}-stream-{self._pool}")
        rng.shuffle(found)
        parts = [found[first : first + POOL * self.batch] for first in range(0, len(found), POOL * self.batch)]
        return [record for part in parts for record in grouped(part, self.length, self.batch, rng)]


class WithPlace(ToBatch):
    """Collate function: a batch of another one, with its place."""

    def __init__(self, to_batch: ToBatch) -> None:
        super().__init__(to_batch.collate)
        self.to_batch = to_batch

    def __call__(self, examples: list[Any]) -> dict[str, Tensor]:
        """Return the fields of a Batch, and the place."""
        assert isinstance(examples, Chunk)
        return self.to_batch(examples) | {PLACE: packed(examples.place)}


def packed(place: Place) -> Tensor:
    """Return a place as bytes, which loaders carry from one process to another."""
    return torch.frombuffer(bytearray(json.dumps(place).encode()), dtype=torch.uint8)


def unpacked(place: Tensor) -> Place:
    """Return what `packed` was given."""
    found: Place = json.loads(bytes(place.cpu().tolist()))
    return found


def read_place(checkpoint: Path) -> Place:
    """Return where the stream of a checkpoint stands; raises DataError."""
    try:
        found: Place = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{checkpoint / FILE} is missing or damaged ({error}): train anew.") from error
    return found


def beginning(data: DataConfig, make: Callable[[Record], Item | Bad], looked_at: int) -> tuple[list[Item], list[Item]]:
    """Return (records to train on that come first, those held out): the first ones of the first epoch.

    Raises DataError where there are too few.
    """
    reader = Endless(source_of(data.train), make, data, held_out=0)
    held_out = reader.take(data.validation)
    first: list[Item] = []
    while len(first) < looked_at and reader.epoch == 0:
        found = reader.take(1)
        first += found if reader.epoch == 0 else []
    if not first:
        raise DataError(
            f"{data.train}: {reader.bad.read} records, {data.validation} for validation: nothing is left to train on."
        )
    return first, held_out


def bad_of(place: Place, data: DataConfig) -> BadRecords:
    """Return what was bad up to the end of a place's pool."""
    bad = watching(data)
    bad.take(place["bad"])
    return bad


@contextlib.contextmanager
def out_of_workers() -> Iterator[None]:
    """Give a DataError of a worker process as it was raised, without the worker's traceback around it."""
    try:
        yield
    except DataError as error:
        _, marked, message = str(error).rpartition(f"{DataError.__module__}.{DataError.__name__}: ")
        if not marked:
            raise
        raise DataError(message.strip()) from error
