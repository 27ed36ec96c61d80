"""Run folders: what is saved comes back, what is broken is named."""

import json
from pathlib import Path

import pytest
import torch

import langbridge
from conftest import TEMPLATE
from langbridge.checkpoint import LangBridge, run_folder
from langbridge.config import Recipe
from langbridge.data import Example
from langbridge.errors import CheckpointError, ConfigError
from langbridge.pretrained import fast_type
from langbridge.pretrained.fast import seconds


@pytest.fixture
def run(saved: dict[str, Path], tmp_path: Path) -> Path:
    model = LangBridge.from_recipe(
        Recipe.of(
            {
                "encoder": {"name": str(saved["bert"])},
                "language_model": {"name": str(saved["gpt2"])},
                "prompt": {"template": TEMPLATE},
            },
            "test",
        )
    )
    model.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_saved_is_loaded(run: Path) -> None:
    first, second = (LangBridge.from_pretrained(run).eval() for _ in range(2))
    batch = first.collate([Example(source="hello", target="you")])
    with torch.no_grad():
        assert torch.equal(first.log_likelihood(batch), second.log_likelihood(batch))
    assert second.template.text == TEMPLATE
    assert second.lm_tokenizer("abc").input_ids == first.lm_tokenizer("abc").input_ids


def test_frozen_models_are_not_saved(run: Path) -> None:
    assert (run / "bridge.safetensors").stat().st_size < 10_000
    assert not list(run.rglob("*.bin"))


@pytest.mark.parametrize("name", ["config.yaml", "langbridge.json", "bridge.safetensors"])
def test_truncated_and_missing_files_are_named(run: Path, name: str) -> None:
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=name):
        LangBridge.from_pretrained(run)
    (run / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        LangBridge.from_pretrained(run)


def test_a_recipe_cut_between_two_fields_is_refused(run: Path) -> None:
    lines = (run / "config.yaml").read_text().splitlines(keepends=True)
    (run / "config.yaml").write_text("".join(lines[:-3]))
    with pytest.raises(CheckpointError, match="it was cut"):
        LangBridge.from_pretrained(run)


def test_a_run_of_an_earlier_version_loads(run: Path) -> None:
    """Fields that came later have their defaults."""
    text = (run / "config.yaml").read_text()
    assert "  streaming: false\n" in text
    (run / "config.yaml").write_text(text.replace("  streaming: false\n", ""))
    assert not LangBridge.from_pretrained(run).recipe.data.streaming


def test_models_of_other_sizes_are_refused(run: Path) -> None:
    metadata = json.loads((run / "langbridge.json").read_text())
    (run / "langbridge.json").write_text(json.dumps(metadata | {"lm_dim": 9}))
    with pytest.raises(CheckpointError, match="sizes"):
        LangBridge.from_pretrained(run)


def test_foreign_weights_are_refused(run: Path) -> None:
    model = LangBridge.from_pretrained(run)
    with pytest.raises(CheckpointError, match="not a bridge for this"):
        model.load_trained({"bridge.linear.weight": torch.zeros(2, 2)})


def test_unknown_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such run folder"):
        run_folder(tmp_path / "absent")


def test_a_model_card_tells_how_to_use_it(run: Path) -> None:
    card = (run / "README.md").read_text()
    assert "langbridge.load" in card
    assert "English alone" in card


def test_push_to_hub_uploads_the_run_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client is replaced by one that keeps what it is given; what it got is a run folder again."""
    import shutil

    import huggingface_hub

    class Hub:
        def __init__(self, token: str | None = None) -> None:
            self.folder = run.parent / "hub"

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            assert repo_id == "me/bridge"
            assert exist_ok

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            shutil.copytree(folder_path, self.folder)
            return "done"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    model = LangBridge.from_pretrained(run)
    assert model.push_to_hub("me/bridge") == "done"
    again = LangBridge.from_pretrained(run.parent / "hub")
    assert torch.equal(again.bridge.linear.weight, model.bridge.linear.weight)


@pytest.mark.parametrize(("slow", "chosen"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_auto_is_the_type_that_is_fast_here(run: Path, monkeypatch: pytest.MonkeyPatch, slow: str, chosen: str) -> None:
    taken = {torch.float32: 1.0, torch.bfloat16: 1.0, getattr(torch, slow): 2.0}
    monkeypatch.setattr("langbridge.pretrained.fast.seconds", taken.__getitem__)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    fast_type.cache_clear()
    model = langbridge.load(run, dtype="auto").model
    fast_type.cache_clear()
    assert model.language_model.dtype == getattr(torch, chosen)
    assert model.recipe.language_model.dtype == model.recipe.encoder.dtype == chosen
    assert {p.dtype for p in model.bridge.parameters()} == {torch.float32}


def test_products_are_timed_in_both_types() -> None:
    assert all(seconds(dtype) > 0 for dtype in (torch.float32, torch.bfloat16))


def test_another_dtype_is_that_of_both_frozen_models_only(run: Path) -> None:
    """A run made in fp32 serves in bf16: the bridge keeps its type, and scores stay close."""
    exact, rounded = langbridge.load(run), langbridge.load(run, dtype="bfloat16")
    assert {p.dtype for p in rounded.model.language_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in rounded.model.encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in rounded.model.bridge.parameters()} == {torch.float32}
    scores = [generator.score("who is it?", ["me", "you"]) for generator in (exact, rounded)]
    assert scores[0] == pytest.approx(scores[1], rel=0.02)
    with pytest.raises(ConfigError, match="int8"):
        langbridge.load(run, dtype="int8")
