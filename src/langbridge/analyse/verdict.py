"""What a diagnosis found: one line for each sign, and its trouble in plain words."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from langbridge.checkpoint import versions
from langbridge.files import write_text


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sign that was looked at."""

    sign: str
    """What was measured."""
    about: str
    """`run`, or the language it was measured on."""
    figure: float | None
    """None: not known."""
    wanted: str
    """The threshold, in words."""
    trouble: str = ""
    """Short name of what is wrong; empty: nothing."""
    advice: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.trouble


def judged(*, sign: str, about: str, figure: float, wanted: str, bad: bool, trouble: str, advice: str = "") -> Finding:
    """Return a finding that names its trouble and its advice only where the figure is bad."""
    named = {"trouble": trouble, "advice": advice} if bad else {}
    return Finding(sign=sign, about=about, figure=figure, wanted=wanted, **named)


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print all signs, then each trouble with what to do."""
    table = Table("", "about", "sign", "figure", "wanted")
    for found in findings:
        if found.figure is None:
            table.add_row("?", found.about, found.sign, "not known", found.wanted)
        else:
            table.add_row("ok" if found.ok else "BAD", found.about, found.sign, f"{found.figure:.2f}", found.wanted)
    console.print(table)
    troubles = [found for found in findings if not found.ok]
    for found in troubles:
        console.print(f"{found.about}: {found.trouble}. {found.advice}", soft_wrap=True)
    if not troubles:
        console.print("No trouble found.")


def write_findings(findings: Sequence[Finding], path: Path, run: str) -> None:
    """Write the findings as JSON."""
    whole = {"run": run, "findings": [asdict(found) for found in findings], "versions": versions()}
    write_text(path, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
