"""HumanEval: what is asked, how answers become programs, and that these run only when they may."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from langbridge.checkpoint import LangBridge
from langbridge.errors import SandboxError
from langbridge.evaluate.run import Request, answer
from langbridge.evaluate.systems import BRIDGE, System
from langbridge.evaluate.task import Output
from langbridge.evaluate.tasks import open_task
from langbridge.evaluate.tasks.humaneval import indented
from langbridge.generate import BridgedGenerator
from langbridge.sandbox.host import Sandbox
from langbridge.sandbox.settings import Limits

LANGUAGES = ["ben", "eng", "pan", "swh", "tel", "urd"]
PROMPT = 'def half(x):\n    return x / 2\n\ndef twice(x):\n    """Double.\n    """\n'
TESTS = "def check(candidate):\n    assert half(candidate(3)) == 3 and twice(4) == 8"
ROW = {"task_id": "Made/0", "prompt": PROMPT, "entry_point": "twice", "test": TESTS}
ROW["canonical_solution"] = "    return 2 * x\n"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox(allowed=True, limits=Limits(cpu_seconds=10, wall_seconds=120.0))
    except SandboxError as error:
        pytest.skip(f"no jail can be built here: {error}")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One made-up function; its anonymous prompt is called `func` and has lost its last line's end."""
    folder = tmp_path / "humaneval"
    (folder / "mt").mkdir(parents=True)
    with gzip.open(folder / "HumanEval.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(ROW) + "\n")
    (folder / "mt" / "humaneval_english.json").write_text(json.dumps(ROW))
    anonymous = {**ROW, "prompt": PROMPT.replace("twice", "func").rstrip(), "entry_point": "func"}
    (folder / "mt" / "humaneval_english_anon.json").write_text(json.dumps(anonymous))
    return tmp_path


def test_nothing_is_opened_without_leave(data: Path) -> None:
    with pytest.raises(SandboxError, match="--allow-code-execution"):
        open_task("humaneval", data)
    command = [
        sys.executable,
        "-m",
        "langbridge",
        "evaluate",
        "absent",
        "--task",
        "humaneval",
        "--out",
        str(data / "o"),
    ]
    found = subprocess.run([*command, "--data", str(data)], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "--allow-code-execution" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_prompts_are_tabbed_and_bare(sandbox: Sandbox, data: Path) -> None:
    (example,) = open_task("humaneval", data, sandbox=sandbox).examples("eng")
    assert example.prompt == 'def half(x):\n\treturn x / 2\n\ndef twice(x):\n\t"""Double.\n\t"""'
    sampling = open_task("humaneval", data, sandbox=sandbox).sampling("eng")
    assert sampling.stop == ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "```")


@pytest.mark.parametrize(
    ("text", "exact", "mended"),
    [
        ("    return 2 * x", True, True),
        ("\n    return 2 * x\n", True, True),
        ("\n\treturn 2 * x", True, True),  # as the prompt is tabbed
        ("\tif x:\n\t\treturn 2 * x\n\treturn 0", True, True),
        ("   if x:\n        return 2 * x\n    return 0", False, True),  # a blank was lost
        ("return 2 * x", False, True),
        ("def func(x):\n    return 2 * x\ntwice = func", True, True),  # all of it again
        ("    return x", False, False),
        ("", False, False),
        ("    import os\n    os._exit(0)", False, False),
    ],
)
@pytest.mark.parametrize("name", ["humaneval", "humaneval_anon"])
def test_answers_become_programs(sandbox: Sandbox, data: Path, name: str, text: str, exact: bool, mended: bool) -> None:
    task = open_task(name, data, sandbox=sandbox)
    (example,) = task.examples("eng")
    grades = task.grade(example, Output(text=text))
    assert (grades["exact"].right, grades["indented"].right) == (exact, mended), grades
    assert grades["exact"].answer is not None
    assert grades["exact"].answer.startswith("passed") == exact


def test_a_first_line_is_indented_only_where_it_is_flat() -> None:
    for text in ("    a\n    b", "\n    a", "def f():\n    a", "from a import b", "", "        a"):
        assert indented(text) == text
    assert indented("a\nb") == "    a\nb"
    assert indented("   a\n    b") == "    a\n    b"


def test_records_tell_how_programs_ended(sandbox: Sandbox, data: Path, one: LangBridge) -> None:
    task = open_task("humaneval", data, sandbox=sandbox)
    request = Request(languages=("eng",), max_new_tokens=5)
    found = answer(task, System(BRIDGE, BridgedGenerator(one)), request, data / "out", {})
    (record,) = found.records["eng"]
    assert set(record["grades"]) == {"exact", "indented"}
    assert record["grades"]["exact"]["right"] is False
    assert record["grades"]["exact"]["answer"].split(":")[0] in ("wrong", "raised")


def test_the_same_answer_leaves_the_same_record(sandbox: Sandbox, data: Path) -> None:
    """Addresses, which differ from run to run, are left out of what an exception says."""
    task = open_task("humaneval", data, sandbox=sandbox)
    (example,) = task.examples("eng")
    grade = task.grade(example, Output(text="    raise ValueError(object())"))["exact"]
    assert grade.answer == "raised: ValueError: <object object at 0x>"


@pytest.mark.parametrize("name", ["humaneval", "humaneval_anon"])
def test_published_data_is_read_whole(sandbox: Sandbox, benchmarks: Path, name: str) -> None:
    """The solutions that come with the translations pass under the rule `exact`; of one item the prompt is damaged."""
    task = open_task(name, benchmarks, sandbox=sandbox)
    assert task.languages() == LANGUAGES
    for language in LANGUAGES:
        examples = task.examples(language)
        assert [example.id for example in examples] == [f"HumanEval/{number}" for number in range(164)]
        for example in (examples[10], examples[38], examples[106]):
            grade = task.grade(example, Output(text=example.reference))["exact"]
            damaged = name == "humaneval_anon" and example.id == "HumanEval/106"  # "defunc func(n):"
            assert grade.right != damaged, (language, example.id, grade)
