"""The judge's process: holds the tests, which the program never sees, and asks the program for one answer at a time.

A program passes when every answer is right. It has no way to say "passed" itself: the channel of the verdict is open
in this process alone, which no program can look into, and an end of the program is not an answer.
"""

import os
import random
import resource
import select
import signal
from typing import Any

from langbridge.sandbox.values import pack, unpack
from langbridge.sandbox.worker import READY

LONGEST = 1 << 20
"""Bytes of one answer."""


class StoppedError(Exception):
    """The program cannot be asked any further."""

    def __init__(self, verdict: str, detail: str) -> None:
        super().__init__(detail)
        self.verdict, self.detail = verdict, detail


class Program:
    """The program, as the judge sees it: a function that takes and returns plain data."""

    def __init__(self, process: int, requests: int, replies: int, cpu_seconds: int) -> None:
        self.process, self.requests, self.replies = process, requests, replies
        self.cpu_seconds = cpu_seconds
        self.ended = os.pidfd_open(process)
        self._rest = b""
        self.stopped: StoppedError | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Return the program's answer; raises StoppedError when there is none."""
        data = (pack((arguments, named)) + "\n").encode()
        try:
            while data:
                data = data[os.write(self.requests, data) :]
        except BrokenPipeError:
            raise self._stop(self._how_it_ended()) from None
        return self.answer()

    def answer(self) -> Any:
        """Return the next answer."""
        line = self._line()
        try:
            kind, *said = unpack(line.decode())
        except (ValueError, RecursionError, TypeError):
            raise self._stop(StoppedError("died", "it wrote on the judge's channel")) from None
        if kind == "value" and len(said) == 1:
            return said[0]
        if said[:1] == ["MemoryError"]:
            raise self._stop(StoppedError("memory", "MemoryError"))
        raise self._stop(StoppedError("raised", ": ".join(str(part) for part in said if part)))

    def _stop(self, why: StoppedError) -> StoppedError:
        """Remember why the program has no more answers, whatever the tests do with the exception."""
        self.stopped = self.stopped or why
        return self.stopped

    def _line(self) -> bytes:
        while b"\n" not in self._rest:
            readable, _, _ = select.select([self.replies, self.ended], [], [])
            piece = os.read(self.replies, 1 << 16) if self.replies in readable else b""
            self._rest += piece
            if not piece:
                raise self._stop(self._how_it_ended())
            if len(self._rest) > LONGEST:
                raise self._stop(StoppedError("output", f"an answer of more than {LONGEST} bytes"))
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _how_it_ended(self) -> StoppedError:
        if not select.select([self.ended], [], [], 1.0)[0]:  # alive, but its end of the channel is not
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            return StoppedError("died", "it closed the judge's channel")
        _, status, used = os.wait4(self.process, 0)
        seconds = used.ru_utime + used.ru_stime
        if not os.WIFSIGNALED(status):
            return StoppedError("died", f"it ended with status {os.waitstatus_to_exitcode(status)} and gave no answer")
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU or (number == signal.SIGKILL and seconds >= self.cpu_seconds):
            return StoppedError("cpu", f"more than {self.cpu_seconds} s of processor time")
        return StoppedError("died", f"killed by {signal.Signals(number).name}")


def judge(program: Program, setup: str, tests: str, entry_point: str) -> tuple[str, str]:
    """Return (verdict, detail) of a program; `tests` defines `check(candidate)`, `setup` what the tests may use."""
    random.seed(0)  # some tests draw their questions
    names: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(setup, "setup", "exec"), names)
        exec(compile(tests, "tests", "exec"), names)
        check = names["check"]
    except BaseException as error:
        return "broken", f"the tests cannot be used: {type(error).__name__}: {error}"[:500]
    names[entry_point] = program
    try:
        if program.answer() != READY:
            return "died", "it wrote on the judge's channel"
        check(program)
    except BaseException as error:
        if program.stopped is not None:
            return program.stopped.verdict, program.stopped.detail
        return "wrong", ": ".join([type(error).__name__, *([str(error)] if str(error) else [])])[:500]
    if program.stopped is not None:
        return program.stopped.verdict, program.stopped.detail
    return "passed", ""


def limit_judge(memory: int, seconds: int) -> None:
    """Limit what a strange answer can cost the judge itself."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
