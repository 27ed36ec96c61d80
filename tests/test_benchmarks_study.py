"""The study that makes the full tables: runs on a tiny pair, goes on where it stopped, and writes all tables."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from conftest import TEMPLATE
from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe


@pytest.fixture(scope="module")
def study() -> ModuleType:
    path = Path(__file__).parent.parent / "studies" / "benchmarks.py"
    spec = importlib.util.spec_from_file_location("benchmarks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("xcopa", "tatoeba"):
        (folder / name).mkdir(parents=True)
    row = {"premise": "p", "choice1": "x", "choice2": "y", "question": "cause", "label": 1}
    for language in ("it", "et", "sw"):
        (folder / "xcopa" / f"test.{language}.jsonl").write_text(f"{json.dumps(row)}\n" * 6, encoding="utf-8")
    for language in ("ita", "est", "swh"):
        for part in (language, "eng"):
            text = "".join(f"{part} {i}\n" for i in range(6))
            (folder / "tatoeba" / f"{language}-eng.{part}").write_text(text, encoding="utf-8")
    return folder


def test_the_tables_are_made_and_gone_on_with(
    study: ModuleType, saved: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    fields = {
        "encoder": {"name": str(saved["bert"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": TEMPLATE},
    }
    run = tmp_path / "tiny"
    LangBridge.from_recipe(Recipe.of(fields, "test")).save_pretrained(run)
    command = [
        "--run",
        str(run),
        "--data",
        str(data),
        "--task",
        "xcopa,transfer",
        "--quick",
        "--work",
        str(tmp_path / "w"),
    ]
    study.main(command)
    out = tmp_path / "w" / "quick-results" / "tiny"
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "tables.md", "transfer.json", "xcopa.json"]
    found = json.loads((out / "xcopa.json").read_text(encoding="utf-8"))
    assert {code: row["examples"] for code, row in found["languages"].items()} == {"est": 4, "ita": 4}
    assert found["systems"] == ["bridge", "plain"]
    assert "swh" not in json.loads((out / "transfer.json").read_text(encoding="utf-8"))["languages"]  # development
    tables = (out / "tables.md").read_text(encoding="utf-8")
    assert "## xcopa: accuracy" in tables
    assert "## transfer" in tables
    before = (tmp_path / "w" / "tiny" / "transfer.json").stat().st_mtime_ns
    study.main(command)
    assert (tmp_path / "w" / "tiny" / "transfer.json").stat().st_mtime_ns == before
    assert (out / "tables.md").read_text(encoding="utf-8") == tables


def test_unknown_tasks_are_named(study: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study.options(["--data", "x", "--task", "chess"])
    assert "no task 'chess' here; known: xcopa, sib200, transfer" in capsys.readouterr().err
