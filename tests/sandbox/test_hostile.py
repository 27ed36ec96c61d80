"""Programs that mean harm: the host, its files and the run stay as they were, and the verdict says what happened.

Limits are low, so that a hole in the jail would do little.
"""

import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from langbridge.errors import SandboxError
from langbridge.sandbox.host import Sandbox
from langbridge.sandbox.leftovers import descendants
from langbridge.sandbox.settings import Limits

TESTS = "def check(candidate):\n    assert candidate(2) == 4"
LIMITS = {
    "cpu_seconds": 1,
    "wall_seconds": 60.0,
    "memory": 256 << 20,
    "processes": 4,
    "file_size": 1 << 20,
    "folder_size": 2 << 20,
    "output": 100_000,
}
TWICE = "def twice(x):\n    return 2 * x\n"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox(allowed=True, limits=Limits(**LIMITS))  # type: ignore[arg-type]
    except SandboxError as error:
        pytest.skip(f"no jail can be built here: {error}")


@pytest.fixture(autouse=True)
def unharmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file that programs try to reach; afterwards it is as it was, alone, and nothing of the program lives."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # for this process
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # for those it starts
    (tmp_path / "precious").write_text("as it was")
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert (tmp_path / "precious").read_text() == "as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert not [pid for pid in descendants(os.getpid()) if b"sandbox.jail" in command_of(pid)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert f'"parent": {os.getpid()},'.encode() not in b"".join(map(command_of, every_process()))


def every_process() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command_of(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


PROGRAMS = {
    "ends itself before the tests": ("import os\nos._exit(0)", "died", "status 0"),
    "ends itself when asked": ("import os\ndef twice(x):\n    os._exit(0)", "died", "status 0"),
    "raises SystemExit": ("raise SystemExit(0)", "raised", "SystemExit"),
    "equals everything": (
        "class Yes:\n    def __eq__(self, other): return True\ndef twice(x):\n    return Yes()",
        "wrong",
        "Assertion",
    ),
    "writes on the judge's channel": (
        "import os\nfor i in range(3, 60):\n    try: os.write(i, b'passed\\n')\n    except OSError: pass\n" + TWICE,
        "died",
        "channel",
    ),
    "closes all descriptors": ("import os\nos.closerange(0, 1000)\n" + TWICE, "died", "no answer"),
    "closes the channel and lives": (
        "import os, time\nos.closerange(0, 1000)\ntime.sleep(1000)\n" + TWICE,
        "died",
        "closed the judge's channel",
    ),
    "forks without end": ("import os\nwhile True:\n    os.fork()", "raised", "BlockingIOError"),
    "starts threads without end": (
        "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(9e4,)).start()",
        "raised",
        "can't start new thread",
    ),
    "writes without end": ("while True:\n    print('x' * 999)", "output", "100000 bytes"),
    "answers without end": ("def twice(x):\n    return 'x' * 2_000_000", "output", "answer of more than"),
    "computes without end": ("while True:\n    pass", "cpu", "1 s of processor time"),
    "ignores the processor's limit": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass",
        "cpu",
        "1 s of processor time",
    ),
    "takes all memory at once": ("x = bytearray(1 << 36)", "memory", "MemoryError"),
    "takes all memory in pieces": ("x = []\nwhile True:\n    x.append(bytearray(1 << 20))", "memory", "MemoryError"),
    "writes a huge file": (
        "with open('huge', 'wb') as file:\n    while True:\n        file.write(b'x' * 99_999)",
        "raised",
        "File too large",
    ),
    "writes many files": (
        "for i in range(9999):\n    with open(f'file{i}', 'wb') as file:\n        file.write(b'x' * 999_999)",
        "raised",
        "No space left",
    ),
    "recurses in Python": ("def twice(x):\n    return twice(x)", "raised", "RecursionError"),
    "answers with a deep list": (
        "def twice(x):\n    deep = []\n    for _ in range(99_999):\n        deep = [deep]\n    return deep",
        "raised",
        "RecursionError",
    ),
    "crashes the interpreter": ("import ctypes\nctypes.string_at(0)", "died", "SIGSEGV"),
    "stops itself for good": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "died", "SIGKILL"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_verdict_says_what_happened(sandbox: Sandbox, name: str) -> None:
    program, verdict, detail = PROGRAMS[name]
    found = sandbox.judge(program, TESTS, "twice")
    assert (found.verdict, found.isolated) == (verdict, True), found
    assert detail in found.detail
    assert not found.passed


def test_a_sleeping_program_is_ended() -> None:
    sandbox = Sandbox(allowed=True, limits=Limits(**{**LIMITS, "wall_seconds": 3.0}))  # type: ignore[arg-type]
    found = sandbox.judge("import time\ntime.sleep(99999)", TESTS, "twice")
    assert (found.verdict, found.detail) == ("wall", "more than 3.0 s")


def said(sandbox: Sandbox, program: str) -> list[str]:
    """Lines that a program prints, which passes all the same."""
    found = sandbox.judge(program + "\n" + TWICE, TESTS, "twice")
    assert found.passed, found
    return found.output.splitlines()


def test_nothing_of_the_environment_is_seen(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGBRIDGE_SECRET", "do not tell")
    program = "import os, glob\nprint(dict(os.environ))\nprint(glob.glob('/proc/*/environ'), os.path.exists('/proc'))"
    assert said(sandbox, program) == ["{}", "[] False"]


def test_files_of_the_host_are_out_of_reach(sandbox: Sandbox, tmp_path: Path) -> None:
    """Neither read nor removed, not even by way of a link; and what can be read cannot be written."""
    program = f"""
import os, shutil
def tried(name, *arguments):
    try:
        return getattr(os, name)(*arguments)
    except OSError as error:
        return type(error).__name__
target = {str(tmp_path / "precious")!r}
print(tried("open", target, os.O_RDONLY), tried("remove", target), tried("listdir", {str(Path.home())!r} + "/.cache"))
os.symlink(target, "link")
print(tried("open", "link", os.O_RDONLY), tried("remove", os.path.dirname(os.__file__) + "/os.py"))
print(tried("open", "/etc/passwd", os.O_RDONLY), sorted(os.listdir(".")), shutil.which("sh", path="/bin:/usr/bin"))
for folder in ("/", "/usr/lib", "/dev", os.path.dirname(os.__file__)):
    print(tried("open", folder + "/new", os.O_CREAT | os.O_WRONLY))
"""
    lines = said(sandbox, program)
    assert lines[0] == "FileNotFoundError FileNotFoundError FileNotFoundError"
    assert lines[1] == "FileNotFoundError OSError"
    assert lines[2] == "FileNotFoundError ['link'] None"
    assert set(lines[3:]) <= {"OSError", "PermissionError"}
    assert len(lines) == 7


def test_there_is_no_network(sandbox: Sandbox) -> None:
    """A server of this machine, which the host itself reaches, is out of reach; the only interface is down."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"""
import socket
print(socket.if_nameindex())
for address in (("127.0.0.1", {port}), ("192.0.2.1", 80)):
    try:
        socket.create_connection(address, timeout=5)
        print("reached")
    except OSError as error:
        print("unreachable")
"""
        assert said(sandbox, program) == ["[(1, 'lo')]", "unreachable", "unreachable"]
        assert not select.select([server], [], [], 0)[0]
        with socket.create_connection(("127.0.0.1", port), timeout=30):
            assert select.select([server], [], [], 30)[0]
            server.accept()[0].close()


def test_the_parent_is_out_of_reach(sandbox: Sandbox) -> None:
    """Signals to the judge do nothing, and to the host or all processes of the machine they do not get."""
    program = f"""
import os, signal
for process in (1, os.getppid(), {os.getpid()}, {os.getppid()}):
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
        try:
            os.kill(process, number)
        except OSError as error:
            print(type(error).__name__)
"""
    assert set(said(sandbox, program)) == {"ProcessLookupError"}


def test_the_judge_cannot_be_looked_into_and_namespaces_cannot_be_had(sandbox: Sandbox) -> None:
    program = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def refused(name, *arguments):
    return getattr(libc, name)(*arguments) == -1 and ctypes.get_errno() == 1
print(refused("ptrace", 16, 1, 0, 0), refused("unshare", 0x10000000), refused("mount", b"x", b"/", b"tmpfs", 0, 0))
print(refused("process_vm_readv", 1, 0, 0, 0, 0, 0), refused("setuid", 0) or libc.setuid(0) == -1)
"""
    assert said(sandbox, program) == ["True True True", "True True"]


def test_the_tests_are_nowhere_in_the_program(sandbox: Sandbox) -> None:
    """No object, frame or open file of the program's process holds the tests or their answers."""
    program = """
import gc, os, sys
seen = [repr(thing)[:99_999] for thing in gc.get_objects()]
frame = sys._getframe()
while frame:
    seen += [repr(frame.f_locals), repr(frame.f_globals)[:99_999]]
    frame = frame.f_back
for descriptor in range(3, 64):
    try:
        os.lseek(descriptor, 0, 0)
        seen.append(repr(os.read(descriptor, 9_999)))
    except OSError:
        pass
needle = "".join(["xyz", "zy"])
print(sum(needle in text for text in seen), sum("entry_point" in text for text in seen) > 0)
def twice(x):
    return 2 * x
"""
    tests = "def check(candidate):\n    assert 'xyzzy' and candidate(2) == 4"
    found = sandbox.judge(program, tests, "twice")
    assert found.passed, found
    assert found.output == "0 True\n"  # while what the frames do hold is found


def test_processes_left_behind_end(sandbox: Sandbox) -> None:
    """A daemon in a session of its own, which holds the output open, neither stays nor keeps the judge waiting."""
    program = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("alive")
        time.sleep(99999)
    os._exit(0)
os.wait()
"""
    found = sandbox.judge(program + TWICE, TESTS, "twice")
    assert found.passed


def test_no_more_processes_than_allowed(sandbox: Sandbox) -> None:
    program = """
import os, time
count = 1
try:
    while True:
        if os.fork() == 0:
            time.sleep(99999)
        count += 1
except BlockingIOError:
    print(count)
"""
    assert said(sandbox, program) == ["4"]


HOST = """
from langbridge.sandbox.host import Sandbox
from langbridge.sandbox.settings import Limits
sandbox = Sandbox(allowed=True, limits=Limits(wall_seconds=500.0))
program = "import sys, time\\nprint('x' * 99999)\\ntime.sleep(99999)"
sandbox.judge(program, "def check(candidate): pass", "twice")
"""


def test_a_killed_host_takes_the_program_with_it(sandbox: Sandbox) -> None:
    with subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True) as host:
        while len(found := descendants(host.pid)) < 3:  # keeper, judge, program
            assert host.poll() is None
        host.kill()
    deadline = time.monotonic() + 60
    while any(b"sandbox.jail" in command_of(process) for process in found):
        assert time.monotonic() < deadline, "the kernel should have ended them"
