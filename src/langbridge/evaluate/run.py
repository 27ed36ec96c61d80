"""Ask one system all that a task asks, and keep each answer at once: goes on where it stopped."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from langbridge.checkpoint import WEIGHTS, run_folder, versions
from langbridge.data.examples import Example
from langbridge.errors import DataError, PromptError
from langbridge.evaluate.journal import Journal, Record
from langbridge.evaluate.systems import ORIGINAL, PLAIN_LM, RANDOM, RANDOM_SEED, System
from langbridge.evaluate.task import Grade, Output, Task, TaskExample
from langbridge.generate import Sampling, Score
from langbridge.languages import PIVOT

Progress = Callable[[str, int, int], None]
"""Called with (what is at work, done, total)."""
CALIBRATION = "calibration"
SCORED_WINDOW = 4
"""Batches of scored examples that are kept together: sorted by length among themselves, so that little is padding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What part of a task is asked, and how."""

    languages: tuple[str, ...]
    limit: int | None = None
    """First so many examples of each language."""
    max_new_tokens: int | None = None
    """Most tokens of an answer; None: the task's own."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise DataError(f"--limit {self.limit}: at least one example is needed.")


@dataclasses.dataclass(frozen=True)
class Answered:
    """What one system answered."""

    task: Task
    """As it grades, calibrated on this system's outputs."""
    records: dict[str, list[Record]]
    """By language."""
    data: dict[str, str]
    """Checksums of what was asked, by language."""


def answer(
    task: Task,
    system: System,
    request: Request,
    folder: Path,
    made_by: dict[str, Any],
    progress: Progress = lambda text, done, total: None,
) -> Answered:
    """Ask `system` everything and return its graded records; what `folder` holds already is not asked again.

    `made_by`: what else decides the answers. Raises DataError when the folder was made otherwise.
    """
    whole = {language: task.examples(language) for language in request.languages}
    limit = request.limit
    if system.name == ORIGINAL:  # the same whatever the language: it is asked once
        whole, limit = _originals(task, whole, limit)
    noted = {"versions": versions(), "batch_size": system.generator.batch_size}
    with Journal(folder, settings_of(task, system, request, made_by), noted) as journal:
        asking = _Asking(task, system, request, journal, progress)
        if calibration := task.calibration():
            seen = asking.ask(PIVOT, calibration, None, name=CALIBRATION)
            task = task.calibrated([_output(record) for record in seen])
            asking = dataclasses.replace(asking, task=task)
        records = {language: asking.ask(language, part, limit) for language, part in whole.items()}
        checksums = {name: journal.checksums[name] for name in [*records, *([CALIBRATION] if calibration else [])]}
    return Answered(task, records, checksums)


def _originals(
    task: Task, whole: dict[str, list[TaskExample]], limit: int | None
) -> tuple[dict[str, list[TaskExample]], int]:
    """Return the English examples, and how many of them hold all originals that are asked for."""
    if not task.aligned or PIVOT not in task.languages():
        raise DataError(
            f"--baseline original: {task.name} has no English items here that the others are translated from."
        )
    english = task.examples(PIVOT)
    places = {example.id: place for place, example in enumerate(english)}
    wanted = [example.id for part in whole.values() for example in part[:limit]]
    if missing := [item for item in wanted if item not in places]:
        raise DataError(f"--baseline original: {task.name}, item {missing[0]} has no English original.")
    return {PIVOT: english}, max(places[item] for item in wanted) + 1


def settings_of(task: Task, system: System, request: Request, made_by: dict[str, Any]) -> dict[str, Any]:
    """Return what decides a system's answers to a task, apart from the data."""
    model = system.generator.model
    if system.name in (PLAIN_LM, ORIGINAL):  # the LM alone answers the same whatever bridge lies beside it
        made_by = {name: value for name, value in made_by.items() if name != "weights"}
    found = {
        "task": task.name,
        "system": system.name,
        **made_by,
        "template": model.template.text,
        "encoder_template": model.recipe.prompt.encoder_template,
        "max_new_tokens": request.max_new_tokens,
        "sampling_seed": Sampling().seed,
        "task_settings": task.settings() if not task.calibration() else {},
    }
    return found | ({"bridge_seed": RANDOM_SEED} if system.name == RANDOM else {})


def weights_checksum(run: str) -> str:
    """Return the SHA-256 of a run's trained weights."""
    return hashlib.sha256((run_folder(run) / WEIGHTS).read_bytes()).hexdigest()


def checksum(examples: Sequence[TaskExample], sampling: Sampling) -> str:
    """Return the SHA-256 of everything that is asked in a language, and how."""
    whole = [[dataclasses.asdict(example) for example in examples], dataclasses.asdict(sampling)]
    return hashlib.sha256(json.dumps(whole, ensure_ascii=False).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Asking:
    task: Task
    system: System
    request: Request
    journal: Journal
    progress: Progress

    def ask(
        self, language: str, examples: Sequence[TaskExample], limit: int | None, name: str | None = None
    ) -> list[Record]:
        """Return a record for each of the first `limit` examples; those of the calibration are not graded."""
        sampling = self.task.sampling(language)
        if self.request.max_new_tokens is not None:
            sampling = dataclasses.replace(sampling, max_new_tokens=self.request.max_new_tokens)
        wanted, told = examples[:limit], f"{self.task.name} {self.system.name} {name or language}"
        window = self.system.generator.batch_size * (SCORED_WINDOW if examples[0].choices else 1)
        ids = [example.id for example in wanted]
        records = self.journal.begin(name or language, checksum(examples, sampling), ids, window)
        self.progress(told, len(records), len(wanted))
        while len(records) < len(wanted):
            part = wanted[len(records) : len(records) + window]
            outputs = _outputs(self.system, part, sampling)
            if not records and all(isinstance(output, str) for output in outputs):
                raise PromptError(f"{told}: not one prompt of a batch can be given to the model. {outputs[0]}")
            fresh = [self._record(*pair, graded=name is None) for pair in zip(part, outputs, strict=True)]
            self.journal.append(name or language, fresh)
            records += fresh
            self.progress(told, len(records), len(wanted))
        return records

    def _record(self, example: TaskExample, output: Output | str, *, graded: bool) -> Record:
        record: Record = {"id": example.id} | ({"group": example.group} if example.group else {})
        record |= {"prompt": example.prompt, "reference": example.reference}
        if isinstance(output, str):
            refused = {rule: dataclasses.asdict(Grade(None, False)) for rule in self.task.grades}
            return record | {"refused": output, "grades": refused}
        record["soft_prompt"] = self.system.soft_prompts([example.prompt])[0]
        if example.choices:
            record["scores"] = [[score.log_likelihood, score.tokens] for score in output.scores]
        else:
            record |= {"output": output.text, "complete": output.complete}
        if graded:
            grades = self.task.grade(example, output)
            record["grades"] = {rule: dataclasses.asdict(grade) for rule, grade in grades.items()}
        return record


def _outputs(system: System, examples: Sequence[TaskExample], sampling: Sampling) -> list[Output | str]:
    """Return an output for each example, or the complaint where its prompt cannot be given to the model."""
    try:
        return list(_asked(system, examples, sampling))
    except PromptError as error:
        if len(examples) == 1:
            return [str(error)]
    return [output for example in examples for output in _outputs(system, [example], sampling)]


def _asked(system: System, examples: Sequence[TaskExample], sampling: Sampling) -> list[Output]:
    if not examples[0].choices:
        prompts = [Example(source=example.prompt, instruction=example.instruction) for example in examples]
        answers = system.generator.answers(prompts, sampling)
        return [_cut(answer.text, answer.complete, sampling.stop) for answer in answers]
    pairs = [
        Example(source=example.prompt, target=choice, instruction=example.instruction)
        for example in examples
        for choice in example.choices
    ]
    scores = iter(system.generator.scores(pairs))
    return [Output(scores=tuple(next(scores) for _ in example.choices)) for example in examples]


def _cut(text: str, complete: bool, stops: Sequence[str]) -> Output:
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return Output(text=text[: min(ends, default=len(text))], complete=complete or bool(ends))


def _output(record: Record) -> Output:
    if "refused" in record:
        raise PromptError(f"a calibration example cannot be given to the model: {record['refused']}")
    if "scores" in record:
        return Output(scores=tuple(Score(*score) for score in record["scores"]))
    return Output(text=record["output"], complete=record["complete"])
