"""What larger LMs and a corpus of a billion records would take: the tables of docs/scaling.md, on paper.

    python studies/scaling.py          # prints them
    python studies/scaling.py --write  # puts them into docs/scaling.md

Every figure comes from `langbridge.train.plan`, which `train --dry-run` prints too. Nothing is downloaded.
"""

import argparse
from pathlib import Path
from typing import Any

from langbridge.config import Recipe
from langbridge.train.plan import GIB, Plan, cache_size, can_be_shared, memory, micro_batch, network, plan

DOCS = Path(__file__).parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- made by studies/scaling.py -->", "<!-- end -->"
DEVICES = (1, 8, 64)
RECORDS = 10**9
BATCH = 1024
"""Records of a step, over all devices."""
MICRO = 16
SOURCE, TARGET = 200, 150
"""Mean tokens, as in docs/paper.md."""
RATE = 150.0
"""TFLOP/s that one device reaches in practice."""
ROOM = 80
"""GB of a device."""
BANDWIDTH = {8: 300.0, 64: 40.0}
"""GB/s that one device sends within a machine, and between machines."""
RECORD = 1500
"""Bytes of one record on disk."""
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "7B": ("meta-llama/Llama-2-7b-hf", {}),
    "13B": ("meta-llama/Llama-2-13b-hf", {}),
    "70B": ("meta-llama/Llama-2-70b-hf", {"gradient_checkpointing": True}),
    "70B, 4 bit": ("meta-llama/Llama-2-70b-hf", {"gradient_checkpointing": True}),
}


def recipe_of(name: str) -> Recipe:
    """Return the recipe behind a row."""
    lm, training = MODELS[name]
    fields: dict[str, Any] = {
        "encoder": {"name": f"DKYoon/mt5-{'xl' if name == '7B' else 'xxl'}-lm-adapt", "dtype": "bfloat16"},
        "language_model": {"name": lm, "dtype": "bfloat16", "quantization": "4bit" if "4 bit" in name else None},
        "prompt": {"template": "metamath"},
        "training": {
            **{"steps": -(-RECORDS // BATCH), "batch_size": BATCH, "accumulate": BATCH // MICRO, "precision": "bf16"},
            **training,
        },
    }
    return Recipe.of(fields, "docs/scaling.md")


def rows(name: str) -> list[list[str]]:
    """Return the rows of one LM: a line for each number of devices."""
    recipe = recipe_of(name)
    found = plan(recipe, (SOURCE, TARGET))
    return [_row(name, recipe, found, devices) for devices in DEVICES]


def _row(name: str, recipe: Recipe, found: Plan, devices: int) -> list[str]:
    spread = devices > 1 and can_be_shared(recipe)
    whole = memory(found, recipe, devices, shared=False) / GIB
    shared = memory(found, recipe, devices, shared=True) / GIB
    seconds = found.flops / found.records * BATCH / (devices * RATE * 1e12)
    cells = [name, str(devices), _fitting(whole), _fitting(shared) if spread else "-"]
    for way in (False, True):
        sent = network(found, recipe, devices, shared=way) / 1e9
        if devices == 1 or (way and not spread):
            cells += ["-"]
        else:
            cells += [f"{_short(sent)} GB, {_short(sent / BANDWIDTH[devices])} s"]
    return [*cells, _short(seconds), f"{found.hours(devices, RATE):,.0f}"]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _fitting(size: float) -> str:
    return f"{size:.1f}" if size * GIB < ROOM * 1e9 else f"{size:.1f} (too much)"


def sizes() -> list[list[str]]:
    """Return what does not depend on devices: FLOPs, states on disk, what is read."""
    found = []
    for name in ("7B", "13B", "70B"):
        made = plan(recipe_of(name), (SOURCE, TARGET))
        one = made.flops / made.records
        read = 2 * made.encoder.per_token * made.source
        found.append(
            [
                *(name, f"{made.bridge / 1e6:.1f} M", f"{one:.3g}", f"{read / one:.0%}"),
                *(f"{cache_size(made, 200_000) / 1e9:,.0f} GB", f"{cache_size(made, RECORDS) / 1e12:,.0f} TB"),
                f"{64 * RATE * 1e12 / one:,.0f}",
                f"{64 * RATE * 1e12 / one * RECORD / 1e6:.2g} MB/s",
            ]
        )
    return found


def table(head: list[str], lines: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def tables() -> str:
    """Return everything that docs/scaling.md shows between its marks."""
    head = ["LM", "GPUs", "GiB, all on each", "GiB, layers shared", "sent a step, all on each"]
    head += ["sent a step, layers shared", "seconds of a step", "hours"]
    assert micro_batch(recipe_of("7B"), 64) == MICRO
    whole = table(head, [row for name in MODELS for row in rows(name)])
    head = ["LM", "bridge", "FLOPs of a record", "of them encoder", "states of 200,000 records", "of 10⁹ records"]
    head += ["records/s on 64 GPUs", "read by each process"]
    return f"{whole}\n{table(head, sizes())}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="Put the tables into docs/scaling.md.")
    if not parser.parse_args().write:
        print(tables())
        return
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}\n{tables()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
