"""A bridge that starts from another run's."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from conftest import build
from langbridge.checkpoint import LangBridge, read_config
from langbridge.config import BridgeConfig, Recipe
from langbridge.data import Example
from langbridge.errors import CheckpointError, ConfigError
from langbridge.train import train
from langbridge.train.start import start

EXAMPLES = [Example(source="a cat", target="a cat")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    model = build()
    torch.manual_seed(1)
    for parameter in model.bridge.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_the_bridge_is_the_other_runs(run: Path) -> None:
    model = build(bridge=BridgeConfig(start=str(run)))
    other = build()
    assert "start: the bridge of" in start(model, EXAMPLES)
    torch.manual_seed(1)
    for parameter in other.bridge.parameters():
        torch.nn.init.normal_(parameter)
    for found, wanted in zip(model.bridge.parameters(), other.bridge.parameters(), strict=True):
        assert torch.equal(found, wanted)


def changed(model: LangBridge, recipe: Recipe) -> LangBridge:
    model.recipe = recipe
    return model


def test_a_bridge_between_other_models_or_layers_is_refused(run: Path) -> None:
    model = build(bridge=BridgeConfig(start=str(run)))
    recipe = model.recipe
    other_lm = dataclasses.replace(recipe.language_model, name="another-lm")
    with pytest.raises(CheckpointError, match="trained with language model tiny-lm, but this recipe has another-lm"):
        start(changed(model, dataclasses.replace(recipe, language_model=other_lm)), EXAMPLES)
    other_layers = dataclasses.replace(recipe.bridge, layers=(1,))
    with pytest.raises(CheckpointError, match=r"bridge\.layers last"):
        start(changed(model, dataclasses.replace(recipe, bridge=other_layers)), EXAMPLES)
    missing = dataclasses.replace(recipe.bridge, start="runs/absent")
    with pytest.raises(CheckpointError, match="no such run folder"):
        start(changed(model, dataclasses.replace(recipe, bridge=missing)), EXAMPLES)
    with pytest.raises(ConfigError, match=r"bridge\.start is empty"):
        BridgeConfig(start=" ")


def test_training_goes_on_from_another_run(saved: dict[str, Path], tmp_path: Path) -> None:
    """One step at a rate of nearly nothing leaves the other run's bridge where it was; a warm start would not."""
    data = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"source": f"tea {i}", "target": f"tea {i}"}) + "\n" for i in range(12)]
    data.write_text("".join(lines), encoding="utf-8")
    fields = {
        "encoder": {"name": str(saved["bert"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": "ask: {prompt}\nsay: "},
        "data": {"train": str(data), "validation": 2},
        "warm_start": {"sentences": 10, "sharpen": 0},
        "training": {"steps": 1, "batch_size": 4, "warmup": 0.0, "precision": "fp32"},
    }
    first = train(Recipe.of(fields, "test"), tmp_path / "first")
    fields["bridge"] = {"start": str(tmp_path / "first")}
    fields["training"] = {**fields["training"], "learning_rate": 1e-9, "seed": 7}
    second = train(Recipe.of(fields, "test"), tmp_path / "second")
    for name, value in second.trained().items():
        assert torch.allclose(value, first.trained()[name], atol=1e-6), name
    assert read_config(tmp_path / "second").bridge.start == str(tmp_path / "first")
