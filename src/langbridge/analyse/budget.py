"""Study `budget`: how much English is needed, and where does training leave its plateau?"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any, ClassVar

import numpy as np

from langbridge.analyse.figures import Figure, sheet
from langbridge.analyse.grid import Grid, by_setting, foreign, macro, unlearned
from langbridge.analyse.study import Cell

SAMPLES = (100, 400, 1600, 6400, 25_600, 50_000)
BATCH = 32
RATES = ("2e-4", "6e-4", "2e-3")
STARTS = {"warm": "warm_start.enabled=true", "random": "warm_start.enabled=false"}
FIRST = 10
"""Steps that the first doubling begins at: an earlier loss is that of a single batch."""
DROP, FLAT = 0.3, 1 / 3
"""A plateau is left where the loss falls by so many nats in a doubling, and by less than so much of that before."""


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
        "Cosine schedule in each cell, so that a short run is a whole run, not the beginning of a long one. Falls are "
        "of the training loss of the longest run of each line, which is logged every ten steps."
    )

    @property
    def length(self) -> str:
        """How long a cell is trained, for the page."""
        return "on the samples that its name says"

    def table(self, cells: Mapping[str, Cell]) -> str:
        """Add how the loss of each line's longest run falls, doubling by doubling."""
        settings = by_setting(cells)
        found = {}
        for start in STARTS:
            for rate in RATES:
                if longest := [n for n in SAMPLES if f"{start} {rate} {n}" in settings]:
                    own = settings[f"{start} {rate} {longest[-1]}"].values()
                    found[f"{start} {rate} {longest[-1]}"] = np.mean([falls(cell["losses"]) for cell in own], axis=0)
        widest = max((len(own) for own in found.values()), default=0)
        edges = [FIRST * BATCH * 2**i for i in range(widest + 1)]
        heads = [f"{edge:,} to {2 * edge:,}" for edge in edges[:-1]]
        rows = [
            f"| fall of the loss, samples | {' | '.join(heads)} | plateau left |",
            f"|{'---|' * (len(heads) + 2)}",
        ]
        for name, own in found.items():
            shown = [f"{fall:.2f}" for fall in own] + [""] * (widest - len(own))
            left = plateau_left(own)
            rows.append(f"| {name} | {' | '.join(shown)} | {'none seen' if left is None else f'{left:,}'} |")
        told = (
            f"A plateau counts as left where a doubling of samples lowers the loss by at least {DROP} nats and an "
            "earlier one by less than a third of that."
        )
        return "\n".join([super().table(cells), "", *rows, "", told])

    def figures(self, cells: Mapping[str, Cell]) -> dict[str, tuple[Figure, str]]:
        """Draw transfer against samples and the loss of the longest runs."""
        settings = by_setting(cells)
        lost = unlearned(settings, self.base)
        figure, axes = sheet(3, width=4.0, height=3.8)
        for number, (start, rate) in enumerate(product(STARTS, RATES)):
            there = {n: settings[name] for n in SAMPLES if (name := f"{start} {rate} {n}") in settings}
            if there:
                ratios = {
                    n: float(np.mean([macro(c["test"]) for c in own.values()]))
                    for n, own in there.items()
                    if f"{start} {rate} {n}" not in lost
                }
                nll = {n: float(np.mean([macro(foreign(c["nll_test"])) for c in o.values()])) for n, o in there.items()}
                look: dict[str, Any] = {"color": f"C{number}", "label": f"{start}, {rate}"}
                for one, values in zip(axes, (ratios, nll), strict=False):
                    one.plot(list(values), list(values.values()), marker="o", markersize=3.5, linewidth=1.4, **look)
                curve = next(iter(there[max(there)].values()))["losses"]
                points = ([max(1.0, step * BATCH) for step, _ in curve], [loss for _, loss in curve])
                axes[2].plot(*points, linewidth=1.0, **look)
        for one, title, y in (
            (axes[0], "Transfer to test languages", "transfer ratio"),
            (axes[1], "Loss, test languages", "nats per token"),
            (axes[2], "Training loss", "nats per token"),
        ):
            one.set_xscale("log")
            one.set_title(title, fontsize=10)
            one.set_xlabel("samples")
            one.set_ylabel(y)
        axes[0].set_xlim(axes[1].get_xlim())
        axes[1].legend(fontsize=8, frameon=False)
        return {
            "budget": (
                figure,
                "Left and middle: means over test languages and seeds; left only where English was learned, as a ratio "
                "says nothing elsewhere. Right: the longest run of each line.",
            )
        }


def falls(losses: Sequence[Sequence[float]]) -> list[float]:
    """Return what the mean training loss of an octave of steps is below that of the octave before, in nats.

    `losses`: (step, loss) pairs. Octaves are around `FIRST`, twice that, and so on, up to the middle of the last.
    """
    steps, values = np.array(losses, dtype=float).T
    octaves = np.round(np.log2(steps / FIRST))
    means = [float(values[octaves == octave].mean()) for octave in range(int(np.log2(steps[-1] / FIRST) + 1))]
    return [before - after for before, after in pairwise(means)]


def plateau_left(found: Sequence[float]) -> int | None:
    """Return how many samples a run had seen when it left its plateau; None where there is none."""
    for doubling, fall in enumerate(found):
        if fall >= DROP and min(found[:doubling], default=math.inf) < FLAT * fall:
            return FIRST * BATCH << doubling
    return None
