"""Warm start, its closed form alone, and a random start: validation after training, and the seconds each took.

    python bench/warm_start.py [--steps 40] [--batch-size 16]
    python bench/warm_start.py --steps 50 --random-steps 1000    # how far does a random start come in many more steps?

Trains the embedded pair three times on the shipped English set with the demo recipe; prints one table.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from langbridge.config import Recipe
from langbridge.pretrained import quiet
from langbridge.train import train

RECIPE = Path(__file__).parent.parent / "recipes" / "demo.yaml"
SHOWN = ("validation_loss_eng", "validation_transfer_swh", "validation_transfer_tel", "validation_transfer_kat")


STARTS = {
    # overrides, learning rate that suits it: a warm bridge is spoiled by the rate that a random one needs
    "warm": ([], 1e-3),
    "closed form": (["warm_start.sharpen=0"], 1e-3),
    "random": (["warm_start.enabled=false"], 2e-3),
}


def run(start: str, steps: int, batch_size: int) -> dict[str, float]:
    """Train once and return the last validation."""
    changes, learning_rate = STARTS[start]
    overrides = [
        *changes,
        f"training.steps={steps}",
        f"training.batch_size={batch_size}",
        f"training.learning_rate={learning_rate}",
        f"training.evaluate_every={steps}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        train(Recipe.read(RECIPE, overrides), Path(folder) / "run")
        seconds = time.monotonic() - began
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = [json.loads(line) for line in lines if "validation_loss_eng" in line][-1]
    return {**{name: last[name] for name in SHOWN}, "seconds": seconds}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--random-steps", type=int, help="steps of the random start; default: as many as the others")
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    quiet()
    steps = dict.fromkeys(STARTS, options.steps) | {"random": options.random_steps or options.steps}
    rows = {start: run(start, steps[start], options.batch_size) for start in STARTS}
    print(f"{'steps':28}" + "".join(f"{steps[start]:>14}" for start in STARTS))
    print(f"{'':28}" + "".join(f"{start:>14}" for start in STARTS))
    for name in (*SHOWN, "seconds"):
        print(f"{name:28}" + "".join(f"{rows[start][name]:14.3f}" for start in STARTS))


if __name__ == "__main__":
    main()
