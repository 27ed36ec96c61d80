"""The program's own process: runs its text, then answers calls. All that it can reach is worthless to it."""

import functools
import gc
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from langbridge.sandbox.values import pack, unpack

READY = "ready"


def work(source: str, entry_point: str, requests: int, replies: int) -> None:
    """Run a program, say that it is ready, and answer each line of arguments by a line with what it returned."""
    out_of_memory = pack(("raised", "MemoryError", ""))  # made while there is memory
    asked = os.fdopen(requests, encoding="utf-8")

    def answer(make: Callable[[], Any]) -> None:
        try:
            line = pack(("value", make()))
        except MemoryError:
            gc.collect()
            line = out_of_memory
        except BaseException as error:
            line = pack(("raised", type(error).__name__, _text(error)))
        data = (line + "\n").encode()
        while data:
            data = data[os.write(replies, data) :]

    module = types.ModuleType("program")  # a name other than __main__: what a script does when started is not wanted
    sys.modules["program"] = module

    def begin() -> str:
        exec(compile(source, "program", "exec"), module.__dict__)
        if not callable(getattr(module, entry_point, None)):
            raise NameError(f"the program defines no function {entry_point!r}")
        return READY

    def called(line: str) -> Any:
        arguments, named = unpack(line)
        return getattr(module, entry_point)(*arguments, **named)

    answer(begin)
    for line in asked:
        answer(functools.partial(called, line))


def _text(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except BaseException:  # an exception of the program's own making
        return ""
