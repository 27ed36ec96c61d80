"""Examples, and the records they are read from. Knows nothing of tokens."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from langbridge.data.tables import HUB, records
from langbridge.errors import DataError

SHIPPED = "shipped"
"""Name of the English set inside the package, written by the embedded LM (see `langbridge synthesize`)."""
PUBLISHED = {"input": "source", "output": "target"}
"""Columns of the data sets that LangBridge's authors published -> our fields; an empty output means unlabelled text."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training pair, or one prompt when `target` is empty."""

    source: str
    """Text for the encoder."""
    target: str = ""
    """Text the LM should produce."""
    instruction: str = ""
    """English text for the LM in front of the soft prompt."""
    complete: bool = True
    """Whether the target is whole, so that the LM's end token closes it."""
    text: str = ""
    """The source as the LM itself reads it, where the LM is to teach the bridge."""


def assets() -> Path:
    """Return the folder of files that the package ships."""
    return Path(str(resources.files("langbridge") / "assets"))


def read_examples(name: str) -> list[Example]:
    """Read (source, target, instruction) records: a file, a folder, a hub data set, or the shipped set.

    Raises DataError, with the line, for a file that is missing, malformed or has no record.
    """
    return [Example(**fields) for fields in _read(name, needed=("source", "target"), optional=("instruction",))]


def read_prompts(name: str) -> list[Example]:
    """Read (source, instruction) records, whatever their targets are: prompts that the LM is to answer itself."""
    return [Example(**fields) for fields in _read(name, needed=("source",), optional=("target", "instruction"))]


def read_texts(name: str) -> list[str]:
    """Read unlabelled texts: records with `text`, or with `input` and an empty `output`."""
    return [fields["text"] for fields in _read(name, needed=("text",), optional=())]


def has_lone_surrogate(text: str) -> bool:
    """Tell whether text holds half a character, which no tokenizer takes; broken JSON escapes make such text."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _read(name: str, *, needed: tuple[str, ...], optional: tuple[str, ...]) -> list[dict[str, Any]]:
    where = str(assets() / "english.jsonl.gz") if name == SHIPPED else name
    found = [_checked(_named(record, needed), place, needed, optional) for record, place in records(where)]
    if not found:
        shown = where if where.startswith(HUB) else Path(where).expanduser()
        raise DataError(f"{shown} holds no record; wanted {' and '.join(needed)} in each.")
    return found


def _named(record: dict[str, Any], needed: tuple[str, ...]) -> dict[str, Any]:
    """Return a record with our names for the columns of published data sets."""
    if not set(record) <= set(PUBLISHED) or "input" not in record:
        return record
    if needed == ("text",):
        return record if record.get("output") else {"text": record["input"]}
    return {PUBLISHED[field]: value for field, value in record.items() if value or field == "input"}


def _checked(record: dict[str, Any], where: str, needed: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    if not set(needed) <= set(record):
        names = " and ".join(f'"{name}"' for name in needed)
        raise DataError(f"{where}: wanted an object with {names}, found {_shown(record)}")
    known = (*needed, *optional)
    if unknown := set(record) - set(known):
        raise DataError(f"{where}: unknown field {sorted(unknown)[0]!r}; known: {', '.join(known)}.")
    for field, value in record.items():
        if not isinstance(value, str) or (field != "instruction" and not value.strip()):
            raise DataError(f"{where}: {field} must be text that is not empty, found {value!r}.")
        if has_lone_surrogate(value):
            raise DataError(f"{where}: {field} holds half a character (a lone surrogate): {value!a}.")
    return record


def _shown(record: dict[str, Any]) -> str:
    return record[""][:80] if set(record) == {""} else json.dumps(record, ensure_ascii=False, default=str)[:80]
