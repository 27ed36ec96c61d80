"""When programs may run, and what the judge makes of them."""

import contextlib
import gzip
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import langbridge
from langbridge.errors import ConfigError, SandboxError
from langbridge.sandbox import host
from langbridge.sandbox.host import Sandbox
from langbridge.sandbox.leftovers import descendants
from langbridge.sandbox.settings import Limits
from langbridge.sandbox.values import Strange, pack, unpack

TESTS = "def check(candidate):\n    assert candidate(2) == 4"
SOURCES = Path(langbridge.__file__).parent.parent


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox(allowed=True, limits=Limits(cpu_seconds=10, memory=256 << 20, wall_seconds=120.0))
    except SandboxError as error:
        pytest.skip(f"no jail can be built here: {error}")


def test_nothing_runs_unasked() -> None:
    with pytest.raises(SandboxError, match="--allow-code-execution"):
        Sandbox(allowed=False)


@pytest.mark.parametrize("name", ["memory", "cpu_seconds", "wall_seconds"])
def test_nonsense_limits_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be more than 0"):
        Limits(**{name: 0})


def test_right_and_wrong_programs(sandbox: Sandbox) -> None:
    right = "def twice(x):\n    print('hello')\n    return 2 * x"
    found = sandbox.judge(right, TESTS, "twice")
    assert (found.verdict, found.detail, found.output, found.passed) == ("passed", "", "hello\n", True)
    for program, verdict, detail in (
        ("def twice(x):\n    return x", "wrong", "AssertionError"),
        ("def twice(x):\n    return None", "wrong", "AssertionError"),
        ("def twice(x):\n    return x / 0", "raised", "ZeroDivisionError: division by zero"),
        ("def twice(x:", "raised", "SyntaxError"),
        ("def thrice(x):\n    return 3 * x", "raised", "no function 'twice'"),
        ("twice = 4", "raised", "no function 'twice'"),
        ("", "raised", "no function 'twice'"),
        ("def twice(x):\n    raise type('\\ud800', (Exception,), {})", "raised", ""),
    ):
        found = sandbox.judge(program, TESTS, "twice")
        assert found.verdict == verdict, (program, found)
        assert detail in found.detail


def test_tests_use_their_setup_and_every_kind_of_value(sandbox: Sandbox) -> None:
    """Functions that stand in front of the one asked for serve the tests too; values come back as they were."""
    setup = "def half(x):\n    return x // 2\ndef mirror(x):\n    ..."
    tests = """
def check(candidate):
    assert half(candidate(4)) == 2
    for value in [None, True, 1.5, "ü\\ud800", (1, [2]), {"a": {1, 2}}, frozenset({3}), b"x", 1j, -(10**5000), [], {}]:
        got = candidate(value)
        assert got == value and type(got) is type(value), (got, value)
    assert candidate(x=3) == 3
    assert str(candidate(float("nan"))) == "nan" and candidate(float("inf")) == float("inf")
    assert candidate.__class__.__name__ == "Program"
"""
    found = sandbox.judge("def mirror(x):\n    return x", tests, "mirror", setup=setup)
    assert found.passed, found


def test_a_swallowed_exception_does_not_pass(sandbox: Sandbox) -> None:
    """Tests that catch everything do not make a program pass that ended itself."""
    tests = "def check(candidate):\n    try:\n        candidate(2)\n    except BaseException:\n        pass"
    assert sandbox.judge("import os\ndef twice(x):\n    os._exit(0)", tests, "twice").verdict == "died"


def test_verdicts_repeat(sandbox: Sandbox) -> None:
    """Draws of the tests and the order of sets are the same each time."""
    program = "def twice(x):\n    print(list({'a', 'b', 'c', 'd', 'e', 'f', 'g'}), x)\n    return 2 * x"
    tests = "import random\ndef check(candidate):\n    assert candidate(random.random()) < 2"
    first, again = (sandbox.judge(program, tests, "twice") for _ in range(2))
    assert first == again
    assert first.passed


@pytest.mark.parametrize("tests", ["def check(", "x = 1", "import absent_module\ndef check(c): pass"])
def test_broken_tests_are_said_to_be(sandbox: Sandbox, tests: str) -> None:
    with pytest.raises(SandboxError, match="the tests cannot be used"):
        sandbox.judge("def twice(x):\n    return x", tests, "twice")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda part: st.lists(part) | st.tuples(part, part) | st.dictionaries(st.text(), part) | st.sets(st.integers()),
    max_leaves=12,
)


@given(PLAIN)
def test_values_come_back_as_they_were(value: object) -> None:
    line = pack(value)
    assert "\n" not in line
    assert unpack(line) == value


@given(st.text() | st.recursive(st.text(), lambda part: st.dictionaries(st.text(), part)).map(json.dumps))
def test_any_text_is_a_value_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert not isinstance(unpack(text), dict) or '"dict"' in text


def test_strange_values_equal_nothing() -> None:
    class Yes:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    found = unpack(pack(Yes()))
    assert isinstance(found, Strange)
    assert not found == Yes()  # noqa: SIM201 - the other way round would ask the other
    assert found.kind == "Yes"


def test_links_in_the_temporary_folder_are_not_followed(tmp_path: Path) -> None:
    """What a program leaves in its folder goes: forbidden folders too, but nothing that a link points to."""
    (tmp_path / "precious").write_text("as it was")
    (tmp_path / "precious").chmod(0o640)
    with host.temporary_folder() as folder:
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "link").symlink_to(tmp_path)
        (folder / "link").symlink_to(tmp_path / "precious")
        (folder / "deep" / "er").chmod(0)
        (folder / "deep").chmod(0)
    assert not folder.parent.exists()
    with host.temporary_folder() as folder:
        folder.rename(folder.parent / "moved")
        folder.symlink_to(tmp_path, target_is_directory=True)
    assert not folder.parent.exists()
    assert (tmp_path / "precious").read_text() == "as it was"
    assert (tmp_path / "precious").stat().st_mode & 0o777 == 0o640


SCRIPT = """
import dataclasses, json, sys
from langbridge.errors import SandboxError
from langbridge.sandbox import kernel
from langbridge.sandbox.host import Sandbox
from langbridge.sandbox.settings import Limits
given = json.loads(sys.argv[1])
if given["without_namespaces"]:
    kernel.never_gain_privileges()
    assert kernel.filter_calls()  # refuses new namespaces, as the settings of some machines do
try:
    limits = Limits(cpu_seconds=5, memory=256 << 20, processes=4, output=100_000)
    sandbox = Sandbox(allowed=True, unisolated=given["unisolated"], limits=limits)
    found = [sandbox.judge(program, given["tests"], "twice") for program in given["programs"]]
    print(json.dumps([[one.verdict, one.output.strip(), one.isolated] for one in found]))
except SandboxError as error:
    print(json.dumps(str(error)))
"""
ALIVE = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(99999)
    os._exit(0)
os.wait()
def twice(x):
    return 2 * x
"""
PROGRAMS = [
    "import threading\ndef twice(x):\n    return 2 * x",
    "import os\nos._exit(0)",
    "import os\nwhile True:\n    os.fork()",
    ALIVE,
    "import os\nos.kill(os.getppid(), 9)\ndef twice(x):\n    return 2 * x",
    "import os\nos.closerange(0, 99)\ndef twice(x):\n    return 2 * x",
    "while True:\n    print('x' * 999)",
    "import os\nprint(dict(os.environ))\ndef twice(x):\n    return 2 * x",
]


def judged(python: str, user: int | None, **given: object) -> object:
    """What a process of another user, or without namespaces, says of programs."""
    arguments = {"tests": TESTS, "programs": PROGRAMS, "unisolated": False, "without_namespaces": False, **given}
    found = subprocess.run(
        [python, "-c", SCRIPT, json.dumps(arguments)],
        user=user,
        group=user,
        extra_groups=[] if user else None,
        env={"PYTHONPATH": str(SOURCES)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def unused() -> int:
    return next(number for number in range(54_000, 60_000) if number not in {entry.pw_uid for entry in pwd.getpwall()})


@pytest.fixture(scope="module")
def ordinary() -> tuple[str, int | None]:
    """(interpreter, user) of an ordinary user: this one, or for root one that nobody is."""
    if os.geteuid() != 0:
        return sys.executable, None
    check = "import sys, langbridge.sandbox.jail; assert sys.version_info >= (3, 11)"
    for python in dict.fromkeys([sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin")]):
        try:
            asked = subprocess.run(
                [str(python), "-c", check], user=unused(), env={"PYTHONPATH": str(SOURCES)}, capture_output=True
            )
        except OSError:
            continue
        if asked.returncode == 0:
            return str(python), unused()
    pytest.skip("no interpreter that an ordinary user may run, or no sources that he may read")


def test_an_ordinary_user_is_isolated_too(ordinary: tuple[str, int | None]) -> None:
    found = judged(*ordinary)
    if isinstance(found, str):
        pytest.skip(found)
    verdicts = ["passed", "died", "raised", "passed", "passed", "died", "output", "passed"]
    assert [verdict for verdict, _, _ in found] == verdicts
    assert all(isolated for _, _, isolated in found)
    assert found[-1][1] == "{}"


def test_without_namespaces_nothing_runs_unless_told(ordinary: tuple[str, int | None]) -> None:
    python, user = ordinary
    refusal = judged(python, user, without_namespaces=True)
    assert "unshare: Operation not permitted" in refusal
    assert "--allow-unisolated-code" in refusal
    found = judged(python, user, without_namespaces=True, unisolated=True)
    # here a program can end its judge; that does not make it pass
    assert [verdict for verdict, _, _ in found] == [
        *("passed", "died", "raised", "passed", "died", "died", "output", "passed")
    ]
    assert not any(isolated for _, _, isolated in found)
    if user is not None:
        assert not [path for path in Path("/proc").iterdir() if path.name.isdigit() and owner(path) == user]


LASTING = """
from langbridge.sandbox import kernel
from langbridge.sandbox.host import Sandbox
kernel.never_gain_privileges()
assert kernel.filter_calls()
sandbox = Sandbox(allowed=True, unisolated=True)
print("ready", flush=True)
program = "import os, time\\nos.setsid()\\nif os.fork():\\n    open('file', 'w')\\ntime.sleep(99999)"
sandbox.judge(program, "def check(candidate): pass", "twice")
"""


def test_a_killed_host_leaves_nothing_without_namespaces_either(ordinary: tuple[str, int | None]) -> None:
    """Whoever keeps the jail clears it away: processes in sessions of their own, and the temporary folder."""
    python, user = ordinary
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if user is not None:
            os.chown(folder, user, user)
        with subprocess.Popen(
            [python, "-c", LASTING],
            user=user,
            group=user,
            extra_groups=[] if user else None,
            env={"PYTHONPATH": str(SOURCES), "TMPDIR": name},
            stdout=subprocess.PIPE,
            cwd="/",
        ) as running:
            assert running.stdout is not None
            running.stdout.readline()
            while not list(folder.glob("*/jail/file")) or len(found := descendants(running.pid)) < 4:
                assert running.poll() is None
            running.kill()
        deadline = time.monotonic() + 60
        while list(folder.iterdir()) or any(owner(Path("/proc", str(process))) != -1 for process in found):
            assert time.monotonic() < deadline, (list(folder.iterdir()), found)


def owner(path: Path) -> int:
    try:
        zombie = ") Z " in (path / "stat").read_text(errors="replace")
        return -1 if zombie else path.stat().st_uid
    except OSError:
        return -1


@pytest.mark.skipif(os.geteuid() != 0, reason="for root")
def test_root_without_namespaces_runs_programs_as_nobody_or_not_at_all() -> None:
    """Without isolation root's programs belong to a user that nobody is; where he cannot read Python, none run."""
    found = judged(sys.executable, None, without_namespaces=True, unisolated=True, programs=[*PROGRAMS[:4], WHO])
    if isinstance(found, str):
        assert "not even without isolation" in found
        python = shutil.which("python3", path="/usr/bin")
        if python is None:
            pytest.skip("no other interpreter")
        found = judged(python, None, without_namespaces=True, unisolated=True, programs=[*PROGRAMS[:4], WHO])
    assert [verdict for verdict, _, _ in found] == ["passed", "died", "raised", "passed", "passed"]
    user, others = found[-1][1].split()
    assert int(user) >= 1000
    assert others == "PermissionError"


WHO = f"""
import os
try:
    os.kill({os.getpid()}, 0)
    print(os.getuid(), "reached")
except OSError as error:
    print(os.getuid(), type(error).__name__)
def twice(x):
    return 2 * x
"""


def test_known_solutions_pass_and_empty_ones_do_not(sandbox: Sandbox, benchmarks: Path) -> None:
    """HumanEval's own solutions are the oracle, one of each eight and those whose tests use functions of the prompt."""
    with gzip.open(benchmarks / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    chosen = [row for number, row in enumerate(rows) if number % 8 == 0 or number in (32, 38, 50, 53)]
    for row in chosen:
        right = sandbox.judge(
            row["prompt"] + row["canonical_solution"], row["test"], row["entry_point"], setup=row["prompt"]
        )
        assert right.passed, (row["task_id"], right)
    for row in chosen[::4]:
        empty = sandbox.judge(row["prompt"] + "    pass\n", row["test"], row["entry_point"], setup=row["prompt"])
        assert empty.verdict in ("wrong", "raised"), (row["task_id"], empty)
