"""Study `budget`: how much English is needed, and where does training leave its plateau?"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from langbridge.analyse.figures import Figure, lines, sheet
from langbridge.analyse.grid import Grid, by_setting, foreign, macro
from langbridge.analyse.study import Cell

SAMPLES = (100, 400, 1600, 6400, 25_600, 50_000)
BATCH = 32
RATES = ("2e-4", "6e-4", "2e-3")
STARTS = {"warm": "warm_start.enabled=true", "random": "warm_start.enabled=false"}
DROP = 0.3
"""Nats that the training loss must fall by for a plateau to have been left."""


class Budget(Grid):
    """Samples x learning rate x start."""

    name: ClassVar[str] = "budget"
    question: ClassVar[str] = "How many English samples does transfer need, from a warm start and from a random one?"
    base: ClassVar[str] = "warm 6e-4 1600"
    settings: ClassVar[dict[str, tuple[str, ...]]] = {
        f"{start} {rate} {samples}": (
            field,
            f"training.learning_rate={float(rate)}",
            f"training.batch_size={BATCH}",
            f"training.steps={math.ceil(samples / BATCH)}",
            f"data.limit={samples + 48}",
            "data.validation=48",
        )
        for samples in SAMPLES
        for start, field in STARTS.items()
        for rate in RATES
    }
    about: ClassVar[str] = (
        f"So many samples in batches of {BATCH}, each once while there are enough (12,000 records; beyond, they come "
        "again), three learning rates, warm start or random start of the right size; the warm start sees only the same "
        "samples."
    )
    limits: ClassVar[str] = (
        "Cosine schedule in each cell, so that a short run is a whole run, not the beginning of a long one. The "
        "transition is read off the training loss of the longest run of each line."
    )

    def table(self, cells: Mapping[str, Cell]) -> str:
        """Add where each line's longest run leaves its plateau."""
        rows = ["", "| start | rate | plateau left after samples | loss before | loss after |", "|---|---|---|---|---|"]
        settings = by_setting(cells)
        for start in STARTS:
            for rate in RATES:
                longest = [n for n in SAMPLES if f"{start} {rate} {n}" in settings]
                if longest:
                    found = [transition(c["losses"]) for c in settings[f"{start} {rate} {longest[-1]}"].values()]
                    rows.append(f"| {start} | {rate} | {_samples(found)} |")
        return super().table(cells) + "\n" + "\n".join(rows)

    def figures(self, cells: Mapping[str, Cell]) -> dict[str, tuple[Figure, str]]:
        """Draw transfer against samples and the loss of the longest runs."""
        settings = by_setting(cells)
        figure, axes = sheet(3, width=4.0, height=3.8)
        for start in STARTS:
            for rate in RATES:
                there = [n for n in SAMPLES if f"{start} {rate} {n}" in settings]
                if not there:
                    continue
                own = [list(settings[f"{start} {rate} {n}"].values()) for n in there]
                ratios = [float(np.mean([macro(c["test"]) for c in group])) for group in own]
                nll = [float(np.mean([macro(foreign(c["nll_test"])) for c in group])) for group in own]
                for one, values in zip(axes, (ratios, nll), strict=False):
                    lines(one, {f"{start}, {rate}": (there, values)}, title="", x="", y="")
                curve = next(iter(settings[f"{start} {rate} {there[-1]}"].values()))["losses"]
                points = ([max(1.0, step * BATCH) for step, _ in curve], [loss for _, loss in curve])
                axes[2].plot(*points, label=f"{start}, {rate}", linewidth=1.0)
        for one, title, y in (
            (axes[0], "Transfer to test languages", "transfer ratio"),
            (axes[1], "Loss, test languages", "nats per token"),
            (axes[2], "Training loss", "nats per token"),
        ):
            one.set_xscale("log")
            one.set_title(title, fontsize=10)
            one.set_xlabel("samples")
            one.set_ylabel(y)
        axes[0].legend(fontsize=8, frameon=False)
        return {
            "budget": (
                figure,
                "Left and middle: means over test languages and seeds; where English is not learned, as after a random "
                "start, only the loss compares. Right: the longest run of each line.",
            )
        }


def transition(losses: Sequence[Sequence[float]]) -> tuple[float, float, float] | None:
    """Return (samples, loss before, loss after) where the loss falls through the middle between plateau and end.

    The plateau is the mean of the second tenth of the run, in logarithmic samples; None where the whole fall from it
    is less than `DROP`.
    """
    steps, values = np.array(losses, dtype=float).T
    if len(steps) < 5:
        return None
    smooth = np.array([values[max(0, i - 2) : i + 3].mean() for i in range(len(values))])
    ending = float(smooth[-max(1, len(smooth) // 10) :].mean())
    early = steps <= max(steps[1], steps[-1] ** 0.35)
    plateau = float(values[early].mean())
    if plateau - ending < DROP:
        return None
    crossing = int(np.argmax((smooth < (plateau + ending) / 2) & ~early))
    return float(steps[crossing] * BATCH), plateau, ending


def _samples(found: Sequence[tuple[float, float, float] | None]) -> str:
    there = [one for one in found if one is not None]
    if not there:
        return "not left | | "
    means = np.mean(there, axis=0)
    return f"{means[0]:,.0f} | {means[1]:.2f} | {means[2]:.2f}"
