"""Records of a data file, a folder or a hub data set: JSON lines, packed or not, and Parquet. Knows no fields."""

import gzip
import importlib.util
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langbridge.errors import DataError

HUB = "hub:"
"""In front of a hub data set's id."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

Record = dict[str, Any]


def records(name: str) -> Iterator[tuple[Record, str]]:
    """Yield (record, where it stands); raises DataError, with the place, for what is missing, damaged or no object."""
    for path in _files(name):
        if path.suffix == ".parquet":
            yield from _parquet(path)
        else:
            yield from _json_lines(path)


def _files(name: str) -> list[Path]:
    path = _snapshot(name.removeprefix(HUB)) if name.startswith(HUB) else Path(name).expanduser()
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES)) if path.is_dir() else []
    if not found:
        kinds = ", ".join(SUFFIXES)
        raise DataError(
            f"{path}: no such file; data.train is a file ({kinds}), a folder of such files, {HUB}OWNER/NAME, or "
            "'shipped'."
        )
    # a data set's own split into parts is kept
    return [file for file in found if "train" in file.relative_to(path).as_posix()] or found


def _snapshot(identity: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    try:
        return Path(snapshot_download(identity, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; each means: not to be had
        raise DataError(
            f"{HUB}{identity} is not to be had from the hub, nor in the local cache ({type(error).__name__}): is this "
            "machine online, and is the data set public?"
        ) from error


def _json_lines(path: Path) -> Iterator[tuple[Record, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _json(line, f"{path}, line {number}"), f"{path}, line {number}"
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged or not UTF-8 text: {error}.") from error


def _json(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}).") from error
    return record if isinstance(record, dict) else {"": line.strip()}  # no object: lacks every field


def _parquet(path: Path) -> Iterator[tuple[Record, str]]:
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"{path}: reading Parquet files needs `pip install 'langbridge-lm[parquet]'`.")
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield {key: value for key, value in row.items() if value is not None}, f"{path}, row {number}"
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged or no Parquet file: {str(error).splitlines()[0]}.") from error
