"""The dry run, against published sizes and torch's own count of FLOPs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe
from langbridge.errors import ConfigError, PretrainedError
from langbridge.model import Batch
from langbridge.pretrained.shapes import encoder_shape, language_model_shape
from langbridge.train.plan import DEVICES, memory, plan, token_means
from langbridge.train.run import keep_less
from test_cli import cli

PAPER = sorted((Path(__file__).parent.parent.parent / "recipes" / "paper").glob("*.yaml"))


def recipe(saved: dict[str, Path], /, **sections: dict[str, Any]) -> Recipe:
    fields: dict[str, Any] = {
        "encoder": {"name": str(saved["bert"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": "none"},
        "training": {"steps": 1, "batch_size": 4, "precision": "fp32"},
    }
    for name, section in sections.items():
        fields[name] = fields.get(name, {}) | section
    return Recipe.of(fields, "test")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("codellama/CodeLlama-7b-hf", 6_738_546_688),
    ],
)
def test_known_shapes_have_the_published_sizes(name: str, parameters: int) -> None:
    assert sum(p.numel() for p in language_model_shape(name).model.parameters()) == parameters


def test_only_the_encoder_half_is_counted() -> None:
    """mT5-XL has 3.7 billion parameters, 1.67 of them in its encoder."""
    shape = encoder_shape("DKYoon/mt5-xl-lm-adapt")
    layer = 4 * 2048 * 2048 + 3 * 2048 * 5120 + 2 * 2048
    assert sum(p.numel() for p in shape.model.parameters()) == 250_112 * 2048 + 24 * layer + 2048 + 32 * 32
    assert {parameter.device.type for parameter in shape.model.parameters()} == {"meta"}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_recipes_are_the_papers(path: Path) -> None:
    """Appendix D: 200,000 samples, batch 128, one epoch, the rates; frozen for fine-tuned LMs, trained for others."""
    read = Recipe.read(path)
    training, policy = read.training, read.policy
    assert (training.steps, training.batch_size, training.learning_rate) == (1562, 128, 6e-4)
    assert (training.weight_decay, policy.encoder_rate, policy.encoder_decay) == (0.0, 2e-5, 0.1)
    assert (training.schedule, training.warmup, training.clip) == ("constant", 0.0, 1.0)
    assert (read.encoder.longest, read.encoder.whitespace, read.bridge.kind) == (1024, True, "linear")
    fine_tuned = any(name in read.language_model.name for name in ("MetaMath", "Orca"))
    assert read.encoder_policy == ("whitespace" if fine_tuned else "trained")
    assert (read.objective.shortest, read.objective.longest, read.objective.continuation) == (32, 1024, 128)
    found = plan(read, (200, 150) if fine_tuned else None)
    assert found.records == 199_936
    sizes = {"7": 8.4e9, "1": 18.7e9}
    total = found.encoder.parameters + found.language_model.parameters + found.bridge
    assert total == pytest.approx(sizes[path.stem.split("-")[-1][0]], rel=0.01)
    assert (found.source, found.target) == ((200, 150) if fine_tuned else (528, 376))
    assert found.hours(8, 150) == pytest.approx(found.hours(1, 150) / 8)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"language_model": {"name": "gpt2"}},
        {"encoder": {"name": "mt5"}, "policy": {"encoder": "trained"}},
        {"encoder": {"whitespace": True}, "policy": {"encoder": "whitespace"}},
        {"bridge": {"kind": "mlp", "hidden_layers": 2}},
        {"training": {"gradient_checkpointing": True}},
        {"policy": {"encoder": "trained"}, "training": {"gradient_checkpointing": True}},
    ],
)
def test_flops_are_those_that_torch_counts(saved: dict[str, Path], sections: dict[str, Any]) -> None:
    sections = {name: dict(section) for name, section in sections.items()}
    for part in ("encoder", "language_model"):
        if "name" in sections.get(part, {}):
            sections[part]["name"] = str(saved[sections[part]["name"]])
    settings = recipe(saved, **sections)
    model = LangBridge.from_recipe(settings).train()
    keep_less(model)
    ids = {"encoder": 60, "before": 0, "after": 0, "target": 40}
    parts = {f"{name}_ids": torch.randint(4, 60, (4, length)) for name, length in ids.items()}
    parts |= {f"{name}_mask": torch.ones(4, length, dtype=torch.int64) for name, length in ids.items()}
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(Batch(**parts)).backward()
    passes = 4 if settings.training.gradient_checkpointing else 3
    ahead = 4 * passes * 2 * 2 * 24 * 101**2  # plain attention also multiplies the half that the causal mask then hides
    found = plan(settings, (60, 40))
    rel = 0.03 if passes == 3 else 0.05  # the second pass stops behind the last thing that is needed
    assert found.flops == pytest.approx(counter.get_total_flops() - ahead, rel=rel)


def test_memory_counts_what_is_held(saved: dict[str, Path]) -> None:
    """Weights by type, twelve bytes more for each that learns, activations by tokens; sharing divides the first two."""
    base = recipe(saved)
    small, large = plan(base, (10, 10)), plan(base, (100, 100))
    held = 4 * (small.encoder.parameters + small.language_model.parameters + small.bridge) + 12 * small.trained
    assert held < memory(small, base, 1, shared=False) < memory(large, base, 1, shared=False)
    activations = [memory(found, base, 1, shared=False) - held for found in (small, large)]
    assert activations[1] == pytest.approx(10 * activations[0], rel=0.1)  # the boundary is one more token
    half = recipe(saved, language_model={"dtype": "bfloat16"})
    saved_bytes = memory(small, base, 1, shared=False) - memory(plan(half, (10, 10)), half, 1, shared=False)
    assert saved_bytes == 2 * small.language_model.parameters
    trained = recipe(saved, policy={"encoder": "trained"})
    assert memory(plan(trained, (10, 10)), trained, 1, shared=False) > held + 12 * small.encoder.parameters
    paper = Recipe.read(PAPER[0])
    found = plan(paper)
    whole = [memory(found, paper, devices, shared=False) for devices in DEVICES]
    shared = [memory(found, paper, devices, shared=True) for devices in DEVICES]
    assert whole[0] == whole[1] == whole[2] == shared[0] > shared[1] > shared[2]


def test_the_command_prints_a_plan_and_trains_nothing(saved: dict[str, Path], tmp_path: Path) -> None:
    recipe(saved).write(tmp_path / "recipe.yaml")
    found = cli("train", str(tmp_path / "recipe.yaml"), "--dry-run", "--tokens", "12,8", "--device-rate", "0.1")
    assert found.returncode == 0, found.stderr
    for part in ("trainable: 624 of", "12 encoder, 21 LM, 8 of them targets", "GiB", "arithmetic, not measurement"):
        assert part in " ".join(found.stdout.split())
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
    wrong = cli("train", str(tmp_path / "recipe.yaml"), "--dry-run", "--set", "training.step=3")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "did you mean 'steps'" in wrong.stderr
    assert "--out is missing" in cli("train", str(tmp_path / "recipe.yaml")).stderr


def test_mistakes_are_named(saved: dict[str, Path]) -> None:
    for text in ("12", "12,x", "12,8,3"):
        with pytest.raises(ConfigError, match=r"wanted two numbers with a comma"):
            token_means(text)
    with pytest.raises(ConfigError, match="must be positive"):
        token_means("12,0")
    with pytest.raises(
        PretrainedError, match=r"the config of nobody/nothing is not to be had .* its shape is not among"
    ):
        plan(recipe(saved, encoder={"name": "nobody/nothing"}))
    with pytest.raises(PretrainedError, match="is no causal LM"):
        plan(recipe(saved, language_model={"name": str(saved["mt5"])}))
    with pytest.raises(ConfigError, match="GGUF file has none"):
        plan(recipe(saved, language_model={"gguf_file": "x.gguf"}))
    with pytest.raises(ConfigError, match="does not divide the encoder's width 24"):
        plan(recipe(saved, bridge={"kind": "resampler", "heads": 7}))
    assert dataclasses.replace(plan(recipe(saved), (10, 10)), flops=3.6e15).hours(1, 1.0) == pytest.approx(1.0)
