"""Examples and the JSON lines they are read from. Knows nothing of tokens."""

import gzip
import json
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from langbridge.errors import DataError

SHIPPED = "shipped"
"""Name of the English set inside the package, written by the embedded LM (see `langbridge synthesize`)."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training pair, or one prompt when `target` is empty."""

    source: str
    """Text for the encoder."""
    target: str = ""
    """Text the LM should produce."""
    instruction: str = ""
    """English text for the LM in front of the soft prompt."""


def assets() -> Path:
    """Return the folder of files that the package ships."""
    return Path(str(resources.files("langbridge") / "assets"))


def read_examples(name: str) -> list[Example]:
    """Read (source, target, instruction) records from a `.jsonl` or `.jsonl.gz` file, or the shipped set.

    Raises DataError, with the line, for a file that is missing, malformed or has no record.
    """
    path = assets() / "english.jsonl.gz" if name == SHIPPED else Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file; data.train is a .jsonl or .jsonl.gz file, or {SHIPPED!r}.")
    opener = gzip.open if path.suffix == ".gz" else open
    examples = []
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            examples = [_example(line, path, number) for number, line in enumerate(file, start=1) if line.strip()]
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged or not UTF-8 text: {error}.") from error
    if not examples:
        raise DataError(f"{path} holds no record; wanted JSON lines with source and target.")
    return examples


def has_lone_surrogate(text: str) -> bool:
    """Tell whether text holds half a character, which no tokenizer takes; broken JSON escapes make such text."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _example(line: str, path: Path, number: int) -> Example:
    where = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}).") from error
    if not isinstance(record, dict) or not {"source", "target"} <= set(record):
        raise DataError(f'{where}: wanted an object with "source" and "target", found {line.strip()[:80]}')
    unknown = set(record) - {"source", "target", "instruction"}
    if unknown:
        raise DataError(f"{where}: unknown field {sorted(unknown)[0]!r}; known: source, target, instruction.")
    for field, value in record.items():
        if not isinstance(value, str) or (field != "instruction" and not value.strip()):
            raise DataError(f"{where}: {field} must be text that is not empty, found {value!r}.")
        if has_lone_surrogate(value):
            raise DataError(f"{where}: {field} holds half a character (a lone surrogate): {value!a}.")
    return Example(**record)
