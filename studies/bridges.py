"""Which bridge, and which layers of the encoder: linear, mlp and resampler x last and mix, over seeds.

    python studies/bridges.py                     # the whole study: hours; stop and start it at will
    python studies/bridges.py --quick             # two settings, one seed, a few steps: does it run?
    python studies/bridges.py --data tatoeba      # test languages from parallel text instead of the sanity set

Every setting trains on the same English records for the same number of steps. What is chosen, is chosen on the
development languages; the test languages are only looked at. Each finished cell is kept in `--out`/result.json at once,
each training goes on from its newest checkpoint; the table is `--out`/result.md.
"""

import argparse
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from langbridge.checkpoint import METADATA, WEIGHTS, LangBridge, versions
from langbridge.config import Recipe
from langbridge.data.parallel import read_parallel, sanity_set
from langbridge.evaluate.transfer import evaluate_transfer
from langbridge.files import write_text
from langbridge.generate import BridgedGenerator
from langbridge.languages import DEVELOPMENT, PIVOT
from langbridge.pretrained import quiet
from langbridge.train import train

HERE = Path(__file__).parent
KINDS = {
    "linear": ["bridge.kind=linear"],
    "mlp-1": ["bridge.kind=mlp", "bridge.hidden_layers=1"],
    "mlp-2": ["bridge.kind=mlp", "bridge.hidden_layers=2"],
    "resampler": ["bridge.kind=resampler"],
}
SETTINGS = {
    f"{kind} {layers}": [*overrides, f"bridge.layers={layers}"]
    for layers in ("last", "mix")
    for kind, overrides in KINDS.items()
}
BASE = "linear last"
T_975 = {1: math.inf, 2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t at 97.5% for so many seeds."""
Cell = dict[str, Any]


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=HERE.parent / "recipes" / "embedded.yaml")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1, 2, 3])
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SETTINGS), metavar="SETTING,...")
    parser.add_argument("--data", type=Path, help="folder of parallel text; default: the sanity set")
    parser.add_argument("--sentences", type=int, default=40, help="of each language")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="for every setting")
    parser.add_argument("--out", type=Path, default=HERE / "bridges")
    parser.add_argument("--work", type=Path, default=Path("runs") / "bridges", help="where the runs are")
    parser.add_argument("--keep", action="store_true", help="keep the runs of finished cells")
    parser.add_argument("--quick", action="store_true")
    read = parser.parse_args(arguments)
    if unknown := [name for name in read.only if name not in SETTINGS]:
        parser.error(f"no setting {unknown[0]!r}; known: {', '.join(SETTINGS)}")
    if read.quick:
        read.only, read.seeds, read.steps, read.sentences = [BASE, "resampler mix"], [1], 4, 4
        read.set += ["training.batch_size=8", "training.accumulate=1", "warm_start.sentences=32", "data.limit=64"]
        read.out, read.work = read.work / "quick" / "result", read.work / "quick"
    return read


def recipe_of(setting: str, seed: int, read: argparse.Namespace) -> Recipe:
    """Return the recipe of one cell: validation at the end only, a checkpoint every quarter."""
    common = [
        f"training.steps={read.steps}",
        f"training.seed={seed}",
        f"training.evaluate_every={read.steps}",
        f"training.save_every={max(1, read.steps // 4)}",
    ]
    return Recipe.read(read.recipe, [*SETTINGS[setting], *common, *read.set])


def trained(recipe: Recipe, folder: Path) -> LangBridge:
    """Return the trained model of a cell: as it is on disk, gone on with, or from the start."""
    if (folder / WEIGHTS).is_file() and (folder / METADATA).is_file():
        return LangBridge.from_pretrained(folder)
    begun = any(path.joinpath("trainer_state.json").is_file() for path in folder.glob("checkpoint-*"))
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
    return train(recipe, folder, resume=begun)


def measured(model: LangBridge, read: argparse.Namespace) -> Cell:
    """Return transfer ratios by language, development languages from the sanity set."""
    generator = BridgedGenerator(model, batch_size=48)
    development = sanity_set().choose(DEVELOPMENT, read.sentences)
    test = sanity_set() if read.data is None else read_parallel(read.data)
    others = [language for language in test.sources if language not in (*DEVELOPMENT, PIVOT)]
    others = others[:2] if read.quick else others
    parts = {"development": development, "test": test.choose(others, read.sentences)}
    cell: Cell = {}
    for name, data in parts.items():
        result = evaluate_transfer(generator, data, limit=read.sentences, render=0)
        cell[name] = {language: row["transfer_ratio"] for language, row in result["languages"].items()}
        cell[f"english_nll_{name}"] = result["pivot"]["nll"]
    cell["parameters"] = sum(value.numel() for value in model.trained().values())
    cell["results"] = model.results
    return cell


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and the half-width of its 95% interval (Student's t)."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return float(np.mean(values)), T_975.get(len(values), 1.96) * spread / math.sqrt(len(values))


def macro(cell: Cell, part: str) -> float:
    """Return the unweighted mean over languages."""
    return float(np.mean(list(cell[part].values())))


def table(cells: dict[str, Cell], read: argparse.Namespace) -> str:
    """Return the result as Markdown."""
    head = [
        "# Bridges and layers\n",
        f"{read.recipe.name}, {read.steps} steps, {read.sentences} sentences of each language, test data: "
        f"{read.data.name if read.data else 'sanity set'}. Mean transfer ratio over languages, and over seeds with the "
        f"95% interval of Student's t; in brackets the difference from `{BASE}`, seed by seed.\n",
        "| bridge | layers | weights | seeds | development | test | English nll |",
        "|---|---|---|---|---|---|---|",
    ]
    rows, best = [], ("", -math.inf)
    for setting in SETTINGS:
        found = {seed: cells[key] for seed in read.seeds if (key := f"{setting} {seed}") in cells}
        if not found:
            continue
        columns = []
        for part in ("development", "test"):
            mean, half = mean_interval([macro(cell, part) for cell in found.values()])
            paired = [
                macro(cell, part) - macro(cells[f"{BASE} {seed}"], part)
                for seed, cell in found.items()
                if f"{BASE} {seed}" in cells
            ]
            shift, wide = mean_interval(paired) if paired else (math.nan, math.nan)
            gap = "" if setting == BASE or not paired else f" ({shift:+.3f} ± {wide:.3f})"
            columns.append(f"{mean:.3f} ± {half:.3f}{gap}")
            if part == "development" and mean > best[1]:
                best = (setting, mean)
        kind, layers = setting.split(" ")
        weights = next(iter(found.values()))["parameters"]
        english = np.mean([cell["english_nll_development"] for cell in found.values()])
        rows.append(f"| {kind} | {layers} | {weights:,} | {len(found)} | {columns[0]} | {columns[1]} | {english:.3f} |")
    tail = f"\nBest on the development languages: `{best[0]}` ({best[1]:.3f}).\n" if best[0] else ""
    return "\n".join([*head, *rows, tail])


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill in the cells that are missing, and write the table after each."""
    read = options(arguments)
    quiet()
    path = read.out / "result.json"
    setup = {
        "recipe": read.recipe.name,
        "steps": read.steps,
        "sentences": read.sentences,
        "data": read.data.name if read.data else "sanity",
        "set": read.set,
    }
    whole = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"setup": setup, "cells": {}}
    if whole["setup"] != setup:
        raise SystemExit(f"{path} is of another set-up: {whole['setup']}; choose another --out.")
    for seed in read.seeds:  # seed by seed, so that an unfinished study still compares all settings
        for setting in read.only:
            key = f"{setting} {seed}"
            if key in whole["cells"]:
                continue
            folder = read.work / key.replace(" ", "-")
            model = trained(recipe_of(setting, seed, read), folder)
            whole["cells"][key] = measured(model.eval(), read)
            whole["versions"] = versions()
            write_text(path, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
            write_text(read.out / "result.md", table(whole["cells"], read))
            if not read.keep:
                shutil.rmtree(folder)
            print(f"{key}: development {macro(whole['cells'][key], 'development'):.3f}", flush=True)
    print(table(whole["cells"], read))


if __name__ == "__main__":
    main()
