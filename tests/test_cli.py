"""The command line as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def cli(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "langbridge", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=200, check=False)


def test_help_lists_the_verbs_and_needs_no_torch() -> None:
    found = cli("--help")
    assert found.returncode == 0
    for verb in ("train", "generate", "chat", "evaluate", "report", "synthesize", "models", "cache"):
        assert verb in found.stdout
    code = "import sys, langbridge.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("train", "absent.yaml", "--out", "x"), "absent.yaml: no such recipe"),
        (("generate", "runs/absent", "--prompt", "x"), "no such run folder"),
        (("evaluate", "embedded", "--task", "chess"), "no task named 'chess'"),
        (("evaluate", "embedded", "--task", "facts", "--languages", "klingon"), "no data for language 'klingon'"),
        (("evaluate", "embedded", "--task", "transfer", "--limit", "1"), "at least 2 sentences"),
        (("models", "path", "embedded:absent"), "no model named"),
        (("synthesize", "--out", "x", "--n", "0"), "must be positive"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments: tuple[str, ...], complaint: str) -> None:
    found = cli(*arguments)
    assert found.returncode == 2
    assert complaint in found.stderr
    assert "Traceback" not in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_generate_from_options_stdin_and_files(run: Path, tmp_path: Path) -> None:
    by_option = cli("generate", str(run), "--prompt", "one", "--prompt", "two", "--max-new-tokens", "4")
    assert by_option.returncode == 0, by_option.stderr
    assert by_option.stdout == cli("generate", str(run), "--max-new-tokens", "4", stdin="one\ntwo\n").stdout
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    out = tmp_path / "answers.jsonl"
    found = cli("generate", str(run), "--input", str(prompts), "--output", str(out), "--max-new-tokens", "4")
    assert found.returncode == 0, found.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["prompt"] for record in records] == ["one", "two"]
    assert [record["completion"] for record in records] == by_option.stdout.splitlines()


def test_bad_input_files_are_named(run: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n{"prompt": \n')
    found = cli("generate", str(run), "--input", str(prompts))
    assert found.returncode == 2
    assert "line 2" in found.stderr
    assert "no prompt" in cli("generate", str(run), stdin="\n").stderr


def test_chat_survives_a_bad_line(run: Path) -> None:
    found = cli("chat", str(run), "--max-new-tokens", "3", stdin="hi\n" + "x" * 300 + "\nho\n\n")
    assert found.returncode == 0, found.stderr
    assert found.stdout.count(">") == 4
    assert "more than the 200" in found.stderr


def test_explain_prints_a_table(run: Path) -> None:
    found = cli("generate", str(run), "--prompt", "hi", "--explain", "--max-new-tokens", "2")
    assert found.returncode == 0, found.stderr
    assert "(boundary)" in found.stdout


def test_models_list() -> None:
    assert "embedded:e5-small" in cli("models", "list").stdout
