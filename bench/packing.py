"""Padding with and without packing: counts the LM's positions in training steps, without running a model.

    python bench/packing.py [--recipe recipes/embedded.yaml] [--steps 40] [--packing 256]

Two sets: the shipped English one, whose batches are of similar length; and the same sentences, 1 to 12 of them put
together at random, in batches that are not sorted by length, as a stream gives them.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe
from langbridge.data import Example, read_examples
from langbridge.model.packing import arrange
from langbridge.pretrained import quiet
from langbridge.train.dataset import ToBatch
from langbridge.train.micro import micro_batches
from langbridge.train.order import GroupedByLength

RECIPE = Path(__file__).parent.parent / "recipes" / "embedded.yaml"
SETS = {"shipped, batches of similar length": 1, "1 to 12 sentences, as they come": 12}


def batches(
    model: LangBridge, examples: Sequence[Example], size: int, steps: int, *, similar: bool
) -> Iterator[list[Example]]:
    """Yield the examples of one step after the other."""
    length = ToBatch(model.collate).length
    sorted_ = GroupedByLength(
        lambda i: length(examples[i % len(examples)]), len(examples), batch_size=size, batches=steps, seed=1
    )
    order = list(sorted_) if similar else range(len(examples))
    for start in range(0, steps * size, size):
        yield [examples[i % len(examples)] for i in order[start : start + size]]


def padding(model: LangBridge, steps: Sequence[list[Example]], budget: int | None, packing: int | None) -> float:
    """Return the share of LM positions that are padding."""
    model.language_model.packing = packing
    content = area = 0
    for step in steps:
        for part in micro_batches(model, model.collate(step), parts=1, budget=budget):
            lengths = model.lengths(part).tolist()
            rows, width = len(lengths), max(lengths)
            if packing is not None and rows > 1:
                at, starts = arrange(lengths, packing)
                rows, width = max(at) + 1, max(start + n for start, n in zip(starts, lengths, strict=True))
            content, area = content + sum(lengths), area + rows * width
    return 1 - content / area


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--packing", type=int, default=256)
    options = parser.parse_args()
    quiet()
    recipe = Recipe.read(options.recipe)
    model = LangBridge.from_recipe(recipe)
    whole = read_examples("shipped")
    draw = random.Random(0)
    print(f"{'set':36}{'token budget':>14}{'padding':>10}{'packed':>10}")
    for name, most in SETS.items():
        examples = [_joined(draw.sample(whole, draw.randint(1, most))) for _ in range(4000)] if most > 1 else whole
        steps = list(batches(model, examples, recipe.training.batch_size, options.steps, similar=most == 1))
        for budget in (None, 1024):
            shares = [padding(model, steps, budget, packing) for packing in (None, options.packing)]
            print(f"{name:36}{budget or 'none':>14}" + "".join(f"{share:10.1%}" for share in shares))


def _joined(examples: Sequence[Example]) -> Example:
    return Example(source=" ".join(e.source for e in examples), target=" ".join(e.target for e in examples))


if __name__ == "__main__":
    main()
