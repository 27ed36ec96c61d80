"""SIB-200: the topic of a sentence, one of seven, by the likelihood of its name.

The sentence goes through the encoder, the English instruction is the LM's own text. A language model prefers some
topics whatever it reads: `calibrated` corrects that with one scale and one shift per topic, fitted on the English
development sentences alone, for the bridge and for each baseline apart. Folder: `<language>_<Script>/<split>.tsv`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from langbridge.data.topics import INSTRUCTION, TOPICS, read_topics
from langbridge.errors import DataError
from langbridge.evaluate.sources import Record, hub
from langbridge.evaluate.statistics import Numbers
from langbridge.evaluate.task import Grade, Output, Setup, Task, TaskExample
from langbridge.languages import LANGUAGES, PIVOT, our_code

HUB = "Davlan/sib200"
HUB_SPLITS = {"dev": "validation"}
HUB_CODES = {"ara": "arb", "cmn": "zho"}
HUB_NAMES = {code: f"{HUB_CODES.get(code, code)}_{language.script}" for code, language in LANGUAGES.items()}
CALIBRATION = "dev"
RIDGE, STEPS = 0.01, 500


@dataclass(frozen=True, kw_only=True)
class Sib200(Task):
    """Zero-shot, by likelihood."""

    setup: Setup
    scale: float = 1.0
    shifts: tuple[float, ...] = (0.0,) * len(TOPICS)
    """Nats added to each topic's scaled log-likelihood."""
    name: ClassVar[str] = "sib200"
    grades: ClassVar[tuple[str, ...]] = ("calibrated", "likelihood")
    aligned: ClassVar[bool] = True

    def languages(self) -> list[str]:
        """Return the languages found."""
        return sorted(self._folders())

    def examples(self, language: str) -> list[TaskExample]:
        """Return a language's sentences in the order of their numbers, which all languages share."""
        return self._examples(language, self.setup.split)

    def calibration(self) -> list[TaskExample]:
        """Return the English development sentences."""
        return self._examples(PIVOT, CALIBRATION)

    def calibrated(self, outputs: Sequence[Output]) -> "Sib200":
        """Return the task with scale and shifts fitted on the English development sentences."""
        scores = np.array([[score.log_likelihood for score in output.scores] for output in outputs])
        topics = np.array([TOPICS.index(example.reference) for example in self.calibration()[: len(outputs)]])
        scale, shifts = fit(scores, topics)
        return dataclasses.replace(self, scale=scale, shifts=shifts)

    def grade(self, example: TaskExample, output: Output) -> dict[str, Grade]:
        """Take the likeliest topic, with and without calibration."""
        raw = np.array([score.log_likelihood for score in output.scores])
        found = {"calibrated": self.scale * raw + np.array(self.shifts), "likelihood": raw}
        answers = {rule: TOPICS[int(values.argmax())] for rule, values in found.items()}
        return {rule: Grade(answer, answer == example.reference) for rule, answer in answers.items()}

    def settings(self) -> dict[str, Any]:
        """Tell what the calibration found."""
        return {"scale": self.scale, "shifts": dict(zip(TOPICS, self.shifts, strict=True))}

    def _folders(self) -> dict[str, str]:
        """Return folder names by our code."""
        if self.setup.data is None:
            return HUB_NAMES
        names = sorted({path.parent.name for path in self.setup.data.glob(f"*_*/{self.setup.split}.tsv")})
        if not names:
            raise DataError(f"{self.setup.data} holds no <language>_<Script>/{self.setup.split}.tsv files.")
        return {our_code(name.split("_")[0]): name for name in names}

    def _examples(self, language: str, split: str) -> list[TaskExample]:
        return [
            TaskExample(
                id=str(row["index_id"]),
                prompt=row["text"],
                reference=row["category"],
                instruction=INSTRUCTION,
                choices=TOPICS,
            )
            for row in sorted(self._rows(language, split), key=lambda row: int(row["index_id"]))
        ]

    def _rows(self, language: str, split: str) -> Sequence[Record]:
        if self.setup.data is not None:
            return read_topics(self.setup.data / self._folders()[language] / f"{split}.tsv")
        return hub(HUB, self._folders()[language], HUB_SPLITS.get(split, split))


def fit(scores: Numbers, topics: Numbers) -> tuple[float, tuple[float, ...]]:
    """Return (scale, shifts) under which the right topics are likeliest: ridge-regularised logistic regression.

    `scores`: (examples, topics) log-likelihoods; `topics`: (examples,) right ones. Plain gradient descent on
    standardised scores: eight numbers, a convex problem.
    """
    spread = float(scores.std()) or 1.0
    centred = (scores - scores.mean(axis=1, keepdims=True)) / spread
    right = np.eye(scores.shape[1])[topics]
    scale, shifts = 1.0, np.zeros(scores.shape[1])
    for _ in range(STEPS):
        logits = scale * centred + shifts
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = odds / odds.sum(axis=1, keepdims=True) - right
        scale -= 0.5 * (float((error * centred).sum(axis=1).mean()) + RIDGE * (scale - 1))
        shifts = shifts - 0.5 * (error.mean(axis=0) + RIDGE * shifts)
    return scale / spread, tuple(float(shift) for shift in shifts)
