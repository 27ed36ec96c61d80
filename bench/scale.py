"""Training time and memory against data size, sequence length and processes: a table and three plots.

    python bench/scale.py --out runs/scale [--quick] [--recipe recipes/embedded.yaml]

Each cell is a run of its own processes, one after the other, on all cores. What was measured is kept in
`OUT/cells.jsonl`: a bench that was stopped goes on where it was, and only missing cells are run. Plots: OUT/*.png.

Data size: the shipped English set, repeated; held in memory, and streamed. Length: sources and targets of one word
again and again; with and without gradient checkpointing. Processes: a step of as many records on 1, 2 and 4, by gloo.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback

from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe
from langbridge.data import read_examples
from langbridge.files import write_text
from langbridge.model import Batch
from langbridge.pretrained import quiet
from langbridge.train.run import train

ROOT = Path(__file__).parent.parent
BATCH, LONG_BATCH, STEPS = 16, 4, 5
"""Records of a step, fewer where length is measured; steps of a cell."""
SIZES = {False: (1_000, 3_000, 10_000, 30_000, 50_000), True: (1_000, 3_000)}
"""Records, in full and quick."""
LENGTHS = {False: (16, 32, 64, 128, 256), True: (8, 16)}
"""Words of a source; its target has half of them."""
PROCESSES = {False: (1, 2, 4), True: (1, 2)}
PLOTS = {"size": "records", "length": "words of a source", "processes": "processes"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to measure."""

    kind: str
    """size, length or processes."""
    value: int
    way: str
    """The curve it lies on."""

    @property
    def processes(self) -> int:
        """Return how many processes run it."""
        return self.value if self.kind == "processes" else 1

    @property
    def batch(self) -> int:
        """Return the records of a step, over all processes."""
        return LONG_BATCH if self.kind == "length" else BATCH


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What it took."""

    ready: float
    """Seconds until the first step: models, data, start."""
    step: float
    """Seconds of a step, the first left out."""
    tokens: float
    """LM tokens of a step, over all processes, the first step left out."""
    peak: float
    """Most resident bytes of all processes together."""


def cells(quick: bool) -> Iterator[Cell]:
    """Yield everything that is measured."""
    for size in SIZES[quick]:
        yield Cell(kind="size", value=size, way="in memory")
        yield Cell(kind="size", value=size, way="streamed")
    for length in LENGTHS[quick]:
        yield Cell(kind="length", value=length, way="layers kept")
        yield Cell(kind="length", value=length, way="gradient checkpointing")
    for processes in PROCESSES[quick]:
        yield Cell(kind="processes", value=processes, way=f"{BATCH} records a step, in all")


def recipe_of(cell: Cell, options: argparse.Namespace, data: Path) -> Recipe:
    """Return what a cell trains; its data is written to `data`."""
    write(cell, data)
    settings = {
        **{"data.train": data, "data.validation": 8, "data.streaming": cell.way == "streamed", "data.buffer": 2048},
        **{"data.answers": "null", "warm_start.enabled": False, "training.precision": "fp32"},
        **{"training.steps": STEPS, "training.batch_size": cell.batch // cell.processes, "training.accumulate": 1},
        **{"training.save_every": STEPS + 1, "training.evaluate_every": STEPS + 1, "training.cache_states": False},
        **{"training.gradient_checkpointing": cell.way == "gradient checkpointing", "data.longest_target": 512},
        **{"data.shuffle_words": 0.0, "data.cut_words": 0.0},
    }
    return Recipe.read(options.recipe, [*(f"{name}={value}" for name, value in settings.items()), *options.overrides])


def write(cell: Cell, path: Path) -> None:
    """Write the records of a cell."""
    if cell.kind == "length":
        source, target = " ".join(["word"] * cell.value), " ".join(["word"] * (cell.value // 2))
        records = [{"source": f"{source} {i}", "target": target} for i in range(STEPS * cell.batch + 100)]
    else:
        count = cell.value if cell.kind == "size" else 1_000
        examples = islice(cycle(read_examples("shipped")), count)
        records = [{"source": e.source, "target": e.target, "instruction": e.instruction} for e in examples]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


class Clock(TrainerCallback):
    """Notes when training begins, each step's end, and the LM tokens seen by then."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []
        self.seen = 0

    def on_train_begin(self, *given: Any, model: LangBridge, **named: Any) -> None:
        """Note the time, and look at every batch that is learned from."""
        self.hook = model.register_forward_pre_hook(self.count)
        self.note()

    def count(self, model: Any, given: tuple[Batch]) -> None:
        """Count a batch's LM tokens."""
        self.seen += int(model.lengths(given[0]).sum()) if model.training else 0

    def on_step_end(self, *given: Any, **named: Any) -> None:
        """Note the time."""
        self.note()

    def on_train_end(self, *given: Any, **named: Any) -> None:
        """Look away."""
        self.hook.remove()

    def note(self) -> None:
        """Note the time and what was seen."""
        self.times.append(time.perf_counter())
        self.tokens.append(self.seen)


def measured(cell: Cell, options: argparse.Namespace) -> Measured | None:
    """Train a cell in this process, which may be one of several; the first one tells."""
    quiet()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // cell.processes))
    clock, began = Clock(), time.perf_counter()
    folder = Path(options.folder)
    with PartialState(cpu=True).main_process_first():
        recipe = recipe_of(cell, options, folder / "data.jsonl")
    train(recipe, folder / "run", callbacks=[clock])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tokens = sum(gather_object([clock.tokens[-1] - clock.tokens[1]])) / (STEPS - 1)
    peaks = gather_object([peak])
    if not PartialState().is_main_process:
        return None
    return Measured(
        ready=clock.times[0] - began,
        step=(clock.times[-1] - clock.times[1]) / (STEPS - 1),
        tokens=tokens,
        peak=float(sum(peaks)),
    )


def child(cell: Cell, options: argparse.Namespace) -> Measured:
    """Run this file again for one cell, in as many processes as it has."""
    with tempfile.TemporaryDirectory() as folder:
        launch = [
            *("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes" / "launch" / "cpu.yaml")),
            *("--num_processes", str(cell.processes), "--main_process_port", "0"),
        ]
        command = [
            *(sys.executable, *(launch if cell.processes > 1 else ()), __file__, *sys.argv[1:]),
            *("--cell", json.dumps(asdict(cell)), "--folder", folder),
        ]
        subprocess.run(command, check=True)
        return Measured(**json.loads((Path(folder) / "measured.json").read_text(encoding="utf-8")))


def known(path: Path) -> dict[Cell, Measured]:
    """Return what was measured before."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {Cell(**read["cell"]): Measured(**read["measured"]) for read in map(json.loads, lines)}


def table(found: dict[Cell, Measured]) -> str:
    """Return everything as a table in Markdown."""
    lines = ["| | | way | s until the first step | s a step | LM tokens/s | peak GB |", "|---|---|---|---|---|---|---|"]
    for cell, one in found.items():
        numbers = f"{one.ready:.1f} | {one.step:.2f} | {one.tokens / one.step:.0f} | {one.peak / 1e9:.2f}"
        lines.append(f"| {PLOTS[cell.kind]} | {cell.value:,} | {cell.way} | {numbers} |")
    return "\n".join(lines) + "\n"


def plot(found: dict[Cell, Measured], out: Path) -> None:
    """Draw a figure for each kind: until the first step, speed, memory."""
    from matplotlib.figure import Figure

    shown: tuple[tuple[str, Callable[[Measured], float]], ...] = (
        ("seconds until the first step", lambda one: one.ready),
        ("LM tokens a second", lambda one: one.tokens / one.step),
        ("peak memory, GB", lambda one: one.peak / 1e9),
    )
    for kind, label in PLOTS.items():
        here = {cell: one for cell, one in found.items() if cell.kind == kind}
        figure: Any = Figure(figsize=(12, 3.5), layout="constrained")
        axes = figure.subplots(1, len(shown))
        for axis, (title, number) in zip(axes, shown, strict=True):
            for way in dict.fromkeys(cell.way for cell in here):
                points = sorted((cell.value, number(one)) for cell, one in here.items() if cell.way == way)
                axis.plot(*zip(*points, strict=True), marker="o", label=way)
            axis.set(title=title, xlabel=label, xscale="log", ylim=(0, 1.1 * max(map(number, here.values()))))
            ticks = sorted({cell.value for cell in here})
            axis.set_xticks(ticks, labels=[f"{value // 1000}k" if value >= 1000 else str(value) for value in ticks])
            axis.minorticks_off()
        axes[0].legend()
        figure.savefig(out / f"{kind}.png", dpi=120)


def main() -> None:
    """Run missing cells and print the table, or one cell for the parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/scale"), help="Folder of cells, table and plots.")
    parser.add_argument("--quick", action="store_true", help="Few small cells.")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "embedded.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="Override a field of the recipe.")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell is not None:
        one = measured(Cell(**json.loads(options.cell)), options)
        if one is not None:
            (Path(options.folder) / "measured.json").write_text(json.dumps(asdict(one)), encoding="utf-8")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "cells.jsonl"
    found = known(path)
    wanted = list(cells(options.quick))
    for number, cell in enumerate(wanted, start=1):
        if cell not in found:
            print(f"{number}/{len(wanted)}: {PLOTS[cell.kind]} {cell.value:,}, {cell.way}", file=sys.stderr)
            found[cell] = child(cell, options)
            lines = [json.dumps({"cell": asdict(c), "measured": asdict(one)}) + "\n" for c, one in found.items()]
            write_text(path, "".join(lines))
    found = {cell: found[cell] for cell in wanted}
    (options.out / "table.md").write_text(table(found), encoding="utf-8")
    plot(found, options.out)
    print(table(found))


if __name__ == "__main__":
    main()
