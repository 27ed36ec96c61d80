"""What a run trains on and how it becomes batches, for each objective."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe
from langbridge.data import Example
from langbridge.data.bad import Bad, BadRecords
from langbridge.data.examples import PAIR, TEXT, check
from langbridge.data.streaming import source_of
from langbridge.data.tables import Record
from langbridge.errors import ConfigError
from langbridge.files import write_text
from langbridge.train.dataset import Examples, ToBatch, noised, split, split_texts, watching
from langbridge.train.distill import TEACHER, ToTaught, answered, teach
from langbridge.train.limits import Limits
from langbridge.train.order import reads
from langbridge.train.processes import here
from langbridge.train.stream import Endless, Place, Stream, WithPlace, bad_of, beginning, read_place, unpacked
from langbridge.train.unlabelled import PREVIEW, Text, Texts, ToCuts, preview, uncuttable

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


class Skipped(TrainerCallback):
    """Tells what a stream skips, when it is first met and at the end, and keeps it in the run folder."""

    def __init__(self, place: Callable[[], Tensor | None], bad: BadRecords, out: Path, console: Console) -> None:
        """`bad` is what was told before."""
        self.place, self.bad, self.out, self.console = place, bad, out, console

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell new places, and write the totals."""
        place = self.place()
        if place is None or not state.is_world_process_zero:
            return
        known, counts = self.bad.first, self.bad.counts
        self.bad.take(unpacked(place)["bad"])
        for kind, places in self.bad.first.items():
            for found in places[len(known.get(kind, [])) :]:
                self.console.print(f"{kind}: {found}")
        if self.bad.counts != counts:
            write_bad(self.bad, self.out)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell and write the totals."""
        self.on_log(args, state, control)
        if state.is_world_process_zero:
            write_bad(self.bad, self.out)
            for line in self.bad.lines():
                self.console.print(line)


def records(model: LangBridge, out: Path, console: Console, checkpoint: Path | None = None) -> Records:
    """Read the data of a recipe; what an objective makes of it is kept in the run folder `out`.

    `checkpoint`: where a run that is resumed goes on; a stream is read from there.
    """
    kind = model.recipe.objective.kind
    if model.recipe.data.streaming:
        place = read_place(checkpoint) if checkpoint is not None else None
        return {"supervised": streamed_pairs, "prefix_lm": streamed_texts}[kind](model, place)
    kinds = {"supervised": supervised, "prefix_lm": prefix_lm, "distill": distill}
    return kinds[kind](model, out, console)


def streamed_pairs(model: LangBridge, place: Place | None) -> Records:
    """Labelled pairs, read while training."""
    recipe, limits = model.recipe, Limits.of(model)

    def make(record: Record) -> Example | Bad:
        fields = check(record, PAIR)
        if isinstance(fields, Bad):
            return fields
        example = Example.of(fields)
        return limits.excess(example) or example

    def look(example: Example, number: int) -> Example:
        changed = noised(example, recipe.data, random.Random(f"{recipe.training.seed}-{number}"))
        return changed if changed is example or limits.fits(changed) else example

    first, held_out = beginning(recipe.data, make, max(recipe.warm_start.sentences, PREVIEW))
    return Records(
        dataset=_stream(recipe, make, look, lambda e: len(e.source) + len(e.target) + len(e.instruction), place),
        to_batch=WithPlace(ToBatch(model.collate)),
        examples=first,
        validation=held_out,
        bad=bad_of(place, recipe.data) if place is not None else watching(recipe.data),
    )


def streamed_texts(model: LangBridge, place: Place | None) -> Records:
    """Unlabelled texts, read while training and cut by batches."""
    recipe, collate = model.recipe, model.collate
    _check_positions(model)

    def make(record: Record) -> str | Bad:
        fields = check(record, TEXT)
        return fields if isinstance(fields, Bad) else uncuttable(fields["text"], collate) or fields["text"]

    first, held_out = beginning(recipe.data, make, max(recipe.warm_start.sentences, PREVIEW))
    tokens = min(PREVIEW, collate.longest_source)
    return Records(
        dataset=_stream(recipe, make, Text, len, place),
        to_batch=WithPlace(ToCuts(collate, recipe.objective, recipe.training.seed)),
        examples=[preview(text, collate, tokens) for text in first],
        validation=[preview(text, collate, tokens) for text in held_out],
        bad=bad_of(place, recipe.data) if place is not None else watching(recipe.data),
    )


def _stream(
    recipe: Recipe,
    make: Callable[[Record], Any],
    look: Callable[[Any, int], Any],
    length: Callable[[Any], int],
    place: Place | None,
) -> Stream:
    data = recipe.data
    return Stream(
        lambda: Endless(source_of(data.train), make, data, held_out=data.validation),
        look,
        length,
        training=recipe.training,
        processes=here().num_processes,
        buffer=data.buffer,
        place=place,
    )


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
    """Prompts with the LM's own answers, and how likely the LM found them: of as many prompts as the run reads."""
    data, seed = model.recipe.data, model.recipe.training.seed
    limits = Limits.of(model)
    found = split(data, limits, seed, own_answers=True)
    held_out, count = found.validation, reads(model.recipe.training, here().num_processes)
    prompts, unread = found.training[:count], found.training[count:]
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
        examples=[*training, *unread],  # a warm start needs no answers
        validation=validation,
        bad=found.bad,
        unanswered=len(prompts) + len(held_out) - len(training) - len(validation),
    )
