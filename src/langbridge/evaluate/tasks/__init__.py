"""The benchmarks by name. A new one is a file here and a line in `TASKS`."""

from collections.abc import Callable
from pathlib import Path

from langbridge.errors import DataError
from langbridge.evaluate.task import Setup, Task
from langbridge.evaluate.tasks.bbh import Bbh
from langbridge.evaluate.tasks.humaneval import HumanEval, HumanEvalAnonymous
from langbridge.evaluate.tasks.mgsm import Mgsm, Mgsm8Shot
from langbridge.evaluate.tasks.msvamp import Msvamp
from langbridge.evaluate.tasks.sib200 import Sib200
from langbridge.evaluate.tasks.xcopa import Xcopa
from langbridge.sandbox.host import Sandbox

TASKS: dict[str, Callable[[Setup], Task]] = {
    "mgsm": lambda setup: Mgsm(setup=setup),
    "mgsm_8shot": lambda setup: Mgsm8Shot(setup=setup),
    "msvamp": lambda setup: Msvamp(setup=setup),
    "xcopa": lambda setup: Xcopa(setup=setup),
    "bbh": lambda setup: Bbh(setup=setup),
    "humaneval": lambda setup: HumanEval(setup=setup),
    "humaneval_anon": lambda setup: HumanEvalAnonymous(setup=setup),
    "sib200": lambda setup: Sib200(setup=setup),
}
"""How each task is opened."""


def open_task(name: str, data: Path | None = None, *, split: str = "test", sandbox: Sandbox | None = None) -> Task:
    """Open a task on its data: `data/<name>` where there is such a folder, `data` itself, or the hub where it is None.

    Raises DataError for an unknown name and for data that is not there.
    """
    if name not in TASKS:
        raise DataError(f"no task named {name!r}; known: {', '.join(TASKS)}.")
    folder = data
    if data is not None:
        named = data / name.split("_")[0]
        folder = named if named.is_dir() else data
        if not folder.is_dir():
            raise DataError(f"--data {data}: no such folder.")
    return TASKS[name](Setup(data=folder, split=split, sandbox=sandbox))
