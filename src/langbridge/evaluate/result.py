"""Results of tasks as JSON files: one shape, written whole, with what made them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langbridge.checkpoint import read_metadata, run_folder, versions
from langbridge.errors import DataError
from langbridge.files import write_text

Result = dict[str, Any]


def write_result(result: Result, run: str, path: Path, *, dtype: str | None = None) -> Result:
    """Write a task's result with the run's name, models and package versions, and return all of it.

    `dtype`: where the run's own was replaced.
    """
    metadata = read_metadata(run_folder(run))
    whole = {
        **result,
        "run": {
            "name": run,
            "encoder": metadata["encoder"],
            "language_model": metadata["language_model"],
            **({} if dtype is None else {"dtype": dtype}),
        },
        "versions": versions(),
    }
    write_text(path, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    return whole


def read_result(path: Path) -> Result:
    """Read a result; raises DataError when the file is something else."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a result: {error}") from error
    if not isinstance(result, dict) or not {"task", "languages", "run"} <= set(result):
        raise DataError(f"{path} is not a result of `langbridge evaluate --out`.")
    return result


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Read results and folders of results, in order; raises DataError for a folder that holds none."""
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(read_result(path))
            continue
        inner = [read_result(file) for file in sorted(path.glob("*.json")) if _is_result(file)]
        if not inner:
            raise DataError(f"{path} holds no result of `langbridge evaluate --out`. Was the evaluation stopped early?")
        found += inner
    return found


def _is_result(path: Path) -> bool:
    try:
        read_result(path)
    except DataError:
        return False
    return True
