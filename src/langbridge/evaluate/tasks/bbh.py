"""BIG-Bench Hard: the fourteen tasks of the LangBridge evaluation, zero-shot with steps, graded by the chosen option.

Folder: `<task>.json` in English, `<language>/<task>.json` in others, as BIG-Bench Hard publishes them. The paper's
system line is the named template `orca_steps`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ClassVar

from langbridge.errors import DataError
from langbridge.evaluate.sources import hub, json_value
from langbridge.evaluate.task import Grade, Output, Setup, Task, TaskExample
from langbridge.generate import Sampling
from langbridge.languages import LANGUAGES, PIVOT

HUB = "SaylorTwift/bbh"
LETTER, YES_NO, VALID = "letter", "yes or no", "valid or invalid"
TASKS = {
    "causal_judgement": YES_NO,
    "date_understanding": LETTER,
    "disambiguation_qa": LETTER,
    "formal_fallacies": VALID,
    "logical_deduction_five_objects": LETTER,
    "logical_deduction_seven_objects": LETTER,
    "logical_deduction_three_objects": LETTER,
    "navigate": YES_NO,
    "penguins_in_a_table": LETTER,
    "reasoning_about_colored_objects": LETTER,
    "snarks": LETTER,
    "sports_understanding": YES_NO,
    "temporal_sequences": LETTER,
    "web_of_lies": YES_NO,
}
"""The tasks, and what is chosen from."""
PAPER = {
    LETTER: (r"\([A-Z]\)", r"[A-Z]\.", r"[A-Z]"),
    YES_NO: (r"Yes|No", r"yes|no"),
    VALID: (r"valid|invalid|Valid|Invalid",),
}
"""Published rule: the last match of the first pattern that is found anywhere; any capital letter will do in the end."""
STRICT = {
    LETTER: re.compile(r"\(([A-Z])\)|\b([A-Z])(?=[.:)]|\s*$)"),
    YES_NO: re.compile(r"\b(yes|no)\b", re.IGNORECASE),
    VALID: re.compile(r"\b(valid|invalid)\b", re.IGNORECASE),
}
"""Corrected rule: whole words of any case, and letters that stand as options; behind the last announcement if any."""
ANNOUNCED = re.compile(r"###\s*final answer\s*:|final answer\s*:|the answer is\s*:?|answer\s*:", re.IGNORECASE)
REQUEST = (
    "Choose an answer from the choices provided. All questions are answerable.\n"
    "You must choose an option. If all options seem wrong, choose the option that is closest to the answer.\n"
    "At the end output\n###Final answer: {{answer choice}}\n\n"
)
"""The published wording, double braces included."""


@dataclass(frozen=True, kw_only=True)
class Bbh(Task):
    """Zero-shot chain of thought."""

    setup: Setup
    name: ClassVar[str] = "bbh"
    grades: ClassVar[tuple[str, ...]] = ("paper", "strict")
    aligned: ClassVar[bool] = True

    def languages(self) -> list[str]:
        """Return English, and the languages that have a folder of their own."""
        if self.setup.data is None:
            return [PIVOT]
        folder = self.setup.data
        return [PIVOT, *(code for code, language in LANGUAGES.items() if (folder / language.short).is_dir())]

    def examples(self, language: str) -> list[TaskExample]:
        """Return the questions, the tasks in turn, so that the first few are of all tasks."""
        columns = [self._questions(language, task) for task in TASKS]
        return [example for row in zip_longest(*columns) for example in row if example is not None]

    def sampling(self, language: str) -> Sampling:
        """Return the paper's decoding."""
        return Sampling(max_new_tokens=1024, stop=("<|im_end|>",))

    def grade(self, example: TaskExample, output: Output) -> dict[str, Grade]:
        """Compare the option that each rule finds."""
        kind, wanted = TASKS[example.group], example.reference.strip("()")
        loose, exact = paper(output.text, PAPER[kind]), strict(output.text, STRICT[kind])
        same = exact is not None and exact.casefold() == wanted.casefold()
        return {"paper": Grade(loose, loose == wanted), "strict": Grade(exact, same)}

    def _questions(self, language: str, task: str) -> list[TaskExample]:
        return [
            TaskExample(
                id=f"{task} {number}",
                prompt=f"{REQUEST}{row['input']}\nStep-by-step answer:",
                reference=row["target"],
                group=task,
            )
            for number, row in enumerate(self._rows(language, task))
        ]

    def _rows(self, language: str, task: str) -> list[dict[str, Any]]:
        if self.setup.data is None:
            return hub(HUB, task, "test")
        folder = self.setup.data if language == PIVOT else self.setup.data / LANGUAGES[language].short
        path = folder / f"{task}.json"
        rows = json_value(path).get("examples", [])
        if not rows or not all({"input", "target"} <= set(row) for row in rows):
            raise DataError(f"{path}: wanted `examples` with input and target.")
        return list(rows)


def paper(output: str, patterns: Sequence[str]) -> str | None:
    """Return the last match of the first pattern that matches, its brackets removed but not its full stop."""
    for pattern in patterns:
        if found := re.findall(pattern, output):
            return str(found[-1]).strip("()")
    return None


def strict(output: str, pattern: re.Pattern[str]) -> str | None:
    """Return the first option behind the last announcement of an answer, else the option named last."""
    announced = [match.end() for match in ANNOUNCED.finditer(output)]
    behind = pattern.search(output, announced[-1]) if announced else None
    found = behind or next(iter(reversed(list(pattern.finditer(output)))), None)
    return next(group for group in found.groups() if group) if found else None
