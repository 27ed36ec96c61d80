"""Recipes reject nonsense and name it."""

from pathlib import Path

import pytest

from langbridge.config import Recipe
from langbridge.errors import ConfigError
from langbridge.synthesize import Openers

MINIMAL = "encoder: {name: embedded:e5-small}\nlanguage_model: {name: embedded:smollm2-135m}\n"


def read(tmp_path: Path, text: str = MINIMAL, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return Recipe.read(path, overrides)


def test_written_is_read_back(tmp_path: Path) -> None:
    recipe = read(
        tmp_path, MINIMAL, "training.report_to=[tensorboard]", "training.learning_rate=3e-4", "bridge.layers=[6, 12]"
    )
    assert recipe.bridge.layers == (6, 12)
    assert recipe.training.learning_rate == 3e-4
    recipe.write(tmp_path / "again.yaml")
    assert Recipe.read(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (("training.step=5",), "did you mean 'steps'"),
        (("trainings.steps=5",), "did you mean 'training'"),
        (("training.steps=0",), "steps must be positive"),
        (("training.steps=many",), "training.steps must be int, found 'many'"),
        (("training.steps=true",), "must be int"),
        (("training.steps",), "section.field=value"),
        (("training.batch_size=3", "training.accumulate=4"), "is more than"),
        (("training.token_budget=0",), "token_budget must be positive"),
        (("encoder.dtype=int3",), "float32"),
        (("encoder.name.x=1",), "is a value"),
        (("bridge.kind=golden",), "unknown; known: linear, mlp, resampler"),
        (("bridge.layers=[]",), "last, mix or a list"),
        (("bridge.layers=first",), "last, mix or a list"),
        (("bridge.layers=[last]",), "bridge.layers must be a list of int"),
        (("bridge.layers=3",), "must be str or list, found 3"),
        (("bridge.hidden_layers=3",), "must be 1 or 2"),
        (("bridge.dropout=1",), "lie in"),
        (("training.precision=fp8",), "auto, fp32, bf16"),
        (("data.shuffle_words=2",), "between 0 and 1"),
        (("warm_start.ridge=0",), "ridge must be positive"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, overrides: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read(tmp_path, MINIMAL, *overrides)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must be a mapping"),
        ("encoder: {}\nlanguage_model: {name: x}\n", "name is missing"),
        ("a: [", "not YAML"),
        ("encoder: 3\nlanguage_model: {name: x}\n", "mapping"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read(tmp_path, text)


def test_shipped_recipes_are_valid() -> None:
    files = sorted((Path(__file__).parent.parent / "recipes").rglob("*.yaml"))
    openers = [path for path in files if path.parent.name == "openers"]
    launch = [path for path in files if path.parent.name == "launch"]  # of accelerate; tests/train/test_processes.py
    recipes = [path for path in files if path not in openers + launch]
    assert openers
    assert recipes
    for path in recipes:
        Recipe.read(path)
    for path in openers:
        Openers.read(path)
