"""What the task files in `harness_tasks` call: our own tasks' items and grades, in the shape that lm-eval wants.

The data folder is `--metadata data=FOLDER`, else the environment variable LANGBRIDGE_DATA, else the hub is asked.
"""

import os
from pathlib import Path
from typing import Any

from datasets import Dataset

from langbridge.evaluate import numbers
from langbridge.evaluate.tasks import open_task


def items(task: str, language: str, data: str | None = None, **_: Any) -> dict[str, Dataset]:
    """Return a task's items in one language, as split `test`."""
    folder = data or os.environ.get("LANGBRIDGE_DATA")
    opened = open_task(task, Path(folder).expanduser() if folder else None)
    rows = [
        {
            "id": example.id,
            "prompt": example.prompt,
            "reference": example.reference,
            "choices": list(example.choices),
        }
        for example in opened.examples(language)
    ]
    return {"test": Dataset.from_list(rows)}


def number(item: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return the verdicts of both rules on an answer that ends in a number."""
    grades = numbers.grade(results[0], item["reference"])
    return {rule: float(grade.right) for rule, grade in grades.items()}


def right(item: dict[str, Any]) -> int:
    """Return the place of the right choice."""
    return int(item["reference"])
