"""Examples, and the records they are read from. Knows nothing of tokens."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from langbridge.data.bad import EMPTY, HALF, HARMLESS, MISFIT, NOT_TEXT, Bad, BadRecords
from langbridge.data.tables import HUB, SHOWN, records
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

    @classmethod
    def of(cls, record: dict[str, str]) -> "Example":
        """Return the example that a good record is."""
        return cls(**record)  # type: ignore[arg-type]  # no field of a record is the one that is no text


def assets() -> Path:
    """Return the folder of files that the package ships."""
    return Path(str(resources.files("langbridge") / "assets"))


@dataclass(frozen=True)
class Fields:
    """What a kind of record has."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()
    others: bool = False
    """Whether fields that nobody knows may stand beside them."""


PAIR = Fields(("source", "target"), ("instruction",))
PROMPT = Fields(("source",), ("target", "instruction"))
TEXT = Fields(("text",), others=True)


def read_examples(name: str) -> list[Example]:
    """Read (source, target, instruction) records: a file, a folder, a hub data set, or the shipped set.

    Raises DataError, with the line, for a file that is missing, malformed or has no record.
    """
    return [Example.of(fields) for fields in _read(name, PAIR)]


def read_prompts(name: str) -> list[Example]:
    """Read (source, instruction) records, whatever their targets are: prompts that the LM is to answer itself."""
    return [Example.of(fields) for fields in _read(name, PROMPT)]


def read_texts(name: str) -> list[str]:
    """Read unlabelled texts: records with `text`, or with `input` and an empty `output`."""
    return [fields["text"] for fields in _read(name, TEXT)]


def has_lone_surrogate(text: str) -> bool:
    """Tell whether text holds half a character, which no tokenizer takes; broken JSON escapes make such text."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def located(name: str) -> str:
    """Return where a data set lies, by its name in a recipe."""
    return str(assets() / "english.jsonl.gz") if name == SHIPPED else name


def good(name: str, fields: Fields, bad: BadRecords) -> Iterator[tuple[dict[str, str], str]]:
    """Yield (fields, where it stands) of each good record, and count the others in `bad`.

    Raises DataError where there is no data set, or no record in it.
    """
    for found, where, _ in records(located(name)):
        checked = found if isinstance(found, Bad) else check(found, fields)
        if isinstance(checked, Bad):
            bad.read += checked.kind not in HARMLESS
            bad.add(checked, where)
        else:
            bad.read += 1
            yield checked, where
    if not bad.read and not bad.counts:
        shown = located(name) if name.startswith(HUB) else Path(located(name)).expanduser()
        raise DataError(f"{shown} holds no record; wanted {' and '.join(fields.needed)} in each.")


def check(record: dict[str, Any], fields: Fields) -> dict[str, str] | Bad:
    """Return the fields of a record by our names, or what is wrong with it."""
    record, known = _named(record, fields.needed), (*fields.needed, *fields.optional)
    if not set(fields.needed) <= set(record):
        names = " and ".join(f'"{name}"' for name in fields.needed)
        return Bad(MISFIT, f"wanted an object with {names}, found {_shown(record)}")
    if (unknown := set(record) - set(known)) and not fields.others:
        return Bad(MISFIT, f"unknown field {sorted(unknown)[0]!r}; known: {', '.join(known)}")
    for name, value in record.items():
        if name in known and (wrong := _wrong(name, value)):
            return wrong
    return {name: value for name, value in record.items() if name in known}


def _wrong(name: str, value: Any) -> Bad | None:
    if not isinstance(value, str) or (name != "instruction" and not value.strip()):
        kind = EMPTY if isinstance(value, str) else NOT_TEXT
        return Bad(kind, f"{name} must be text that is not empty, found {repr(value)[:SHOWN]}.")
    if has_lone_surrogate(value):
        return Bad(HALF, f"{name} holds half a character (a lone surrogate): {ascii(value)[:SHOWN]}")
    return None


def _read(name: str, fields: Fields) -> list[dict[str, str]]:
    bad = BadRecords(over_long="refuse")
    found = [record for record, _ in good(name, fields, bad)]
    bad.check()
    return found


def _named(record: dict[str, Any], needed: tuple[str, ...]) -> dict[str, Any]:
    """Return a record with our names for the columns of published data sets."""
    if not set(record) <= set(PUBLISHED) or "input" not in record:
        return record
    if needed == TEXT.needed:
        return record if record.get("output") else {"text": record["input"]}
    return {PUBLISHED[field]: value for field, value in record.items() if value or field == "input"}


def _shown(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, default=str)[:SHOWN]
