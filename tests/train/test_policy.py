"""What trains is what the policy says, at its own rate; what is saved is what trains."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe
from langbridge.data import Example
from langbridge.errors import CheckpointError, ConfigError
from langbridge.generate import BridgedGenerator, PlainGenerator
from langbridge.train.optimizer import groups
from langbridge.train.run import train

LORA = {"parts": ["encoder", "language_model"], "rank": 2, "alpha": 4, "learning_rate": 0.05}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "code.jsonl"
    records = [{"source": f"if x{i}:\n\ty = {i}", "target": f"it is {i}."} for i in range(30)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def recipe(saved: dict[str, Path], data: Path, /, **sections: dict[str, Any]) -> Recipe:
    fields: dict[str, Any] = {
        "encoder": {"name": str(saved["mt5"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": "ask: {prompt}\nsay: "},
        "data": {"train": str(data), "validation": 4},
        "warm_start": {"sentences": 10},
        "training": {"steps": 4, "batch_size": 4, "save_every": 2, "evaluate_every": 4, "precision": "fp32"},
    }
    for name, section in sections.items():
        fields[name] = fields.get(name, {}) | section
    return Recipe.of(fields, "test")


WHITESPACE = {"encoder": {"whitespace": True}, "policy": {"whitespace_rate": 0.01}}
TRAINED = {"encoder": {"whitespace": True}, "policy": {"encoder": "trained", "encoder_rate": 0.01}}


def untouched(settings: Recipe) -> dict[str, torch.Tensor]:
    torch.manual_seed(settings.training.seed)
    return {name: value.clone() for name, value in LangBridge.from_recipe(settings).state_dict().items()}


def is_loaded_again(model: LangBridge, folder: Path) -> None:
    again = LangBridge.from_pretrained(folder).eval()
    batch = model.eval().collate([Example(source="if tea:\n\tgood", target="yes"), Example(source="x", target="no")])
    with torch.no_grad():
        assert torch.equal(again.log_likelihood(batch), model.log_likelihood(batch))


def test_whitespace_embeddings_train_and_nothing_else_of_the_encoder(
    saved: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    settings = recipe(saved, data, **WHITESPACE)
    assert settings.encoder_policy == "whitespace"  # the default, once there are such tokens
    before = untouched(settings)
    model = train(settings, tmp_path / "run")
    rows = "encoder.model.embed_tokens.rows"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != (name.startswith("bridge.") or name == rows), name
    moved = (model.state_dict()[rows] - before[rows]).abs().sum(dim=1)
    tab = model.encoder_tokenizer.convert_tokens_to_ids("\t")
    tokens = model.encoder.model.get_input_embeddings().ids.tolist()
    assert {token: bool(by > 0) for token, by in zip(tokens, moved.tolist(), strict=True)} == {
        token: token == tab for token in tokens
    }  # the data has tabs, and no other whitespace that this tokenizer drops
    assert set(load_file(tmp_path / "run" / "bridge.safetensors")) == {
        *(name for name in before if name.startswith("bridge.")),
        rows,
    }
    is_loaded_again(model, tmp_path / "run")


def test_a_trained_encoder_is_saved_and_loaded(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    settings = recipe(saved, data, **TRAINED)
    before = untouched(settings)
    model = train(settings, tmp_path / "run")
    for name, value in model.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved or not name.startswith("encoder.model.block."), name
        assert not (moved and name.startswith("language_model.")), name
    kept = load_file(tmp_path / "run" / "bridge.safetensors")
    assert {name.split(".")[0] for name in kept} == {"bridge", "encoder"}
    assert "trained too" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    is_loaded_again(model, tmp_path / "run")


def test_a_trained_encoder_resumes_to_the_bit(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    settings = recipe(saved, data, **TRAINED)
    whole = train(settings, tmp_path / "run")
    for name in ("bridge.safetensors", "langbridge.json", "checkpoint-4/trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    resumed = train(settings, tmp_path / "run", resume=True)
    assert all(torch.equal(value, resumed.trained()[name]) for name, value in whole.trained().items())


def test_each_part_has_its_own_rate_and_decay(saved: dict[str, Path], data: Path) -> None:
    settings = recipe(
        saved,
        data,
        encoder={"whitespace": True},
        policy={"encoder": "trained", "encoder_rate": 1e-5, "encoder_decay": 0.2, "whitespace_rate": 3e-4},
        lora={**LORA, "parts": ["language_model"], "learning_rate": 5e-4, "weight_decay": 0.3},
        training={"learning_rate": 2e-3, "weight_decay": 0.4},
    )
    model = LangBridge.from_recipe(settings)
    found = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups(model):
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found["bridge.linear.weight"] == (2e-3, 0.4)
    assert found["bridge.boundary"] == (2e-3, 0.0)
    assert found["encoder.model.embed_tokens.rows"] == (3e-4, 0.0)
    assert found["encoder.model.embed_tokens.base.weight"] == (1e-5, 0.2)
    assert found["encoder.model.final_layer_norm.weight"] == (1e-5, 0.0)
    adapters = {found[name] for name in found if name.startswith("language_model.")}
    assert adapters == {(5e-4, 0.3)}


def test_a_rate_is_that_of_its_part_alone(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """A step of Adam is as long as its rate: the encoder moved by 1e-6 a step, the bridge by 1e-3."""
    settings = recipe(saved, data, policy={"encoder": "trained", "encoder_rate": 1e-6, "encoder_decay": 0.0})
    start = untouched(settings)
    model = train(settings, tmp_path / "run")
    for name, value in model.state_dict().items():
        if name.startswith("encoder."):
            assert float((value - start[name]).abs().max()) < 4.1e-6, name


def test_adapters_train_alone_and_the_plain_lm_stays(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    settings = recipe(saved, data, lora=LORA)
    plain = recipe(saved, data)
    torch.manual_seed(0)
    with_adapters = LangBridge.from_recipe(settings).eval()
    without = LangBridge.from_recipe(plain).eval()
    without.load_trained({name: v for name, v in with_adapters.trained().items() if name.startswith("bridge.")})
    batch = without.collate([Example(source="hello", target="you")])
    with torch.no_grad():  # they start as nothing
        assert torch.equal(with_adapters.log_likelihood(batch), without.log_likelihood(batch))
    model = train(settings, tmp_path / "run")
    kept = load_file(tmp_path / "run" / "bridge.safetensors")
    assert all(name.startswith("bridge.") or ".lora_" in name for name in kept)
    assert {name.split(".")[0] for name in kept} == {"bridge", "encoder", "language_model"}
    assert any(bool(value.any()) for name, value in kept.items() if ".lora_B." in name)
    is_loaded_again(model, tmp_path / "run")
    examples = [Example(source="hello", target="you")]
    assert PlainGenerator(model).scores(examples) == PlainGenerator(without).scores(examples)
    assert PlainGenerator(model).generate(["hello"]) == PlainGenerator(without).generate(["hello"])
    alone = recipe(saved, data, lora={**LORA, "parts": ["encoder"]})
    assert [n for n in LangBridge.from_recipe(alone).trained() if n.startswith("language_model.")] == []
    before = BridgedGenerator(model).scores(examples)
    PlainGenerator(model).scores(examples)
    assert BridgedGenerator(model).scores(examples) == before  # adapters are on again


def test_weights_of_another_policy_are_refused(saved: dict[str, Path], data: Path) -> None:
    model = LangBridge.from_recipe(recipe(saved, data))
    with pytest.raises(CheckpointError, match=r"encoder\.model.* wanted nothing"):
        model.load_trained(LangBridge.from_recipe(recipe(saved, data, **TRAINED)).trained())


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"policy": {"encoder": "whitespace"}}, "encoder.whitespace is false"),
        ({"policy": {"encoder": "thawed"}}, "not one of auto, frozen, whitespace, trained"),
        ({"policy": {"encoder": "trained"}, "encoder": {"dtype": "bfloat16"}}, "needs encoder.dtype float32"),
        ({"policy": {"encoder": "trained"}, "encoder": {"quantization": "8bit"}}, "no quantization"),
        ({"policy": {"encoder": "trained"}, "lora": LORA}, "trains all of it"),
        ({"policy": {"encoder_rate": 0}}, "encoder_rate must be positive"),
        ({"policy": {"encoder_decay": -1}}, "must not be negative"),
        ({"encoder": {"whitespace": True}, "data": {"cut_words": 0.1}}, "exclude each other"),
        ({"lora": {"parts": ["bridge"]}}, "wanted some of encoder, language_model"),
        ({"lora": {"rank": 0}}, "must be positive"),
        ({"lora": {"dropout": 1.0}}, "lora.dropout must lie"),
        ({"lora": {"modules": []}}, "lora.modules is empty"),
    ],
)
def test_combinations_that_make_no_sense_are_named(
    saved: dict[str, Path], data: Path, sections: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        recipe(saved, data, **sections)


def test_nothing_to_train_is_named(saved: dict[str, Path], data: Path) -> None:
    """All whitespace survives in GPT-2's kind of tokenizer; adapters need layers of that name."""
    from tokenizers_for_tests import byte_level

    settings = recipe(saved, data, encoder={"whitespace": True}, policy={"encoder": "whitespace"})
    model = LangBridge.from_recipe(recipe(saved, data))
    with pytest.raises(ConfigError, match="loses none"):
        LangBridge(model.encoder, model.language_model, byte_level(), model.lm_tokenizer, settings)
    with pytest.raises(ConfigError, match=r"lora.modules \('q_prj',\) fits no layer of MT5Stack"):
        LangBridge.from_recipe(recipe(saved, data, lora={**LORA, "modules": ["q_prj"]}))


def test_adapters_without_peft_say_what_to_install(
    saved: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'langbridge-lm\[lora\]'"):
        LangBridge.from_recipe(recipe(saved, data, lora=LORA))


def test_defaults_train_the_bridge_alone(saved: dict[str, Path], data: Path) -> None:
    settings = recipe(saved, data)
    assert settings.encoder_policy == "frozen"
    assert dataclasses.asdict(settings.lora)["parts"] == ()
    assert all(name.startswith("bridge.") for name in LangBridge.from_recipe(settings).trained())
