"""The LM as teacher: it answers itself, is asked once, and the bridge comes to agree with it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from conftest import build
from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe
from langbridge.data import Example
from langbridge.errors import ConfigError, DataError
from langbridge.generate import PlainGenerator, Sampling
from langbridge.model import Batch
from langbridge.model.distillation import Distillation, divergence
from langbridge.train.distill import ANSWERS, TEACHER, answered, teach
from langbridge.train.records import distill
from langbridge.train.run import train

PROMPTS = [f"what is number {i}?" for i in range(24)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"source": prompt}) + "\n" for prompt in PROMPTS), encoding="utf-8")
    return path


def recipe(saved: dict[str, Path], data: Path, /, **sections: dict[str, Any]) -> Recipe:
    fields: dict[str, Any] = {
        "encoder": {"name": str(saved["bert"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": "ask: {prompt}\nsay: "},
        "objective": {"kind": "distill", "top_k": 8},
        "data": {"train": str(data), "validation": 4, "longest_target": 6},
        "warm_start": {"sentences": 10},
        "training": {"steps": 4, "batch_size": 4, "save_every": 2, "evaluate_every": 4, "precision": "fp32"},
    }
    for name, section in sections.items():
        fields[name] = fields.get(name, {}) | section
    return Recipe.of(fields, "test")


def test_answers_are_the_plain_lms_own(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    model = LangBridge.from_recipe(recipe(saved, data)).eval()
    prompts = [Example(source=prompt) for prompt in PROMPTS[:6]]
    found = answered(model, prompts, tmp_path / "run")
    said = PlainGenerator(model).generate(PROMPTS[:6], Sampling(max_new_tokens=6))
    assert {e.source: e.target.strip() for e in found} == {p: s for p, s in zip(PROMPTS, said, strict=False) if s}
    assert all(example.text == example.source for example in found)
    assert not any(example.complete for example in found if len(model.collate.target_ids(example.target)) > 6)


def test_an_interrupted_answering_goes_on(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """What is on disk is taken as it is, a line that was cut off is made again, another LM's answers are not used."""
    model = LangBridge.from_recipe(recipe(saved, data)).eval()
    prompts = [Example(source=prompt) for prompt in PROMPTS[:4]]
    whole = answered(model, prompts, tmp_path)
    path = tmp_path / ANSWERS
    lines = path.read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[1]) | {"target": "kept"}
    path.write_text("\n".join([lines[0], json.dumps(record), lines[2][:20]]), encoding="utf-8")
    again = {example.source: example for example in answered(model, prompts, tmp_path)}
    assert again.pop(record["source"]).target == "kept"
    assert list(again.values()) == [example for example in whole if example.source != record["source"]]
    header = json.loads(lines[0]) | {"lm": "another"}
    path.write_text("\n".join([json.dumps(header), *lines[1:]]), encoding="utf-8")
    assert answered(model, prompts, tmp_path) == whole


def test_stored_is_recomputed(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Reading the LM's logits from disk gives the loss, and the gradient, of asking it again."""
    from langbridge.train.distill import ToTaught

    model = LangBridge.from_recipe(recipe(saved, data, objective={"temperature": 1.5})).eval()
    examples = answered(model, [Example(source=prompt) for prompt in PROMPTS[:7]], tmp_path)
    taught = teach(model, examples, tmp_path / TEACHER, batch_size=3)
    stored = Batch(**ToTaught(model.collate, taught)(examples[:5]))
    losses, gradients = [], []
    for batch in (stored, model.collate(examples[:5])):
        loss = model(batch)
        gradients.append(torch.autograd.grad(loss, model.bridge.linear.weight)[0])
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)  # kept in half precision
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.9999
    before = (tmp_path / TEACHER).stat().st_mtime_ns
    teach(model, examples, tmp_path / TEACHER)  # nothing to do
    assert (tmp_path / TEACHER).stat().st_mtime_ns == before
    teach(model, examples[:-1], tmp_path / TEACHER)  # other answers: anew
    assert (tmp_path / TEACHER).stat().st_mtime_ns != before


@pytest.mark.parametrize("store", [True, False])
def test_a_run_from_prompts_alone(saved: dict[str, Path], data: Path, tmp_path: Path, store: bool) -> None:
    """No targets anywhere: the LM gives them. A resumed run is the uninterrupted one."""
    settings = recipe(saved, data, objective={"store": store})
    model = train(settings, tmp_path / "run")
    assert (tmp_path / "run" / TEACHER).is_file() == store
    assert "validation_loss_eng" in model.results
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert any("loss" in json.loads(line) for line in lines)
    for name in ("bridge.safetensors", "langbridge.json", "checkpoint-4/trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    resumed = train(settings, tmp_path / "run", resume=True)
    assert all(torch.equal(value, resumed.trained()[name]) for name, value in model.trained().items())
    assert set(load_file(tmp_path / "run" / "bridge.safetensors")) == set(model.trained())


def test_a_short_run_asks_for_what_it_reads(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """2 steps of 4 and 4 held out: 12 of 24 prompts are answered; the warm start still sees as many as it wants."""
    settings = recipe(saved, data, warm_start={"sentences": 16}, training={"steps": 2, "evaluate_every": 2})
    train(settings, tmp_path / "run")
    assert len((tmp_path / "run" / ANSWERS).read_text(encoding="utf-8").splitlines()) == 1 + 8 + 4
    model = LangBridge.from_recipe(settings)
    found = distill(model, tmp_path / "run", Console(quiet=True))
    assert len({example.source for example in found.examples}) == 20
    assert len(found.dataset) <= 8


def test_the_bridge_comes_to_agree_with_the_lm() -> None:
    """The LM behind the soft prompt goes towards the LM that read the text, on what it said itself."""
    model = build("bert", "llama").eval()
    model.distillation = Distillation(divergence=1.0, top_k=0)
    prompts = [Example(source=prompt) for prompt in PROMPTS[:2]]
    said = PlainGenerator(model).answers(prompts, Sampling(max_new_tokens=4))
    examples = [replace(p, target=a.text, text=p.source, complete=False) for p, a in zip(prompts, said, strict=True)]
    batch = model.collate(examples)

    def gap() -> float:
        wanted = model.teach(batch, model.distillation)
        logits = model.language_model.target_logits(model.prompt(batch), batch.target_ids, batch.target_mask)
        return divergence(logits, wanted, model.distillation).item()

    before, optimizer = gap(), torch.optim.AdamW(model.bridge.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
    assert gap() < 0.7 * before


def test_mistakes_are_named(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="store: false"):
        recipe(saved, data, objective={"top_k": 0})
    assert recipe(saved, data, objective={"top_k": 0, "store": False}).objective.top_k == 0
    with pytest.raises(ConfigError, match="temperature must be positive"):
        recipe(saved, data, objective={"temperature": 0})
    with pytest.raises(ConfigError, match="known: supervised, prefix_lm, distill"):
        recipe(saved, data, objective={"kind": "distil"})


def test_an_lm_that_says_nothing_is_named(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    model = LangBridge.from_recipe(recipe(saved, data)).eval()
    head = model.language_model.model.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)).index_fill(0, torch.tensor([0]), 100.0))
    with pytest.raises(DataError, match="left all 2 prompts without an answer"):
        answered(model, [Example(source="a"), Example(source="b")], tmp_path)
