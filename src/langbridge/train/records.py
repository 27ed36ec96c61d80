"""What a run trains on and how it becomes batches, for each objective."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from langbridge.checkpoint import LangBridge
from langbridge.data import Example
from langbridge.data.bad import BadRecords
from langbridge.errors import ConfigError
from langbridge.files import write_text
from langbridge.train.dataset import Examples, ToBatch, split, split_texts
from langbridge.train.distill import TEACHER, ToTaught, answered, teach
from langbridge.train.limits import Limits
from langbridge.train.unlabelled import PREVIEW, Texts, ToCuts, preview, uncuttable

BAD = "bad_records.json"
"""File in a run folder: what could not be used, and where it stands."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """Everything that training needs to know of its data."""

    dataset: Any
    """Map-style, with its `examples`, by whose lengths batches are made."""
    to_batch: ToBatch
    examples: Sequence[Example]
    """What a bridge's start and the choice of precision look at."""
    validation: Sequence[Example]
    bad: BadRecords
    """What could not be used."""
    unanswered: int = 0
    """Prompts that the LM left without an answer."""


def write_bad(bad: BadRecords, out: Path) -> None:
    """Write what could not be used into the run folder."""
    write_text(out / BAD, json.dumps(bad.record(), indent=2, ensure_ascii=False) + "\n")


def records(model: LangBridge, out: Path, console: Console) -> Records:
    """Read the data of a recipe; what an objective makes of it is kept in the run folder `out`."""
    kinds = {"supervised": supervised, "prefix_lm": prefix_lm, "distill": distill}
    return kinds[model.recipe.objective.kind](model, out, console)


def supervised(model: LangBridge, out: Path, console: Console) -> Records:
    """Labelled pairs as they are."""
    data, seed = model.recipe.data, model.recipe.training.seed
    limits = Limits.of(model)
    found = split(data, limits, seed)
    return Records(
        dataset=Examples(found.training, data, seed, limits.fits),
        to_batch=ToBatch(model.collate),
        examples=found.training,
        validation=found.validation,
        bad=found.bad,
    )


def prefix_lm(model: LangBridge, out: Path, console: Console) -> Records:
    """Unlabelled texts, cut anew in every epoch."""
    recipe, collate = model.recipe, model.collate
    found = split_texts(recipe.data, lambda text: uncuttable(text, collate), recipe.training.seed)
    looked_at = found.training[: max(recipe.warm_start.sentences, PREVIEW)]
    tokens = min(PREVIEW, collate.longest_source)
    _check_positions(model)
    return Records(
        dataset=Texts(found.training),
        to_batch=ToCuts(collate, recipe.objective, recipe.training.seed),
        examples=[preview(text, collate, tokens) for text in looked_at],
        validation=[preview(text, collate, tokens) for text in found.validation],
        bad=found.bad,
    )


def _check_positions(model: LangBridge) -> None:
    """Raise ConfigError where the longest that can be drawn is more than the LM was made for."""
    objective, positions = model.recipe.objective, model.language_model.longest
    longest = min(objective.longest, model.collate.longest_source)
    wanted = longest + 1 + objective.continuation + model.collate.around("")
    if positions is not None and wanted > positions:
        raise ConfigError(
            f"objective.longest and objective.continuation can take {wanted} LM tokens with the boundary and the "
            f"template, but the LM was made for {positions}: lower one of them."
        )


def distill(model: LangBridge, out: Path, console: Console) -> Records:
    """Prompts with the LM's own answers, and how likely the LM found them."""
    data, seed = model.recipe.data, model.recipe.training.seed
    limits = Limits.of(model)
    found = split(data, limits, seed, own_answers=True)
    prompts, held_out = found.training, found.validation
    # one process of several asks the LM; the others wait, and find everything on disk
    lock = FileLock(out / ".distill.lock")
    with lock, Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("the LM answers", total=None)

        def move(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        training = answered(model, prompts, out, progress=move)
        validation = answered(model, held_out, out, progress=move)
        bar.update(task, description="the LM teaches")
        to_batch = ToBatch(model.collate)
        if model.recipe.objective.store:
            to_batch = ToTaught(model.collate, teach(model, training, out / TEACHER, progress=move))
    return Records(
        dataset=Examples(training, data, seed, limits.fits),
        to_batch=to_batch,
        examples=training,
        validation=validation,
        bad=found.bad,
        unanswered=len(prompts) + len(held_out) - len(training) - len(validation),
    )
