"""The record of an evaluation on disk: one JSON line for each example, appended in order, so that a kill loses little.

<folder>/settings.json      what decides the lines: weights, template, task settings, data checksums
<folder>/<language>.jsonl   the lines
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from langbridge.errors import DataError
from langbridge.files import write_text

Record = dict[str, Any]
SETTINGS = "settings.json"


class Journal:
    """A folder of lines that one process at a time writes."""

    def __init__(self, folder: Path, settings: dict[str, Any], record: dict[str, Any]) -> None:
        """Open a folder; `settings` decide the lines and must be as they were, `record` is only noted.

        Raises DataError when the folder was made by other settings.
        """
        self.folder, self.settings = folder, settings
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / ".lock")
        self.checksums: dict[str, str] = {}
        self.record = record
        path = folder / SETTINGS
        if path.is_file():
            found = _read_settings(path)
            if differing := _differences(found["settings"], settings):
                raise DataError(
                    f"{folder} holds answers made with other settings: {'; '.join(differing)}. Name another --out, or "
                    f"delete {folder}."
                )
            self.checksums, self.record = found["data"], found["record"]
        elif any(folder.glob("*.jsonl")):
            raise DataError(f"{folder} holds answers but no {SETTINGS}: name another --out, or delete it.")

    def __enter__(self) -> Self:
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise DataError(f"{self.folder} is being written by another process: wait for it to end.") from error
        return self

    def __exit__(self, *error: object) -> None:
        self.lock.release()

    def begin(self, name: str, checksum: str, ids: Sequence[str], window: int) -> list[Record]:
        """Return the lines of `name` that are there already, at most one for each of `ids`, and drop what is unusable.

        Lines are written a window at a time. What a kill left of a window is dropped, as its numbers could differ in
        the last digit from those of the whole window. Raises DataError when the data has changed.
        """
        if self.checksums.setdefault(name, checksum) != checksum:
            raise DataError(
                f"{self._path(name)} was made from other data: its examples or prompts have changed since. "
                f"Name another --out, or delete {self.folder}."
            )
        self._write_settings()
        path = self._path(name)
        if not path.is_file():
            return []
        lines = path.read_bytes().split(b"\n")
        whole, left = lines[:-1], lines[-1]
        found = [_parse(line, path, number) for number, line in enumerate(whole, start=1)]
        if [record.get("id") for record in found[: len(ids)]] != list(ids[: len(found)]):
            raise DataError(f"{path} holds other examples than the data, or in another order: delete it.")
        if len(found) < len(ids):
            whole = whole[: len(found) // window * window]
        if left or len(whole) < len(found):
            write_text(path, "".join(line.decode("utf-8") + "\n" for line in whole))
        return found[: min(len(whole), len(ids))]

    def append(self, name: str, records: Sequence[Record]) -> None:
        """Write lines, and see to it that they are on disk."""
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with self._path(name).open("ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def _write_settings(self) -> None:
        whole = {"settings": self.settings, "data": self.checksums, "record": self.record}
        write_text(self.folder / SETTINGS, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if {"settings", "data", "record"} <= set(found):
            return found
    except ValueError:
        pass
    raise DataError(f"{path} is damaged: name another --out, or delete the folder.")


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    return [f"{name} was {_short(found.get(name))} and is {_short(wanted.get(name))}" for name in names]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _parse(line: bytes, path: Path, number: int) -> Record:
    try:
        record = json.loads(line)
        if isinstance(record, dict):
            return record
    except ValueError:
        pass
    raise DataError(f"{path}, line {number}: not a record of an evaluation. Delete the file to make it anew.")
