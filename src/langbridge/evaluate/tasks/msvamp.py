"""MSVAMP: 1,000 arithmetic problems in ten languages, zero-shot, the question alone in the run's own template.

Folder: `test_<Language>.json`, JSON lines with m_query and response.
"""

from dataclasses import dataclass
from typing import ClassVar

from langbridge.evaluate import numbers
from langbridge.evaluate.sources import files, hub, json_lines
from langbridge.evaluate.task import Grade, Output, Setup, Task, TaskExample
from langbridge.evaluate.tasks.mgsm import QUESTION, STOPS
from langbridge.generate import Sampling
from langbridge.languages import LANGUAGES

HUB = "Mathoctopus/MSVAMP"
FIELDS = ("m_query", "response")
NAMES = {LANGUAGES[code].name: code for code in QUESTION if code != "tel"}


@dataclass(frozen=True, kw_only=True)
class Msvamp(Task):
    """Zero-shot."""

    setup: Setup
    name: ClassVar[str] = "msvamp"
    grades: ClassVar[tuple[str, ...]] = numbers.RULES
    aligned: ClassVar[bool] = True

    def languages(self) -> list[str]:
        """Return the languages found."""
        if self.setup.data is None:
            return sorted(NAMES.values())
        paths = files(self.setup.data, "test_*.json", "test_<Language>.json files")
        return sorted(NAMES[name] for path in paths if (name := path.stem.removeprefix("test_")) in NAMES)

    def examples(self, language: str) -> list[TaskExample]:
        """Return a language's problems."""
        if self.setup.data is None:
            rows = hub(HUB, LANGUAGES[language].short, "test")
        else:
            rows = json_lines(self.setup.data / f"test_{LANGUAGES[language].name}.json", FIELDS)
        return [
            TaskExample(id=str(number), prompt=row["m_query"], reference=str(row["response"]))
            for number, row in enumerate(rows)
        ]

    def sampling(self, language: str) -> Sampling:
        """Return the paper's decoding."""
        return Sampling(max_new_tokens=1024, stop=(QUESTION[language], *STOPS))

    def grade(self, example: TaskExample, output: Output) -> dict[str, Grade]:
        """Compare the number."""
        return numbers.grade(output.text, example.reference)
