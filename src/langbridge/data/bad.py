"""Bad records: what is wrong with each, how many there are, where the first ones stand, and when they are too many."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from langbridge.errors import DataError

NOT_JSON, MISFIT, REPEATED = "not JSON", "wrong fields", "repeated fields"
NOT_TEXT, EMPTY, HALF = "not text", "empty", "half a character"
NOT_UTF8, UTF16, MARK = "not UTF-8", "UTF-16", "byte-order mark"
LONG_SOURCE, LONG_TARGET, LONG_PROMPT, ONE_PART = "long source", "long target", "long for the LM", "nothing to cut"
DAMAGED = "damaged file"
OVER_LONG = (LONG_SOURCE, LONG_TARGET, LONG_PROMPT, ONE_PART)
"""Kinds that `data.over_long` decides about: good records of a length that cannot be used."""
HARMLESS = (MARK,)
"""Kinds that are only told."""
SHOWN = 3
"""Places that are kept of each kind."""
ENOUGH = 1000
"""Records after which a share means something, where the end of the data is not known."""


@dataclass(frozen=True)
class Bad:
    """What stands where a record should."""

    kind: str
    why: str


@dataclass(kw_only=True)
class BadRecords:
    """Counts bad records, keeps the first places of each kind, and refuses what the recipe does not want skipped."""

    bad: str = "refuse"
    """`data.bad_records`: refuse, or skip."""
    over_long: str = "skip"
    """`data.over_long`: skip, or refuse."""
    most: float = 0.05
    """`data.most_bad`: largest share of bad records that is skipped."""
    read: int = 0
    """Records that were looked at, good ones too."""
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, found: Bad, where: str) -> None:
        """Count one."""
        self.counts[found.kind] = self.counts.get(found.kind, 0) + 1
        places = self.first.setdefault(found.kind, [])
        if len(places) < SHOWN:
            places.append(f"{where}: {found.why}")

    @property
    def skipped(self) -> int:
        """Records that are left out."""
        return sum(count for kind, count in self.counts.items() if kind not in HARMLESS)

    @property
    def refused(self) -> list[str]:
        """Kinds that were found and that the recipe refuses."""
        policy = dict.fromkeys(OVER_LONG, self.over_long) | dict.fromkeys(HARMLESS, "skip")
        return [kind for kind in self.counts if policy.get(kind, self.bad) == "refuse"]

    def check(self, *, streaming: bool = False, ended: bool = True) -> None:
        """Raise DataError where something was found that is refused, or more than may be skipped.

        `streaming`: damage of a file is skipped like other things, as training has begun when it is found; else it is
        refused. `ended`: all records were looked at, else a share of few means nothing.
        """
        if not streaming and DAMAGED in self.counts:
            raise DataError(f"{self.first[DAMAGED][0]}. Get the file again: what arrived of it is not trained on.")
        if kinds := self.refused:
            advice = "data.over_long: skip" if kinds[0] in OVER_LONG else "data.bad_records: skip"
            raise DataError(f"{self.first[kinds[0]][0]}. {self._totals(kinds)}: correct them, or set {advice}.")
        kinds = [kind for kind in self.counts if kind not in (*OVER_LONG, *HARMLESS)]
        bad = sum(self.counts[kind] for kind in kinds)
        if bad > self.most * self.read and (ended or self.read >= ENOUGH):
            raise DataError(
                f"{self.first[kinds[0]][0]}. {self._totals(kinds)}, more than data.most_bad {self.most:g} of all: is "
                "it the right file?"
            )

    def lines(self) -> list[str]:
        """Return what was found as lines for people: totals, and the first places of each kind."""
        found = []
        for kind, count in self.counts.items():
            told = "read without it" if kind in HARMLESS else "skipped"
            found.append(f"{kind}: {count:,} of {self.read:,} records, {told}")
            found += [f"  {place}" for place in self.first[kind]]
            if count > len(self.first[kind]):
                found.append(f"  and {count - len(self.first[kind]):,} more")
        return found

    def record(self) -> dict[str, Any]:
        """Return what was found, for a file."""
        kinds = {kind: {"count": count, "first": self.first[kind]} for kind, count in self.counts.items()}
        return {"read": self.read, "skipped": self.skipped, "kinds": kinds}

    def take(self, record: Mapping[str, Any]) -> None:
        """Go on from what `record` returned."""
        self.read = record["read"]
        self.counts = {kind: found["count"] for kind, found in record["kinds"].items()}
        self.first = {kind: list(found["first"]) for kind, found in record["kinds"].items()}

    def _totals(self, kinds: list[str]) -> str:
        number = sum(self.counts[kind] for kind in kinds)
        parts = ", ".join(f"{self.counts[kind]:,} {kind}" for kind in kinds)
        return f"In all {number:,} of {self.read:,} records ({parts})"
