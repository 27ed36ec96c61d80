"""Lines of input files, one at a time, and the records that answers become. Knows nothing of models."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langbridge.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz")
"""Files of a folder that are read; a file that is named itself may be plain text with a prompt on each line."""
LONGEST = 16 * 2**20
"""Most bytes of a line."""
BOM = b"\xef\xbb\xbf"
OURS = ("completion", "route")
"""Fields that answers add."""


@dataclass(frozen=True)
class Source:
    """One input file."""

    path: Path
    name: str
    """Its path inside the input folder, or its own name."""

    @property
    def is_jsonl(self) -> bool:
        """Whether its lines are JSON objects."""
        return self.name.endswith(SUFFIXES)


@dataclass(frozen=True)
class Line:
    """A line of a file as it was read."""

    number: int
    """From 1."""
    content: bytes
    whole: bool
    """False where it was longer than `LONGEST`: `content` is then only its beginning."""
    position: int
    """Bytes of the file, packed as they lie on the disk, that were read up to here."""


@dataclass(frozen=True)
class Prompt:
    """What a line asks, and its record up to where the answer is put in."""

    text: str
    opening: str
    """JSON object without its closing brace: every field of the line, spelt as it was."""

    def record(self, **added: Any) -> str:
        """Return the line's record with fields added at its end."""
        fields = ", ".join(f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in added.items())
        return f"{self.opening}, {fields}}}"


def sources(given: Path) -> list[Source]:
    """Return the input files in order of their names; raises DataError where there is none."""
    if given.is_file():
        return [Source(given, given.name)]
    if not given.is_dir():
        raise DataError(f"--input {given}: no such file or folder.")
    found = sorted(path for path in given.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file())
    if not found:
        raise DataError(f"--input {given}: the folder holds no file that ends in {' or '.join(SUFFIXES)}.")
    return [Source(path, path.relative_to(given).as_posix()) for path in found]


def read(source: Source) -> Iterator[Line]:
    """Yield a file's lines, of which only one is in memory; raises DataError where the file is damaged."""
    number = 0
    try:
        with source.path.open("rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if source.name.endswith(".gz") else raw
            while content := stream.readline(LONGEST):
                number += 1
                whole = content.endswith(b"\n") or len(content) < LONGEST
                rest = whole
                while not rest:
                    more = stream.readline(LONGEST)
                    rest = more.endswith(b"\n") or len(more) < LONGEST
                if number == 1:
                    content = content.removeprefix(BOM)
                yield Line(number, content, whole, raw.tell())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source.path}: cannot be read behind line {number} ({error}).") from error


def prompt_of(source: Source, line: Line) -> Prompt | None:
    """Return what a line asks, None for a blank one; raises DataError, with its place, for one that is no prompt."""
    where = f"{source.path}, line {line.number}"
    if not line.whole:
        raise DataError(f"{where}: longer than {LONGEST:,} bytes.")
    try:
        text = line.content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start}).") from error
    if not text:
        return None
    if not source.is_jsonl:
        return Prompt(text, '{"prompt": ' + json.dumps(text, ensure_ascii=False))
    try:
        record = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}).") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise DataError(f'{where}: wanted an object with a text "prompt", found {text[:80]}')
    if taken := [name for name in OURS if name in record]:
        raise DataError(f'{where}: has a field "{taken[0]}" already, where the answer is to be put: rename it.')
    return Prompt(record["prompt"], text[:-1].rstrip())


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
