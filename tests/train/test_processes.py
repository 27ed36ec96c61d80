"""Runs of two processes on one CPU, started as users start them."""

import dataclasses
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from langbridge.config import Recipe
from langbridge.errors import CheckpointError
from langbridge.train.run import train
from langbridge.train.trainer import newest_checkpoint

LAUNCH = Path(__file__).parent.parent.parent / "recipes" / "launch"
WORDS = ["tea", "rain", "a cat", "the old man", "my sister", "nobody here", "snow", "long, long ago there was a king"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    records = [
        {"source": f"{word} is {i}.", "target": f"{word} is {i}.", "instruction": "say it again: " if i % 2 else ""}
        for i in range(6)
        for word in WORDS
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def recipe(saved: dict[str, Path], data: Path) -> Recipe:
    fields = {
        "encoder": {"name": str(saved["bert"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": "ask: {prompt}\nsay: "},
        "data": {"train": str(data), "validation": 4},
        "warm_start": {"sentences": 10},
        "training": {
            **{"steps": 8, "batch_size": 4, "save_every": 3, "evaluate_every": 8, "learning_rate": 0.01},
            **{"precision": "fp32", "token_budget": 120},
        },
    }
    return Recipe.of(fields, "test")


def launched(recipe: Recipe, out: Path, *options: str, config: str = "cpu.yaml") -> subprocess.Popen[str]:
    """Start a run of two processes with `accelerate launch`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = out.with_suffix(".yaml")
    recipe.write(path)
    where = out.with_suffix(".launch.yaml")
    settings = yaml.safe_load((LAUNCH / config).read_text(encoding="utf-8"))
    where.write_text(yaml.safe_dump(settings | {"use_cpu": True, "num_processes": 2}), encoding="utf-8")
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(where)),
        *("--main_process_port", str(port), "-m", "langbridge", "train", str(path), "--out", str(out), *options),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return said


def logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "bridge.safetensors")


@pytest.mark.parametrize("config", ["cpu.yaml", "ddp.yaml", "fsdp2.yaml"])
def test_two_processes_are_one_with_the_doubled_batch(recipe: Recipe, tmp_path: Path, config: str) -> None:
    """Losses and weights agree; one process writes and speaks; with FSDP2 the frozen models lie in halves."""
    said = finished(launched(recipe, tmp_path / "two", config=config))
    train(recipe.with_training(batch_size=8), tmp_path / "one")
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for lone, double in zip(one, two, strict=True):
        for name in ("loss", "grad_norm", "validation_loss_eng"):
            if name in lone:
                assert double[name] == pytest.approx(lone[name], rel=2e-3), name
    found, wanted = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert all(torch.allclose(found[name], wanted[name], atol=2e-4) for name in wanted)
    assert said.count("training records") == 1
    assert ("spread over 2 processes" in said) == (config == "fsdp2.yaml")


def test_a_stream_is_shared_and_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    """Two processes read what one does with the doubled batch; resumed, they go on to the last bit."""
    fields = dataclasses.asdict(recipe)
    fields["data"] |= {"streaming": True, "buffer": 16}
    settings = Recipe.of(fields, "test")
    finished(launched(settings, tmp_path / "two"))
    train(settings.with_training(batch_size=8), tmp_path / "one")
    for lone, double in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        if "loss" in lone:
            assert double["loss"] == pytest.approx(lone["loss"], rel=2e-3)
    found, wanted = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert all(torch.allclose(found[name], wanted[name], atol=2e-4) for name in wanted)
    shutil.copytree(tmp_path / "two", tmp_path / "cut")
    for name in ("bridge.safetensors", "langbridge.json"):
        (tmp_path / "cut" / name).unlink()
    shutil.rmtree(tmp_path / "cut" / "checkpoint-8")
    assert newest_checkpoint(tmp_path / "cut", 2).name == "checkpoint-6"
    finished(launched(settings, tmp_path / "cut", "--resume"))
    resumed = weights(tmp_path / "cut")
    assert all(torch.equal(resumed[name], found[name]) for name in found)


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The run's own processes, below the launcher."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if "langbridge" in child.cmdline() and "train" in child.cmdline()]


def test_a_dead_worker_ends_the_run_and_it_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    """The other process says what happened and how to go on; resumed, the run is the uninterrupted one, bit for bit."""
    long = recipe.with_training(steps=60)
    whole = finished(launched(long, tmp_path / "whole"))
    assert "error" not in whole
    process = launched(long, tmp_path / "cut")
    deadline = time.monotonic() + 300
    while not (tmp_path / "cut" / "checkpoint-6" / "complete").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim = next(child for child in children(process) if child.environ().get("RANK") == "1")
    victim.send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "error: " in said
    assert "another process of the run died" in said
    assert "go on with --resume" in said
    with pytest.raises(CheckpointError, match="by a run of 2 processes, this one has 1"):
        newest_checkpoint(tmp_path / "cut")
    finished(launched(long, tmp_path / "cut", "--resume"))
    found, wanted = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert [line["step"] for line in logged(tmp_path / "cut")] == [line["step"] for line in logged(tmp_path / "whole")]


def test_workers_do_not_change_the_order(recipe: Recipe, tmp_path: Path) -> None:
    runs = {n: train(recipe.with_training(workers=n), tmp_path / str(n)).bridge.linear.weight for n in (0, 2)}
    assert torch.equal(runs[0], runs[2])


def test_a_kill_within_a_checkpoint_is_survived(recipe: Recipe, tmp_path: Path) -> None:
    """SIGKILL while a checkpoint is half written: it does not count, and the run goes on to the same weights.

    All parts run in processes of their own, as sums differ in the last bit between numbers of threads.
    """
    shape = {"kind": "mlp", "width": 400.0}  # large, so that writing takes a while
    fields = dataclasses.asdict(recipe.with_training(steps=12, save_every=1, keep=1, precision="fp32"))
    Recipe.of({**fields, "bridge": shape}, "test").write(tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "langbridge", "train", str(tmp_path / "recipe.yaml"), "--out"]
    run, caught = tmp_path / "cut", False
    subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, check=True)
    for attempt in range(10):
        resume = ["--resume"] if attempt else []
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([*command, str(run), *resume], **silent) as process:
            caught = killed_within_a_checkpoint(process, run) or caught
        if caught or process.returncode == 0:
            break
    assert caught
    subprocess.run([*command, str(run), "--resume"], capture_output=True, check=True)
    found, wanted = weights(run), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert [folder.name for folder in run.glob("checkpoint-*")] == ["checkpoint-12"]


def killed_within_a_checkpoint(process: subprocess.Popen[bytes], run: Path) -> bool:
    """Kill a run as soon as a checkpoint behind a complete one is begun; tell whether that one was left incomplete."""
    while process.poll() is None:
        folders = set(run.glob("checkpoint-*"))
        begun = [path for path in folders if not (path / "complete").exists() and len(folders) > 1]
        if begun:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return any(path.is_dir() and not (path / "complete").exists() for path in begun)
    return False
