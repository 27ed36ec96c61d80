"""The answers to one part of an input file, on disk from the first to the last.

While a part is being answered, its answers stand in a journal in the order in which they came. When the last one is
there, they are sorted and moved into place as one file, which says: this part is done. Whatever ends the process, and
whenever, a line is then answered in the finished part, or in the journal, or not yet; never twice.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langbridge.files import replacing

ANSWER, BAD = "answer", "bad"


def part_path(folder: Path, number: int) -> Path:
    """Return where the answers of a part are put when all are there; names sort as the input does."""
    return folder / f"part-{number:08}.jsonl"


def bad_path(part: Path) -> Path:
    """Return where the lines of a part are reported that are no prompts."""
    return part.with_suffix(".bad")


class OpenPart:
    """A part that is being answered; `worker` names whoever may answer it."""

    def __init__(self, path: Path, worker: str) -> None:
        self.path = path
        self.journal = journal_path(path, worker)
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*"):  # of a process that was killed while it moved a part in place
            left.unlink(missing_ok=True)
        for left in path.parent.glob(f".{bad_path(path).name}.*"):
            left.unlink(missing_ok=True)
        self.done = {number for number, _, _ in entries(self.journal)}
        """Numbers of the lines that stand in the journal."""
        self.waiting = 0
        """Lines that are being answered."""
        self.read = False
        """Whether all of its lines were read."""
        self._file = self.journal.open("ab", buffering=0)
        self._file.truncate(sum(len(_line(*entry)) for entry in entries(self.journal)))

    def add(self, number: int, kind: str, content: str) -> None:
        """Keep the answer to a line, or what is wrong with it."""
        self._file.write(_line(number, kind, content))

    def close(self) -> None:
        """Stop; what is in the journal stays."""
        self._file.close()

    def finish(self) -> None:
        """Move everything into place."""
        self._file.close()
        found = sorted(entries(self.journal))
        if wrong := [content for _, kind, content in found if kind == BAD]:
            _write(bad_path(self.path), wrong)
        _write(self.path, [content for _, kind, content in found if kind == ANSWER])
        self.journal.unlink()


def journal_path(part: Path, worker: str) -> Path:
    """Return where a worker keeps the answers of a part that is not done."""
    return part.with_name(f".{part.stem}.{worker}.journal")


def entries(journal: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, kind, content) as they were kept; a last line that was torn off is not one."""
    if not journal.is_file():
        return
    with journal.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            number, kind, content = json.loads(line)
            yield number, kind, content


def _line(*entry: Any) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _write(path: Path, lines: list[str]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
