"""The studies run, go on where they stopped, and their tables say what the cells say."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from langbridge.config import Recipe


@pytest.fixture(scope="module")
def bridges() -> ModuleType:
    path = Path(__file__).parent.parent / "studies" / "bridges.py"
    spec = importlib.util.spec_from_file_location("bridges", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def recipe(saved: dict[str, Path], tmp_path: Path) -> Path:
    data = tmp_path / "pairs.jsonl"
    texts = [f"{word} is number {i}." for i in range(6) for word in ("tea", "rain", "a cat", "snow")]
    data.write_text("".join(json.dumps({"source": text, "target": text}) + "\n" for text in texts), encoding="utf-8")
    fields = {
        "encoder": {"name": str(saved["bert"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": "ask: {prompt}\nsay: "},
        "data": {"train": str(data), "validation": 4},
        "training": {"precision": "fp32"},
    }
    Recipe.of(fields, "test").write(tmp_path / "tiny.yaml")
    return tmp_path / "tiny.yaml"


def test_a_study_goes_on_where_it_stopped(bridges: ModuleType, recipe: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    command = ["--quick", "--recipe", str(recipe), "--work", str(work)]
    bridges.main(command)
    path = work / "quick" / "result" / "result.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert list(whole["cells"]) == ["linear last 1", "resampler mix 1"]
    assert set(whole["cells"]["linear last 1"]["development"]) == {"deu", "swh", "tel", "kat"}
    assert not set(whole["cells"]["linear last 1"]["test"]) & {"deu", "swh", "tel", "kat", "eng"}
    lines = (work / "quick" / "result" / "result.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == ["| bridge", "| linear", "| resampler"]
    assert [folder.name for folder in (work / "quick").iterdir()] == ["result"]  # the runs are gone
    kept = whole["cells"].pop("resampler mix 1")
    whole["cells"]["linear last 1"]["parameters"] = 12345
    path.write_text(json.dumps(whole), encoding="utf-8")
    bridges.main(command)
    again = json.loads(path.read_text(encoding="utf-8"))
    assert again["cells"]["linear last 1"]["parameters"] == 12345  # not made anew
    assert {**again["cells"]["resampler mix 1"], "results": 0} == {**kept, "results": 0}  # but for the minutes it took
    path.write_text(json.dumps({**again, "setup": {}}), encoding="utf-8")
    with pytest.raises(SystemExit, match="another set-up"):
        bridges.main(command)


def test_an_interrupted_training_is_gone_on_with(bridges: ModuleType, recipe: Path, tmp_path: Path) -> None:
    read = bridges.options(["--recipe", str(recipe), "--steps", "8", "--work", str(tmp_path)])
    settings = bridges.recipe_of("mlp-1 last", 1, read)
    whole = bridges.trained(settings, tmp_path / "run")
    for name in ("bridge.safetensors", "langbridge.json", "checkpoint-8/trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    first = (tmp_path / "run" / "checkpoint-6" / "trainer_state.json").stat().st_mtime_ns
    again = bridges.trained(settings, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint-6" / "trainer_state.json").stat().st_mtime_ns == first
    assert all((value == again.trained()[name]).all() for name, value in whole.trained().items())


def test_the_table_compares_seed_by_seed(bridges: ModuleType) -> None:
    read = bridges.options([])
    assert len(bridges.SETTINGS) == 8
    cells = {}
    for setting, shift in (("linear last", 0.0), ("mlp-2 mix", 0.05)):
        for seed, level in ((1, 0.5), (2, 0.6), (3, 0.7)):
            ratios = {"deu": level + shift + 0.1, "swh": level + shift - 0.1}
            cells[f"{setting} {seed}"] = {
                "development": ratios,
                "test": {"fra": level - shift},
                "parameters": 1000,
                "english_nll_development": 0.8,
            }
    text = bridges.table(cells, read)
    assert "| linear | last | 1,000 | 3 | 0.600 ± 0.248 | 0.600 ± 0.248 | 0.800 |" in text
    assert "| mlp-2 | mix | 1,000 | 3 | 0.650 ± 0.248 (+0.050 ± 0.000) | 0.550 ± 0.248 (-0.050 ± 0.000) |" in text
    assert "Best on the development languages: `mlp-2 mix` (0.650)" in text


def test_unknown_settings_are_named(bridges: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bridges.options(["--only", "golden last"])
    assert "no setting 'golden last'; known: linear last, mlp-1 last" in capsys.readouterr().err
