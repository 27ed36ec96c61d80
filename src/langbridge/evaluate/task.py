"""What a task is: its examples, what is asked of a generator, and how outputs are graded. Knows no model and no disk.

A new task is one file in `evaluate/tasks`: a frozen dataclass that inherits from `Task`, and a line in
`evaluate/tasks/__init__.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from langbridge.data.examples import Example
from langbridge.generate import Answer, Sampling, Score
from langbridge.sandbox.host import Sandbox

SCORING = Sampling(max_new_tokens=1)
"""Of tasks that only score choices."""


@dataclass(frozen=True, kw_only=True)
class TaskExample:
    """One item of a benchmark in one language."""

    id: str
    """Unique in its language; where a task is `aligned`, the same item has the same id in every language."""
    prompt: str
    """What the encoder reads, or the LM itself where it is alone; inside the run's own template."""
    reference: str
    """The right answer, in the form that the task's grading wants."""
    instruction: str = ""
    """English text for the LM in front of the soft prompt."""
    choices: tuple[str, ...] = ()
    """Texts whose log-likelihoods are asked for; none: the LM is to generate."""
    group: str = ""
    """Part of the benchmark, where it has parts."""
    details: tuple[tuple[str, str], ...] = ()
    """(name, text): what else grading needs, such as tests of a program."""

    def detail(self, name: str) -> str:
        """Return one of the details."""
        return dict(self.details)[name]


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a generator gave for one example: text, or a score for each choice."""

    text: str = ""
    """As it was generated, cut in front of the first stop string; blanks are kept."""
    complete: bool = True
    """Whether the LM or a stop string ended it, rather than the limit of new tokens."""
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True)
class Grade:
    """The verdict on one output by one rule."""

    answer: str | None
    """What the rule took out of the output; None: nothing."""
    right: bool


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a task is opened with."""

    data: Path | None = None
    """The task's own folder; None: its hub data set."""
    split: str = "test"
    """Part of the data set, where it has parts: `test`, or the one on which choices may be made."""
    sandbox: Sandbox | None = None
    """Where generated programs run; None: they must not."""


class Answering(Protocol):
    """What the runner needs to know of a model."""

    def answers(self, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        """Return the whole answer to each example's source and instruction, in order."""
        ...

    def scores(self, examples: Sequence[Example]) -> list[Score]:
        """Return the log-likelihood of each example's target given its source and instruction, in order."""
        ...


class Task(Protocol):
    """A benchmark: inherit from this; the methods with a body here need not be written."""

    name: ClassVar[str]
    grades: ClassVar[tuple[str, ...]]
    """Names of the grading rules, the headline first: the paper's where there is a published number."""
    measure: ClassVar[str] = "accuracy"
    """What the mean of the verdicts is called."""
    aligned: ClassVar[bool] = False
    """Whether the languages hold the same items, under the same ids."""

    def languages(self) -> list[str]:
        """Return the codes (ISO 639-3, as in `langbridge.languages`) of the languages found in the data."""
        ...

    def examples(self, language: str) -> list[TaskExample]:
        """Return all examples of a language in their fixed order; raises DataError for damaged data."""
        ...

    def grade(self, example: TaskExample, output: Output) -> dict[str, Grade]:
        """Return the verdict of each rule in `grades`."""
        ...

    def sampling(self, language: str) -> Sampling:
        """Return how a prompt in a language is continued, stop strings included."""
        return SCORING

    def calibration(self) -> list[TaskExample]:
        """Return English examples whose outputs are wanted before grading; asked once for each model."""
        return []

    def calibrated(self, outputs: Sequence[Output]) -> "Task":
        """Return the task as it grades once it has seen the outputs of its calibration examples."""
        return self

    def settings(self) -> dict[str, Any]:
        """Return what else decides the prompts or verdicts, for the record; examples and stops need no mention."""
        return {}
