"""Training on tiny real models: what moves, what is written, and that a resumed run is the uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from langbridge.checkpoint import LangBridge, read_config
from langbridge.config import DataConfig, Recipe
from langbridge.data import Example
from langbridge.errors import CheckpointError, DataError
from langbridge.train.dataset import Examples, split
from langbridge.train.limits import Limits
from langbridge.train.order import GroupedByLength
from langbridge.train.precision import Measured, measure
from langbridge.train.run import train
from langbridge.train.trainer import newest_checkpoint


def recipe(saved: dict[str, Path], data: Path, **training: object) -> Recipe:
    fields = {
        "encoder": {"name": str(saved["mt5"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": "ask: {prompt}\nsay: "},
        "data": {"train": str(data), "validation": 4},
        "warm_start": {"sentences": 10},
        "training": {"steps": 6, "batch_size": 4, "save_every": 2, "evaluate_every": 3, "learning_rate": 0.01},
    }
    training = {"precision": "fp32"} | training
    fields["training"] |= training  # type: ignore[operator]
    return Recipe.of(fields, "test")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    words = ["tea", "rain", "a cat", "the old man", "my sister", "nobody here", "snow"]
    records = [{"source": f"{w} is number {i}.", "target": f"{w} is number {i}."} for i in range(6) for w in words]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_run_folder_is_complete_and_loads(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    model = train(recipe(saved, data), tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "bridge.safetensors", "langbridge.json", "README.md", "metrics.jsonl", "tokenizers"} <= names
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in line for line in lines)
    assert any("validation_transfer_swh" in line for line in lines)
    again = LangBridge.from_pretrained(tmp_path / "run").eval()
    batch = model.eval().collate([Example(source="tea is", target="good")])
    with torch.no_grad():
        assert float(again(batch)) == float(model(batch))
    assert json.loads((tmp_path / "run" / "langbridge.json").read_text())["versions"]["torch"] == torch.__version__


def test_frozen_weights_stay_and_the_bridge_moves(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    settings = recipe(saved, data)
    untouched = LangBridge.from_recipe(settings).state_dict()
    trained = train(settings, tmp_path / "run").state_dict()
    for name, value in trained.items():
        assert torch.equal(value, untouched[name]) != name.startswith("bridge."), name


def test_resumed_is_uninterrupted(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Killed at a later step, resumed from an earlier checkpoint: the same weights to the last bit."""
    settings = recipe(saved, data, steps=13)  # more than one pass over the data
    train(settings, tmp_path / "whole")
    train(settings, tmp_path / "cut")
    for name in ("bridge.safetensors", "langbridge.json"):
        (tmp_path / "cut" / name).unlink()
    last = newest_checkpoint(tmp_path / "cut")
    (last / "trainer_state.json").write_text('{"global_step": ', encoding="utf-8")  # died while writing
    assert newest_checkpoint(tmp_path / "cut") != last
    train(settings, tmp_path / "cut", resume=True)
    whole, cut = (load_file(tmp_path / run / "bridge.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "cut")
    ]
    assert steps[0] == steps[1]


def test_a_killed_process_resumes(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    settings = recipe(saved, data, steps=400, save_every=5, evaluate_every=400)
    settings.write(tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "langbridge", "train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "r")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "r").glob("checkpoint-*/trainer_state.json"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert newest_checkpoint(tmp_path / "r").is_dir()
    with pytest.raises(CheckpointError, match="already holds a run"):
        train(settings, tmp_path / "r")
    with pytest.raises(CheckpointError, match="another recipe"):
        train(recipe(saved, data, steps=401, save_every=5), tmp_path / "r", resume=True)


def test_accumulation_equals_the_large_batch(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    runs = {}
    for accumulate in (1, 2, 4):
        model = train(recipe(saved, data, accumulate=accumulate, steps=3), tmp_path / str(accumulate))
        runs[accumulate] = model.bridge.linear.weight.detach()
    assert torch.allclose(runs[1], runs[2], atol=1e-5)
    assert torch.allclose(runs[1], runs[4], atol=1e-5)


def test_keeping_less_changes_nothing(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    runs = {
        twice: train(recipe(saved, data, steps=3, gradient_checkpointing=twice), tmp_path / str(twice))
        for twice in (False, True)
    }
    assert torch.allclose(runs[False].bridge.linear.weight, runs[True].bridge.linear.weight, atol=1e-5)


def test_packing_changes_nothing(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    runs = {
        most: train(recipe(saved, data, steps=3, packing=most, token_budget=100), tmp_path / str(most))
        for most in (None, 90)
    }
    assert runs[90].language_model.packing == 90
    assert torch.allclose(runs[None].bridge.linear.weight, runs[90].bridge.linear.weight, atol=1e-5)


def test_warm_start_beats_a_random_one(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    warm = train(recipe(saved, data, steps=1), tmp_path / "warm")
    fields = recipe(saved, data, steps=1)
    cold = train(Recipe.of({**_fields(fields), "warm_start": {"enabled": False}}, "test"), tmp_path / "cold")
    assert "warm start R2" in warm.results
    assert "warm start R2" not in cold.results


def test_bf16_trains_near_fp32(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Asking for bf16 on a machine without a GPU was refused by the training library."""
    runs = {
        p: train(recipe(saved, data, precision=p), tmp_path / p).bridge.linear.weight.detach() for p in ("fp32", "bf16")
    }
    assert not torch.equal(runs["fp32"], runs["bf16"])
    assert runs["bf16"].dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(runs["fp32"].flatten(), runs["bf16"].flatten(), dim=0)
    assert float(cosine) > 0.95
    assert read_config(tmp_path / "bf16").training.precision == "bf16"


def test_auto_precision_is_settled_once(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """What was measured is written into the run, so that a resumed run does not choose again."""
    settings = recipe(saved, data, precision="auto")
    train(settings, tmp_path / "run")
    assert read_config(tmp_path / "run").training.precision in ("fp32", "bf16")
    for name in ("bridge.safetensors", "langbridge.json"):
        (tmp_path / "run" / name).unlink()
    train(settings, tmp_path / "run", resume=True)


def test_auto_types_are_settled_once(
    saved: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on elsewhere keeps the types that it began with."""
    settings = recipe(saved, data).with_dtype("auto")
    monkeypatch.setattr("langbridge.checkpoint.fast_type", lambda: "bfloat16")
    model = train(settings, tmp_path / "run")
    assert {model.language_model.dtype, model.encoder.model.dtype} == {torch.bfloat16}
    written = read_config(tmp_path / "run")
    assert (written.encoder.dtype, written.language_model.dtype) == ("bfloat16", "bfloat16")
    for name in ("bridge.safetensors", "langbridge.json"):
        (tmp_path / "run" / name).unlink()
    monkeypatch.setattr("langbridge.checkpoint.fast_type", lambda: "float32")
    assert train(settings, tmp_path / "run", resume=True).language_model.dtype == torch.bfloat16


def test_measuring_precision_leaves_the_model_as_it_was(one: LangBridge) -> None:
    before = {name: value.clone() for name, value in one.state_dict().items()}
    found = measure(one, [Example(source="tea is", target="good"), Example(source="a cat", target="is here")])
    assert 0.5 < found.cosine <= 1.001
    assert found.speedup > 0
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    assert all(parameter.grad is None for parameter in one.parameters())
    assert Measured(speedup=2.0, cosine=0.999).choice == "bf16"
    assert Measured(speedup=1.1, cosine=0.999).choice == "fp32"
    assert Measured(speedup=2.0, cosine=0.5).choice == "fp32"


@pytest.mark.parametrize("kind", ["mlp", "resampler"])
@pytest.mark.parametrize("layers", ["last", "mix"])
def test_other_bridges_train_save_load_and_resume(
    saved: dict[str, Path], data: Path, tmp_path: Path, kind: str, layers: str
) -> None:
    fields = _fields(recipe(saved, data, steps=4, save_every=2, evaluate_every=4))
    shape = {"kind": kind, "layers": layers, "latents": 4, "depth": 1, "heads": 2, "dropout": 0.1}
    settings = Recipe.of({**fields, "bridge": shape}, "test")
    model = train(settings, tmp_path / "run")
    assert "warm start R2" in model.results
    again = LangBridge.from_pretrained(tmp_path / "run").eval()
    batch = model.eval().collate([Example(source="tea is", target="good")])
    with torch.no_grad():
        assert float(again(batch)) == float(model(batch))
    (tmp_path / "run" / "checkpoint-4" / "trainer_state.json").unlink()
    for name in ("bridge.safetensors", "langbridge.json"):
        (tmp_path / "run" / name).unlink()
    resumed = train(settings, tmp_path / "run", resume=True)
    assert all(torch.equal(v, resumed.trained()[name]) for name, v in model.trained().items())


def _fields(settings: Recipe) -> dict[str, object]:
    import dataclasses

    return dataclasses.asdict(settings)


def test_nothing_to_resume_is_an_error(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    settings = recipe(saved, data)
    (tmp_path / "run").mkdir()
    settings.write(tmp_path / "run" / "config.yaml")
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        train(settings, tmp_path / "run", resume=True)


def ordered(count: int, **given: int) -> list[int]:
    """The order of records whose length is a function of their number."""
    settings = {"batch_size": 10, "batches": 100, "seed": 1} | given
    return list(GroupedByLength(lambda number: length_of(number % count), count, **settings))


def length_of(record: int) -> int:
    return (7 * record) % 50


@pytest.mark.parametrize("count", [500, 333, 7])
def test_every_record_comes_once_in_each_epoch(count: int) -> None:
    """Also where an epoch does not end with a batch."""
    found = ordered(count)
    assert len(found) == 1000
    whole = 320 * (1000 // 320)  # pools are complete up to here
    assert sorted(found[:whole])[: count * (whole // count)] == list(range(count * (whole // count)))
    assert len(set(found)) == 1000


def test_the_order_groups_lengths_and_is_a_function_of_the_seed() -> None:
    found = ordered(500)
    assert found == ordered(500)
    assert found != ordered(500, seed=2)
    assert [number - 500 for number in ordered(500, batches=100)[500:]] != found[:500]
    spread = [max(b) - min(b) for b in ([length_of(i % 500) for i in found[s : s + 10]] for s in range(0, 1000, 10))]
    assert sum(spread) / len(spread) < 10


def test_the_order_of_a_resumed_or_longer_run_goes_on() -> None:
    """Skipped records are not even looked at; a batch of an order cut short is that of the whole order."""
    whole = ordered(500)
    assert ordered(500, start=75)[750:] == whole[750:]
    assert ordered(500, batches=77) == whole[:770]
    looked_at: list[int] = []
    list(GroupedByLength(lambda n: looked_at.append(n) or 0, 500, batch_size=10, batches=100, seed=1, start=64))
    assert len(looked_at) == 640


def test_noise_is_the_same_whenever_a_record_is_read() -> None:
    copy = Example(source="The old man walks home.", target="The old man walks home.")
    answer = Example(source="Who is it?", target="It is me.")
    dataset = Examples([copy, answer] * 5, DataConfig(shuffle_words=1.0, plain_case=1.0), seed=3)
    assert [dataset[i] for i in range(10)] == [dataset[i] for i in range(10)]
    assert [dataset[i] for i in range(10)] != [dataset[i] for i in range(10, 20)]  # the next epoch
    assert dataset[0].source != copy.source
    assert dataset[0].target == copy.target
    assert dataset[1] == answer


def test_over_long_records_are_counted_and_too_few_refused(one: LangBridge, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    texts = ["short one", "another", "x" * 300]
    path.write_text("".join(json.dumps({"source": t, "target": t}) + "\n" for t in texts), encoding="utf-8")
    limits = Limits.of(one)
    found = split(DataConfig(train=str(path), validation=1), limits, 0)
    assert (len(found.training), len(found.validation), found.bad.skipped) == (1, 1, 1)
    with pytest.raises(DataError, match="nothing is left"):
        split(DataConfig(train=str(path), validation=2), limits, 0)
