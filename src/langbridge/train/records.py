"""What a run trains on and how it becomes batches, for each objective."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from langbridge.checkpoint import LangBridge
from langbridge.data import Example
from langbridge.train.dataset import Examples, ToBatch, split, split_texts
from langbridge.train.distill import TEACHER, ToTaught, answered, teach
from langbridge.train.unlabelled import PREVIEW, Texts, ToCuts, cut_place, preview

HEAD = 2000
"""Characters of a text that are looked at to see whether it can be cut."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """Everything that training needs to know of its data."""

    dataset: Any
    """Map-style, with its `examples`, by whose lengths batches are made."""
    to_batch: ToBatch
    examples: Sequence[Example]
    """What a bridge's start and the choice of precision look at."""
    validation: Sequence[Example]
    skipped: int


def records(model: LangBridge, out: Path, console: Console) -> Records:
    """Read the data of a recipe; what an objective makes of it is kept in the run folder `out`."""
    kinds = {"supervised": supervised, "prefix_lm": prefix_lm, "distill": distill}
    return kinds[model.recipe.objective.kind](model, out, console)


def supervised(model: LangBridge, out: Path, console: Console) -> Records:
    """Labelled pairs as they are."""
    data, seed = model.recipe.data, model.recipe.training.seed
    training, validation, skipped = split(data, model.collate, seed)
    return Records(
        dataset=Examples(training, data, seed, model.collate.fits),
        to_batch=ToBatch(model.collate),
        examples=training,
        validation=validation,
        skipped=skipped,
    )


def prefix_lm(model: LangBridge, out: Path, console: Console) -> Records:
    """Unlabelled texts, cut anew in every epoch."""
    recipe, collate = model.recipe, model.collate
    training, validation, skipped = split_texts(
        recipe.data, lambda text: bool(cut_place(text[:HEAD], PREVIEW, collate)), recipe.training.seed
    )
    looked_at = training[: max(recipe.warm_start.sentences, PREVIEW)]
    tokens = min(PREVIEW, collate.longest_source)
    return Records(
        dataset=Texts(training),
        to_batch=ToCuts(collate, recipe.objective, recipe.training.seed),
        examples=[preview(text, collate, tokens) for text in looked_at],
        validation=[preview(text, collate, tokens) for text in validation],
        skipped=skipped,
    )


def distill(model: LangBridge, out: Path, console: Console) -> Records:
    """Prompts with the LM's own answers, and how likely the LM found them."""
    data, seed = model.recipe.data, model.recipe.training.seed
    prompts, held_out, skipped = split(data, model.collate, seed, own_answers=True)
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
    dropped = len(prompts) + len(held_out) - len(training) - len(validation)
    return Records(
        dataset=Examples(training, data, seed, model.collate.fits),
        to_batch=to_batch,
        examples=training,
        validation=validation,
        skipped=skipped + dropped,
    )
