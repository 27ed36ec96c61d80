"""Median transfer ratio over languages, and what a setting raises it by: intervals that one seed is enough for."""

import statistics
from collections.abc import Mapping

import numpy as np

from langbridge.analyse.figures import INK, Figure, bars, sheet
from langbridge.analyse.study import Cell
from langbridge.evaluate.statistics import interval


def medians(rows: Mapping[str, Mapping[int, Cell]], base: str) -> str:
    """Return a table of the median over test languages by setting, beside that of `base`, as Markdown.

    A setting is compared with the seeds of `base` that it has itself.
    """
    lines = [f"| setting | median ratio, test | from `{base}` | better in |", "|---|---|---|---|"]
    for name, own in rows.items():
        here, first = on_shared_seeds(own, rows[base])
        gain, low, high = median_gain(here, first)
        better = sum(here[language] > first[language] for language in first)
        shown = f"{gain:+.3f} ({low:+.3f} to {high:+.3f}) | {better} of {len(first)}" if name != base else "|"
        lines.append(f"| {name} | {statistics.median(here.values()):.3f} | {shown} |")
    return "\n".join(lines)


def draw_gains(rows: Mapping[str, Mapping[int, Cell]], base: str) -> Figure:
    """Draw what each setting raises the median ratio of `base` by, with its interval over languages."""
    gains = {name: median_gain(*on_shared_seeds(own, rows[base])) for name, own in rows.items() if name != base}
    figure, (axes,) = sheet(width=6.2, height=1.2 + 0.3 * len(gains))
    bars(axes, gains, title=f"Median transfer ratio against {base}", x="difference of medians")
    axes.axvline(0, color=INK, linewidth=0.8)
    return figure


def on_shared_seeds(own: Mapping[int, Cell], base: Mapping[int, Cell]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the ratios of a setting and of `base` on the seeds that both have; on all of each where none is shared."""
    shared = own.keys() & base.keys()
    ours, theirs = ({seed: cells[seed] for seed in shared or cells} for cells in (own, base))
    return over_languages(ours), over_languages(theirs)


def over_languages(own: Mapping[int, Cell]) -> dict[str, float]:
    """Return the test languages' ratios of one setting, each the mean over seeds."""
    cells = list(own.values())
    return {language: statistics.fmean(cell["test"][language] for cell in cells) for language in cells[0]["test"]}


def median_gain(own: Mapping[str, float], base: Mapping[str, float]) -> tuple[float, float, float]:
    """Return (difference of medians, its bootstrap 95% interval over languages, both with the same ones drawn)."""
    ours, theirs = (np.array([ratios[language] for language in base]) for ratios in (own, base))
    low, high = interval(lambda drawn: float(np.median(ours[drawn]) - np.median(theirs[drawn])), len(base))
    return float(np.median(ours) - np.median(theirs)), low, high
