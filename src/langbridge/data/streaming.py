"""Data sets that are read from front to back, without holding them: files, and hub data sets through `datasets`.

A source can say where it stands, as something JSON can hold, and go on from there in another process.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any, Protocol

from torch.utils.data import get_worker_info

from langbridge.data.bad import DAMAGED, Bad
from langbridge.data.examples import located
from langbridge.data.tables import HUB, At, Record, entries, files
from langbridge.errors import DataError

Mark = dict[str, Any]
"""A place in a source."""


class Source(Protocol):
    """What a stream reads."""

    def read(self, mark: Mark | None = None) -> Iterator[tuple[Record | Bad, str]]:
        """Yield (record or what is wrong, where it stands) from a place on, or from the front."""
        ...

    def mark(self) -> Mark:
        """Return the place behind what was given last."""
        ...


def source_of(name: str) -> Source:
    """Return the source of a data set by its name in a recipe; raises DataError where there is none."""
    return Hub(name) if name.startswith(HUB) else Files(name)


class Files:
    """Files one behind the other, by name."""

    def __init__(self, name: str) -> None:
        self.files = files(located(name))
        self._file, self._at = 0, At()

    def read(self, mark: Mark | None = None) -> Iterator[tuple[Record | Bad, str]]:
        """Yield from a place on; raises DataError where another file lies there now, or was changed in front of it."""
        first, at = (mark["file"], At(*mark["at"])) if mark is not None else (0, At())
        if mark is not None and (first >= len(self.files) or self.files[first].name != mark["name"]):
            found = self.files[first].name if first < len(self.files) else "nothing"
            raise DataError(
                f"the checkpoint stands in file {first + 1}, {mark['name']}, but {found} is there now: put the files "
                "back as they were, or train anew."
            )
        for number in range(first, len(self.files)):
            self._file, self._at = number, at
            for record, where, after in entries(self.files[number], at):
                self._at = after
                yield record, where
            at = At()

    def mark(self) -> Mark:
        """Return the place behind what was given last."""
        return {"file": self._file, "name": self.files[self._file].name, "at": list(self._at)}


class Hub:
    """A hub data set, `hub:OWNER/NAME` or `hub:OWNER/NAME:CONFIG`, or a folder that `datasets` understands."""

    def __init__(self, name: str) -> None:
        if importlib.util.find_spec("datasets") is None:
            raise DataError(f"{name}: streaming from the hub needs `pip install 'langbridge-lm[data]'`.")
        self.name = name
        self.identity, _, config = name.removeprefix(HUB).partition(":")
        self.config = config or None
        self._number = 0
        self._dataset: Any = None

    def read(self, mark: Mark | None = None) -> Iterator[tuple[Record | Bad, str]]:
        """Yield from a place on; raises DataError where the data set is not to be had."""
        self._dataset, self._number = self._opened(), 0
        if mark is not None:
            self._number = mark["number"]
            self._dataset.load_state_dict(mark["state"])
        try:
            # not `for row in dataset`: in a worker of a loader that gives the worker's share alone
            for rows in self._dataset.iter(batch_size=1):
                self._number += 1
                record = {key: value for key, (value,) in rows.items() if value is not None}
                yield record, f"{self.name}, record {self._number}"
        except (OSError, ValueError) as error:  # what arrow and the hub's file system raise
            why = f"damaged: {(str(error) or type(error).__name__).splitlines()[0]}"
            yield Bad(DAMAGED, why), f"{self.name} behind record {self._number}"

    def mark(self) -> Mark:
        """Return the place behind what was given last."""
        return {"number": self._number, "state": self._dataset.state_dict()}

    def _opened(self) -> Any:
        import datasets
        import fsspec.asyn

        if get_worker_info() is not None:
            fsspec.asyn.reset_lock()  # a worker that was forked would wait for its parent's thread
        try:
            return datasets.load_dataset(self.identity, self.config, split="train", streaming=True)
        except Exception as error:  # the library raises many kinds; each means: not to be had
            raise DataError(
                f"{self.name} is not to be had from the hub ({type(error).__name__}: "
                f"{(str(error) or 'no reason given').splitlines()[0][:120]}): is this machine online, is the data set "
                "public, and has it a part named train?"
            ) from error
