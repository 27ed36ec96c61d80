"""Median transfer ratio over languages, and what a setting raises it by, over languages and seeds.

A setting is compared with all seeds of the base: what a seed does to one setting says nothing of another.
"""

import statistics
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from langbridge.analyse.figures import INK, Figure, bars, sheet
from langbridge.analyse.study import Cell
from langbridge.evaluate.statistics import ROUNDS

Ratios = NDArray[np.float64]
ONE_SEED, UNLEARNED = "#aac4dd", "#bbbbbb"
"""Colours of bars that are less than they seem."""


def medians(rows: Mapping[str, Mapping[int, Cell]], base: str) -> str:
    """Return a table of the median over test languages by setting, beside that of `base`, as Markdown."""
    lines = [f"| setting | seeds | median ratio, test | from `{base}` | better in |", "|---|---|---|---|---|"]
    first = by_seed(rows[base])
    for name, own in rows.items():
        here = by_seed(own)
        shown = f"{np.median(here.mean(axis=0)):.3f} |"
        if name == base:
            shown += " |"
        else:
            gain, low, high = median_gain(here, first)
            better = int((here.mean(axis=0) > first.mean(axis=0)).sum())
            shown += f" {gain:+.3f} ({low:+.3f} to {high:+.3f}) | {better} of {first.shape[1]}"
        lines.append(f"| {name} | {len(own)} | {shown} |")
    return "\n".join([*lines, "", by_chance(rows[base], base)])


def by_chance(own: Mapping[int, Cell], base: str) -> str:
    """Tell how far medians of one setting lie apart between seeds."""
    found = sorted(statistics.median(cell["test"].values()) for cell in own.values())
    if len(found) < 2:
        return (
            "One seed each: the intervals are over languages, and how far seeds alone set settings apart is not known."
        )
    shown = ", ".join(f"{median:.3f}" for median in found)
    return (
        f"The seeds of `{base}` alone have medians of {shown}: where a setting has one seed, its interval is over "
        f"languages and the seeds of `{base}` only, and a difference below {found[-1] - found[0]:.3f} need not be one."
    )


def draw_gains(
    rows: Mapping[str, Mapping[int, Cell]], base: str, *, colours: Mapping[str, str], wanted: float | None = None
) -> Figure:
    """Draw what each setting raises the median ratio of `base` by, with its interval; `wanted`: an aim."""
    first = by_seed(rows[base])
    gains = {name: median_gain(by_seed(own), first) for name, own in rows.items() if name != base}
    figure, (axes,) = sheet(width=6.2, height=1.2 + 0.3 * len(gains))
    bars(axes, gains, title=f"Median transfer ratio against {base}", x="difference of medians", colours=colours)
    axes.axvline(0, color=INK, linewidth=0.8)
    if wanted is not None:
        axes.axvline(wanted, color=INK, linewidth=0.8, linestyle=":")
    return figure


def shades(rows: Mapping[str, Mapping[int, Cell]], unlearned: Collection[str]) -> dict[str, str]:
    """Return the colours of settings that are less than they seem: of one seed, and through which nothing came."""
    return {name: ONE_SEED for name, own in rows.items() if len(own) < 2} | dict.fromkeys(unlearned, UNLEARNED)


def by_seed(own: Mapping[int, Cell]) -> Ratios:
    """Return the test languages' ratios of one setting: (seeds, languages)."""
    cells = list(own.values())
    return np.array([[cell["test"][language] for language in cells[0]["test"]] for cell in cells])


def median_gain(ours: Ratios, theirs: Ratios) -> tuple[float, float, float]:
    """Return (difference of medians over languages of the means over seeds, its bootstrap 95% interval).

    `ours`, `theirs`: (seeds, languages), the same languages in the same order. Both get the same languages drawn,
    and each its own seeds.
    """

    def gain(first: Ratios, second: Ratios) -> float:
        return float(np.median(first.mean(axis=0)) - np.median(second.mean(axis=0)))

    rng = np.random.default_rng(0)
    found = []
    for _ in range(ROUNDS):
        languages = rng.integers(0, ours.shape[1], ours.shape[1])
        drawn = [part[rng.integers(0, len(part), len(part))][:, languages] for part in (ours, theirs)]
        found.append(gain(drawn[0], drawn[1]))
    low, high = np.percentile(found, [2.5, 97.5])
    return gain(ours, theirs), float(low), float(high)
