"""Run generated programs and judge them by tests, from outside of the jail.

sandbox = Sandbox(allowed=True)
sandbox.judge("def twice(x):\n    return 2 * x", "def check(candidate):\n    assert candidate(2) == 4", "twice").verdict
"""

import contextlib
import dataclasses
import json
import os
import random
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langbridge.errors import SandboxError
from langbridge.sandbox.settings import Limits, Orders

START = "import sys; sys.path.append(sys.argv[1]); from langbridge.sandbox.jail import main; del sys.path[-1]; "
START += "main(sys.argv[2])"
PACKAGES = Path(__file__).resolve().parents[2]
"""The folder that holds this package."""
GRACE = 10.0
"""Seconds that the jail gets to clear away what a program started, where no namespace does it."""
PROBE = "import cmath, wave\ndef probe():\n    return 1"
"""A program that reads files of Python's own that the jail itself has not read."""
PROBE_TESTS = "def check(candidate):\n    assert candidate() == 1"
LIMITS = {"wall": "wall_seconds", "output": "output"}
UNITS = {"wall": "s", "output": "bytes of output"}
"""Of the limits that are kept from outside."""
VERDICTS = ("passed", "wrong", "raised", "died", "cpu", "wall", "memory", "output")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a program."""

    verdict: str
    """passed; wrong: an answer the tests refuse; raised: an exception of the program; died: it ended or gave up its
    channel; cpu, wall, memory, output: a limit."""
    detail: str
    """What happened, in words; empty where it passed."""
    output: str
    """What the program wrote to stdout and stderr."""
    isolated: bool
    """Whether it had no network, no files and no processes of the host within reach."""

    @property
    def passed(self) -> bool:
        """Whether all tests passed."""
        return self.verdict == "passed"


class Sandbox:
    """Judges programs, each in a jail of its own.

    `allowed`: whether generated code may run at all; `unisolated`: whether it may run where the network and the host's
    files and processes cannot be shut off. Raises SandboxError where it may not run.
    """

    def __init__(self, *, allowed: bool, unisolated: bool = False, limits: Limits | None = None) -> None:
        if not allowed:
            raise SandboxError(
                "this runs programs that a model wrote: say --allow-code-execution if you want that. They run without "
                "network, files and processes of this machine, and with limits."
            )
        if sys.platform != "linux":
            raise SandboxError(f"generated code runs on Linux only, this is {sys.platform}: use a container.")
        self.limits = limits or Limits()
        self.isolated = True
        why_not = self._why_not(isolated=True)
        if why_not and not unisolated:
            raise SandboxError(
                f"the network cannot be shut off for generated code here ({why_not}): allow user namespaces, or say "
                "--allow-unisolated-code if this machine holds and reaches nothing of value."
            )
        if why_not:
            self.isolated = False
            if still := self._why_not(isolated=False):
                raise SandboxError(f"generated code cannot run here, not even without isolation: {still}")

    def judge(self, program: str, tests: str, entry_point: str, *, setup: str = "") -> Outcome:
        """Run a program and let tests call its function `entry_point`; the program never sees the tests.

        `tests` is Python that defines `check(candidate)`; `setup` is Python in front of it. Both are trusted. Raises
        SandboxError when the jail cannot be built or the tests are broken.
        """
        reports, output, limit = self._run(program, [setup, tests], entry_point, isolated=self.isolated)
        told = {name: value for report in reports for name, value in report.items()}
        if "refused" in told:
            raise SandboxError(f"the jail could not be built: {told['refused']}. See docs/code-execution.md.")
        if told.get("verdict") == "broken":
            raise SandboxError(told["detail"])
        text = output.decode("utf-8", "replace")
        verdict, detail = told.get("verdict", "died"), told.get("detail", "the judge was ended")
        if "verdict" not in told and limit:
            verdict, detail = limit, f"more than {getattr(self.limits, LIMITS[limit])} {UNITS[limit]}"
        assert verdict in VERDICTS
        return Outcome(verdict=verdict, detail=detail, output=text, isolated=self.isolated)

    def _why_not(self, *, isolated: bool) -> str:
        """Return why programs cannot be judged here, or an empty text."""
        reports, output, limit = self._run(PROBE, ["", PROBE_TESTS], "probe", isolated=isolated)
        told = {name: value for report in reports for name, value in report.items()}
        if told.get("verdict") == "passed":
            return ""
        said = output.decode("utf-8", "replace").strip()[-200:]
        return str(told.get("refused") or told.get("detail") or said or limit or "it ended without a word")

    def _run(
        self, program: str, tests: list[str], entry_point: str, *, isolated: bool
    ) -> tuple[list[dict[str, Any]], bytes, str]:
        """Return (reports of the jail, output of the program, limit that ended it from outside or "")."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(temporary_folder())
            texts = [stack.enter_context(in_memory(text)) for text in (program, json.dumps(tests))]
            reading, writing = os.pipe()
            stack.callback(os.close, reading)
            orders = Orders(
                limits=self.limits,
                isolated=isolated,
                folder=str(folder),
                entry_point=entry_point,
                program=texts[0],
                tests=texts[1],
                verdict=writing,
                parent=os.getpid(),
                user=unused_user(),
            )
            try:
                process = subprocess.Popen(
                    [
                        sys.executable,
                        "-s",
                        "-S",
                        "-P",
                        "-c",
                        START,
                        str(PACKAGES),
                        json.dumps(dataclasses.asdict(orders)),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"},
                    cwd="/",
                    pass_fds=(*texts, writing),
                    start_new_session=True,
                )
            finally:
                os.close(writing)
            stack.enter_context(process)
            stack.callback(end, process)
            return watch(process, reading, self.limits)


def watch(process: subprocess.Popen[bytes], verdict: int, limits: Limits) -> tuple[list[dict[str, Any]], bytes, str]:
    """Collect reports and output until the jail ends or a limit is passed."""
    assert process.stdout is not None
    deadline = time.monotonic() + limits.wall_seconds
    collected = {process.stdout.fileno(): b"", verdict: b""}
    ended = os.pidfd_open(process.pid)
    limit = ""
    try:
        with selectors.DefaultSelector() as selector:
            for descriptor in (*collected, ended):
                selector.register(descriptor, selectors.EVENT_READ)
            while not limit:
                ready = [key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
                for descriptor in ready:
                    if descriptor == ended:
                        continue
                    piece = os.read(descriptor, 1 << 16)
                    collected[descriptor] += piece
                    if not piece:
                        selector.unregister(descriptor)
                if ended in ready and len(ready) == 1:  # and nothing is left to read
                    break
                if len(collected[process.stdout.fileno()]) > limits.output:
                    limit = "output"
                elif time.monotonic() >= deadline:
                    limit = "wall"
    finally:
        os.close(ended)
    lines = collected[verdict].decode().splitlines()
    return [json.loads(line) for line in lines], collected[process.stdout.fileno()][: limits.output], limit


def end(process: subprocess.Popen[bytes]) -> None:
    """End a jail and everything in it."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def in_memory(text: str) -> Iterator[int]:
    """Yield a descriptor of a nameless file with a text."""
    descriptor = os.memfd_create("langbridge")
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogatepass", closefd=False) as file:
            file.write(text)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder; remove it with whatever is in it then, but nothing that links in it point to."""
    outer = Path(tempfile.mkdtemp(prefix="langbridge-jail-"))
    try:
        outer.chmod(0o711)  # another user may go through, to the inner folder that is his
        (outer / "jail").mkdir(mode=0o700)
        yield outer / "jail"
    finally:
        open_folders(outer)
        shutil.rmtree(outer, ignore_errors=True)


def open_folders(folder: Path) -> None:
    """Let a folder and those in it be read and emptied again, whatever a program forbade; links are left alone."""
    if folder.is_symlink() or not folder.exists():
        return
    folder.chmod(0o700)
    for parent, names, _ in os.walk(folder):
        for name in names:
            if not (path := Path(parent, name)).is_symlink():
                path.chmod(0o700)


def unused_user() -> int:
    """Return the number of a user that nobody is: out of the highest numbers that this machine or container has."""
    lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    start, count = max((int(line.split()[0]), int(line.split()[2])) for line in lines)
    top = min(start + count, 2_000_000_000)
    return random.SystemRandom().randrange(max(start, top - max(1, min(100_000, count // 8))), top)
