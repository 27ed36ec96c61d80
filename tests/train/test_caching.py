"""Runs that read encoder states from disk."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from test_train import recipe as usual

from langbridge.config import Recipe
from langbridge.data.caches import surveyed
from langbridge.errors import ConfigError
from langbridge.train.run import train


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGBRIDGE_HOME", str(tmp_path / "home"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    records = [{"source": f"{word} is {i}.", "target": f"{word} is {i}."} for i in range(9) for word in ("tea", "snow")]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def recipe(saved: dict[str, Path], data: Path, *, noise: float = 0.0, **training: object) -> Recipe:
    fields = dataclasses.asdict(usual(saved, data, **training))
    fields["data"] |= {"cut_words": noise, "shuffle_words": noise}
    return Recipe.of(fields, "test")


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_run_from_the_cache_is_the_run(saved: dict[str, Path], data: Path, tmp_path: Path, noise: float) -> None:
    """Also where words are cut and moved anew in each epoch: every look of a sentence is there."""
    plain = train(recipe(saved, data, noise=noise), tmp_path / "plain")
    first = train(recipe(saved, data, noise=noise, cache_states=True), tmp_path / "first")
    (cache,) = surveyed()
    size = sum(path.stat().st_size for path in cache.folder.iterdir())
    second = train(recipe(saved, data, noise=noise, cache_states=True), tmp_path / "second")
    weights = [model.bridge.linear.weight.detach() for model in (plain, first, second)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1])  # rounded to half precision
    assert torch.allclose(weights[0], weights[1], atol=2e-2)
    assert float(torch.nn.functional.cosine_similarity(weights[0].flatten(), weights[1].flatten(), dim=0)) > 0.999
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) == size


def test_states_of_a_learning_encoder_are_not_cached(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    fields = dataclasses.asdict(recipe(saved, data, cache_states=True)) | {"policy": {"encoder": "trained"}}
    with pytest.raises(ConfigError, match="the encoder learns"):
        train(Recipe.of(fields, "test"), tmp_path / "run")
