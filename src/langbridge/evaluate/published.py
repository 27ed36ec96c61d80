"""Numbers that others have published, as reference rows: what, by whom, read where. Never computed with."""

import functools
from dataclasses import dataclass
from typing import Any

import yaml

from langbridge.data.examples import assets
from langbridge.languages import LANGUAGES


@dataclass(frozen=True)
class Published:
    """One row of a published table."""

    system: str
    trained_on: str
    setting: str
    """Models and languages of the table."""
    source: str
    averages: dict[str, float]
    """By group of languages, per cent."""
    languages: dict[str, float]


def published(task: str) -> list[Published]:
    """Return the published rows of a task; none where nothing could be recovered."""
    found = []
    for table in _tables():
        if table["task"] != task:
            continue
        names = table["columns"]
        for row in table["rows"]:
            values = dict(zip(names, row["values"], strict=True))
            found.append(
                Published(
                    system=row["system"],
                    trained_on=row["trained_on"],
                    setting=table["setting"],
                    source=table["source"],
                    averages={name: value for name, value in values.items() if name not in LANGUAGES},
                    languages={name: value for name, value in values.items() if name in LANGUAGES},
                )
            )
    return found


@functools.cache
def _tables() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((assets() / "published.yaml").read_text(encoding="utf-8"))
    return found
