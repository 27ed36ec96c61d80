"""Training speed and memory: a naive loop, ours, and ours with cached encoder states, in one run on one machine.

    python bench/train.py [--steps 30] [--batch-size 32] [--records 2000] [--recipe recipes/demo.yaml]

Each row is a process of its own, one after the other, from the same warm start, over as many records. The last lines
are the machine's own ceiling: matrix products of the LM's shapes. Real tokens are the LM's, padding not counted; the
frozen LM needs 4N FLOPs for each (2N forward, 2N backward to its inputs, none for weights).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from naive import train_naively
from rich.console import Console
from transformers import TrainerCallback

from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe
from langbridge.pretrained import quiet
from langbridge.train.order import order_of
from langbridge.train.records import records
from langbridge.train.run import train, validate
from langbridge.train.start import start

RECIPE = Path(__file__).parent.parent / "recipes" / "demo.yaml"
ROWS = {
    "naive": "(a) naive: pad to longest, all logits, fp32",
    "ours": "(b) ours, no cache",
    "cached": "(c) ours, states cached",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one way of training took."""

    seconds: float
    """Of the training loop alone, from its first step to its last."""
    cpu: float
    """Seconds of all cores in the loop: less disturbed by other work on the machine."""
    peak: int
    """Most resident memory of the process, bytes."""
    loss: float
    """On held-out English records, behind the last step."""
    transfer: float
    """Mean transfer ratio of the development languages."""
    precision: str


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every row had to do."""

    samples: int
    tokens: int
    """Real LM tokens."""
    parameters: int
    """Of the LM."""


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Return the recipe that every row trains."""
    return Recipe.read(
        options.recipe,
        [
            f"training.steps={options.steps}",
            f"training.batch_size={options.batch_size}",
            f"training.token_budget={options.token_budget}",
            f"training.evaluate_every={options.steps}",
            f"training.save_every={options.steps + 1}",
            f"training.cache_states={str(options.row == 'cached').lower()}",
            f"data.limit={options.records}",
            f"warm_start.sentences={min(options.records, 1500)}",
            *(["encoder.dtype=float32", "language_model.dtype=float32"] if options.row == "naive" else []),
            *options.overrides,
        ],
    )


def measured(options: argparse.Namespace) -> Row:
    """Train one row in this process."""
    quiet()
    recipe, clock = recipe_of(options), Clock()
    with tempfile.TemporaryDirectory() as folder:
        if options.row == "naive":
            model = LangBridge.from_recipe(recipe)
            data = records(model, Path(folder), Console(quiet=True))
            torch.manual_seed(recipe.training.seed)
            start(model, data.examples)
            train_naively(model, data, clock.step)
            results, precision = validate(model, data.validation), "fp32"
        else:
            model = train(recipe, Path(folder) / "run", callbacks=[clock])
            both = {model.recipe.language_model.dtype, model.recipe.training.precision}
            results, precision = model.results, "bf16" if both & {"bfloat16", "bf16"} else "fp32"
    transfer = [value for name, value in results.items() if name.startswith("validation_transfer")]
    return Row(
        seconds=clock.seconds,
        cpu=clock.cpu,
        peak=clock.peak,
        loss=results["validation_loss_eng"],
        transfer=sum(transfer) / len(transfer),
        precision=precision,
    )


class Clock(TrainerCallback):
    """Counts from the first step's begin to the last step's end; `step` is called before the first and behind each."""

    def __init__(self) -> None:
        self.began: tuple[float, float] | None = None
        self.seconds = self.cpu = 0.0
        self.peak = 0

    def step(self) -> None:
        """Note the time."""
        now = time.perf_counter(), time.process_time()
        self.began = self.began or now
        self.seconds, self.cpu = now[0] - self.began[0], now[1] - self.began[1]
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def on_train_begin(self, *given: Any, **named: Any) -> None:
        """Start."""
        self.step()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        """Count a step."""
        self.step()


def work(options: argparse.Namespace) -> Work:
    """Count what the rows read: the same records in the same number of epochs."""
    quiet()
    recipe = recipe_of(options)
    model = LangBridge.from_recipe(recipe)
    with tempfile.TemporaryDirectory() as folder:
        data = records(model, Path(folder), Console(quiet=True))
    collate, tokens, samples = model.collate, 0, 0
    for number in order_of(data.dataset, data.to_batch, recipe.training, 1):
        tokens += int(model.lengths(collate([data.dataset[number]])).sum())
        samples += 1
    return Work(samples=samples, tokens=tokens, parameters=sum(p.numel() for p in model.language_model.parameters()))


def ceiling() -> dict[str, float]:
    """Return FLOP/s of matrix products: large square ones, and those of an LM layer, forward and backward."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        square, rows, weight = (torch.randn(*shape).to(dtype) for shape in ((2048, 2048), (1024, 576), (1536, 576)))
        gradient = torch.randn(1024, 1536).to(dtype)
        products = {
            "2048^3": (square, square, 2 * 2048**3),
            "forward": (rows, weight.T, 2 * 1024 * 576 * 1536),
            "backward": (gradient, weight, 2 * 1024 * 576 * 1536),
        }
        for kind, (left, right, work_of_one) in products.items():
            best = 0.0
            for _ in range(3):
                began, turns = time.perf_counter(), 0
                while time.perf_counter() - began < 0.7:
                    left @ right
                    turns += 1
                best = max(best, turns * work_of_one / (time.perf_counter() - began))
            found[f"{name} {kind}"] = best
    return found


def child(options: argparse.Namespace, row: str) -> dict[str, float]:
    """Run this file again for one row, so that its memory is its own."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--row", row], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.decode().splitlines()[-1])
    return found


def show(rows: dict[str, Row], done: Work, top: dict[str, float], options: argparse.Namespace) -> None:
    """Print the table; every ratio is to row (a) of the same run."""
    first, flops = rows["naive"], 4 * done.parameters * done.tokens
    print(f"{options.steps} steps of {options.batch_size}, {done.tokens:,} real LM tokens, LM of {done.parameters:,}")
    print(
        f"{'':46}{'samples/s':>10}{'x':>6}{'tokens/s':>10}{'CPU s':>8}{'x':>6}{'peak GB':>9}{'%':>5}{'loss':>8}"
        f"{'transfer':>10}{'4N GFLOP/s':>12}{'% fp32':>8}"
    )
    best = max(value for name, value in top.items() if name.startswith("float32"))
    for name, row in rows.items():
        rate = flops / row.seconds
        print(
            f"{ROWS[name] + ', ' * (name != 'naive') + row.precision * (name != 'naive'):46}"
            f"{done.samples / row.seconds:10.1f}{first.seconds / row.seconds:6.2f}{done.tokens / row.seconds:10.0f}"
            f"{row.cpu:8.1f}{first.cpu / row.cpu:6.2f}{row.peak / 1e9:9.2f}{row.peak / first.peak:5.0%}{row.loss:8.3f}"
            f"{row.transfer:10.3f}{rate / 1e9:12.1f}{rate / best:8.0%}"
        )
    print("matrix products, GFLOP/s: " + ", ".join(f"{name} {value / 1e9:.0f}" for name, value in top.items()))


def main() -> None:
    """Run the rows and print the table, or one row for the parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--token-budget", type=int, default=1024)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="Override a field of the recipe.")
    parser.add_argument("--json", type=Path, help="Write everything that was measured here.")
    parser.add_argument("--row", choices=[*ROWS, "work", "ceiling"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row is not None:
        alone = {"work": lambda: asdict(work(options)), "ceiling": ceiling}
        print(json.dumps(alone[options.row]() if options.row in alone else asdict(measured(options))))
        return
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # as the command line does, for every row
    done, top = Work(**child(options, "work")), child(options, "ceiling")  # type: ignore[arg-type]
    rows = {name: Row(**child(options, name)) for name in ROWS}  # type: ignore[arg-type]
    again = child(options, "ceiling")  # other work on the machine comes and goes: the better of the two counts
    top = {name: max(value, again[name]) for name, value in top.items()}
    show(rows, done, top, options)
    if options.json is not None:
        found = {"work": asdict(done), "ceiling": top, "rows": {name: asdict(row) for name, row in rows.items()}}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
