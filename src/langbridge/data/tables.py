"""Records of a data file, a folder or a hub data set: JSON lines, Parquet, texts by line. Knows one field: `text`.

What is no record is given as `Bad` in its place, and whoever reads decides.
"""

import gzip
import importlib.util
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from langbridge.data.bad import DAMAGED, MARK, MISFIT, NOT_JSON, NOT_UTF8, REPEATED, UTF16, Bad
from langbridge.errors import DataError

HUB = "hub:"
"""In front of a hub data set's id."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
TEXTS = (".txt", ".txt.gz")
"""A text on each line; in a folder only where it holds no other data, as notes lie beside data too."""
BYTE_ORDER = b"\xef\xbb\xbf"
SHOWN = 80
"""Characters of a bad line that a message shows."""

Record = dict[str, Any]


class At(NamedTuple):
    """A place between two records of a file."""

    number: int = 0
    """Lines or rows in front of it."""
    offset: int = 0
    """Bytes in front of it, unpacked."""
    check: int = 0
    """Checksum of the line in front of it."""


class Entry(NamedTuple):
    """What stands at one place of a file."""

    record: Record | Bad
    where: str
    """File and line, for people."""
    after: At


def records(name: str) -> Iterator[Entry]:
    """Yield the records of all files, and what stands in place of one; raises DataError for what is missing."""
    for path in files(name):
        yield from entries(path)


def files(name: str) -> list[Path]:
    """Return the files of a data set; raises DataError where there is none."""
    path = _snapshot(name.removeprefix(HUB)) if name.startswith(HUB) else Path(name).expanduser()
    if path.is_file():
        return [path]
    found = _within(path, SUFFIXES) or _within(path, TEXTS)
    if not found:
        kinds = ", ".join((*SUFFIXES, *TEXTS))
        raise DataError(
            f"{path}: no such file; data.train is a file ({kinds}), a folder of such files, {HUB}OWNER/NAME, or "
            "'shipped'."
        )
    # a data set's own split into parts is kept
    return [file for file in found if "train" in file.relative_to(path).as_posix()] or found


def entries(path: Path, at: At | None = None) -> Iterator[Entry]:
    """Yield what a file holds behind a place.

    A file's damage is its last entry. Raises DataError where the file is not what it was when the place was noted.
    """
    kind = _parquet if path.suffix == ".parquet" else _lines
    yield from kind(path, at or At())


def _within(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.name.endswith(tuple(suffixes))) if folder.is_dir() else []


def _snapshot(identity: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in (*SUFFIXES, *TEXTS)]
    try:
        return Path(snapshot_download(identity, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; each means: not to be had
        raise DataError(
            f"{HUB}{identity} is not to be had from the hub, nor in the local cache ({type(error).__name__}): is this "
            "machine online, and is the data set public?"
        ) from error


def _lines(path: Path, at: At) -> Iterator[Entry]:
    plain = path.name.endswith(TEXTS)
    number, offset = at.number, at.offset
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            _go_to(path, file, at)
            for line in file:
                number, offset = number + 1, offset + len(line)
                after, where = At(number, offset, zlib.crc32(line)), f"{path}, line {number}"
                if line.startswith(BYTE_ORDER):
                    line = line.removeprefix(BYTE_ORDER)
                    yield Entry(Bad(MARK, "a byte-order mark in front of the line, which is left out"), where, after)
                if line.strip():
                    yield Entry(_text(line) if plain else _json(line), where, after)
    except (EOFError, OSError, zlib.error) as error:
        yield Entry(Bad(DAMAGED, f"damaged: {error}"), f"{path} behind line {number}", At(number, offset))


def _go_to(path: Path, file: IO[bytes] | gzip.GzipFile, at: At) -> None:
    """Move to a place; raises DataError where another line stands in front of it than stood there."""
    if at.offset == 0:
        return
    file.seek(0)
    done, line = 0, b""
    if not isinstance(file, gzip.GzipFile):  # a line is sought backwards
        start = _start_of_line(file, at.offset)
        file.seek(start)
        line = file.read(at.offset - start)
    else:
        while done < at.offset and (line := file.readline()):
            done += len(line)
    if zlib.crc32(line) != at.check:
        raise DataError(f"{path} was changed in front of its line {at.number + 1} since the checkpoint was written.")


def _start_of_line(file: IO[bytes], end: int) -> int:
    """Return where the line begins whose line end, if it has one, is the byte in front of `end`."""
    step, first = 2**16, end - 1
    while first > 0:
        begin = max(0, first - step)
        file.seek(begin)
        found = file.read(first - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        first = begin
    return 0


def _decoded(line: bytes) -> str | Bad:
    if b"\0" in line:  # which neither JSON nor text holds
        return Bad(UTF16, "zero bytes, as in UTF-16 text; wanted UTF-8: `iconv -f UTF-16 -t UTF-8` converts it")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Bad(NOT_UTF8, f"damaged or not UTF-8 text: {error}")


def _text(line: bytes) -> Record | Bad:
    text = _decoded(line)
    return text if isinstance(text, Bad) else {"text": text.rstrip("\r\n")}


def _json(line: bytes) -> Record | Bad:
    text = _decoded(line)
    if isinstance(text, Bad):
        return text
    try:
        record = json.loads(text, object_pairs_hook=_object)
    except _RepeatedError as error:
        return Bad(REPEATED, f"the field {error.args[0]!r} stands there twice: {text.strip()[:SHOWN]}")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits are a plain ValueError
        return Bad(NOT_JSON, f"not JSON ({error})")
    return record if isinstance(record, dict) else Bad(MISFIT, f"wanted an object, found {text.strip()[:SHOWN]}")


class _RepeatedError(Exception):
    """A JSON object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> Record:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedError(next(name for name in names if names.count(name) > 1))
    return found


def _parquet(path: Path, at: At) -> Iterator[Entry]:
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"{path}: reading Parquet files needs `pip install 'langbridge-lm[parquet]'`.")
    from pyarrow import ArrowException, parquet

    number = at.number
    try:
        with parquet.ParquetFile(path) as file:
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            first, skipped = 0, 0  # whole groups in front of the place are not read
            while first < len(rows) and skipped + rows[first] <= number:
                skipped += rows[first]
                first += 1
            for batch in file.iter_batches(row_groups=range(first, len(rows))):
                for row in batch.slice(max(0, number - skipped)).to_pylist():
                    number += 1
                    record = {key: value for key, value in row.items() if value is not None}
                    yield Entry(record, f"{path}, row {number}", At(number))
                skipped += len(batch)
    except (ArrowException, OSError) as error:
        why = f"damaged or no Parquet file: {str(error).splitlines()[0]}"
        yield Entry(Bad(DAMAGED, why), str(path), At(number))
