"""All caches of encoder states on this machine: what they hold, and deleting them."""

import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from langbridge.data.states import ABOUT, LOCK, indexes, read_index, states_home
from langbridge.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """What one cache holds."""

    folder: Path
    about: str
    texts: int
    size: int
    troubles: tuple[str, ...]


def surveyed(root: Path | None = None) -> Iterator[Surveyed]:
    """Yield what each cache holds; reads every byte, so that damage is found."""
    for folder in sorted(path for path in (root or states_home()).glob("*") if path.is_dir()):
        texts, troubles = 0, []
        for index in indexes(folder):
            try:
                names, _, key, check = read_index(index)
                path = index.with_suffix(".states")
                if key != folder.name or _checksum(path) != check:
                    raise DataError(
                        f"{path} is damaged or another encoder's: run `langbridge cache clear {folder.name}`."
                    )
                texts += len(names)
            except (DataError, OSError) as error:
                troubles.append(str(error))
        yield Surveyed(
            folder=folder,
            about=_described(folder / ABOUT),
            texts=texts,
            size=_size(folder),
            troubles=tuple(troubles),
        )


def cleared(key: str | None = None, root: Path | None = None) -> Iterator[tuple[Path, int]]:
    """Delete one cache or all and yield (folder, bytes) of each; raises DataError for an unknown key."""
    folders = sorted(path for path in (root or states_home()).glob("*") if path.is_dir())
    chosen = [folder for folder in folders if key in (None, folder.name)]
    if key is not None and not chosen:
        known = ", ".join(folder.name for folder in folders) or "none"
        raise DataError(f"no cache has the key {key!r}; there are: {known}.")
    for folder in chosen:
        size = _size(folder)
        with FileLock(folder / LOCK):  # not under the hands of a builder
            shutil.rmtree(folder)
        yield folder, size


def _described(about: Path) -> str:
    try:
        fields = json.loads(about.read_text(encoding="utf-8"))
        return f"{fields['encoder']}, layers {fields['layers'] or 'last'}"
    except (OSError, ValueError, KeyError, TypeError):
        return "without a description"


def _checksum(path: Path) -> int:
    check = 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            check = zlib.crc32(block, check)
    return check


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
