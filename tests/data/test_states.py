"""Encoder states on disk: the right ones, computed once, and nothing damaged or foreign is ever used."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import build
from langbridge.checkpoint import LangBridge
from langbridge.data import Example
from langbridge.data.caches import cleared, surveyed
from langbridge.data.states import About, StateCache, fingerprint
from langbridge.errors import DataError

TEXTS = ["tea", "rain and snow", "a cat", "the old man walks home", "tea"]


def inputs(model: LangBridge, texts: list[str] = TEXTS) -> list[list[int]]:
    return [model.collate.source_ids(text) for text in texts]


def cache_of(model: LangBridge, root: Path) -> StateCache:
    return StateCache(About.of("tiny", model.encoder), root)


def filled(model: LangBridge, root: Path, texts: list[str] = TEXTS, **settings: int) -> StateCache:
    cache = cache_of(model, root)
    cache.build(model.encoder, inputs(model, texts), 0, announce=lambda line: None, **settings)
    return cache


@torch.no_grad()
def computed(model: LangBridge, ids: list[int]) -> Tensor:
    return model.encoder(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))[0]


@pytest.mark.parametrize("family", ["bert", "mt5"])
@pytest.mark.parametrize("shard", [1, 2**28])
def test_states_are_those_of_the_encoder(family: str, shard: int, tmp_path: Path) -> None:
    """However many shards they lie in; another cache object reads what the first one wrote."""
    model = build(family)
    filled(model, tmp_path, shard=shard)
    cache = cache_of(model, tmp_path)
    assert len(cache) == 4
    for ids in inputs(model):
        states = cache.states(ids)
        assert states is not None
        assert states.dtype == torch.float16
        assert torch.allclose(states.float(), computed(model, ids), rtol=2e-3, atol=2e-3)
    assert cache.states([5, 6, 7]) is None
    batch = cache.batch(inputs(model)[:2])
    assert batch.shape == (2, len(inputs(model)[1]), model.encoder.dim)
    with pytest.raises(DataError, match="lacks the states of 1 texts"):
        cache.batch([inputs(model)[0], [5, 6, 7]])


def test_a_batch_with_states_is_the_batch(one: LangBridge, tmp_path: Path) -> None:
    """The loss from the cache is that of the encoder, but for the rounding; the encoder is not asked."""
    from dataclasses import replace

    examples = [Example(source=text, target="so it is") for text in TEXTS]
    batch = one.collate(examples)
    cache = filled(one, tmp_path)
    with torch.no_grad():
        wanted = float(one(batch))
        cached = replace(
            batch, encoder_states=cache.batch(inputs(one)), encoder_ids=torch.zeros_like(batch.encoder_ids)
        )
        assert float(one(cached)) == pytest.approx(wanted, abs=2e-3)
        some = cached.rows(torch.tensor([0, 2]))
        assert some.encoder_states is not None
        assert some.encoder_states.shape[:2] == some.encoder_ids.shape


def test_only_what_is_missing_is_computed(one: LangBridge, tmp_path: Path) -> None:
    said: list[str] = []
    cache = cache_of(one, tmp_path)
    assert cache.build(one.encoder, inputs(one), 0, announce=said.append) == 4
    assert cache.build(one.encoder, inputs(one), 0, announce=said.append) == 0
    assert cache_of(one, tmp_path).build(one.encoder, inputs(one, [*TEXTS, "more"]), 0, announce=said.append) == 1
    tokens = sum(len(ids) for ids in inputs(one)[:4])
    assert len(said) == 2
    assert f"4 texts will take {tokens * one.encoder.dim * 2 / 1000:.1f} KB" in said[0]  # before it is taken


def test_other_weights_and_layers_have_another_cache(one: LangBridge, tmp_path: Path) -> None:
    first = filled(one, tmp_path)
    one.encoder.read((1, 2))
    assert len(cache_of(one, tmp_path)) == 0
    one.encoder.read("last")
    assert len(cache_of(one, tmp_path)) == 4
    with torch.no_grad():
        next(one.encoder.parameters())[0, 0] += 1e-3
    assert len(cache_of(one, tmp_path)) == 0
    assert first.folder.is_dir()


def test_a_copy_of_the_weights_elsewhere_is_the_same_encoder(saved: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    from langbridge.pretrained import load_encoder

    shutil.copytree(saved["bert"], tmp_path / "copy")
    found = [fingerprint(load_encoder(str(path))) for path in (saved["bert"], tmp_path / "copy")]
    assert found[0] == found[1]


def test_damaged_and_foreign_shards_are_refused(one: LangBridge, tmp_path: Path) -> None:
    cache = filled(one, tmp_path)
    states = next(cache.folder.glob("*.states"))
    whole = states.read_bytes()
    states.write_bytes(whole[:-2])
    with pytest.raises(DataError, match="is damaged"):
        cache_of(one, tmp_path)
    assert [found.troubles != () for found in surveyed(tmp_path)] == [True]
    states.write_bytes(b"\x00\x01" + whole[2:])  # of the right size: only reading it all can tell
    assert [found.troubles != () for found in surveyed(tmp_path)] == [True]
    states.write_bytes(whole)
    assert [(found.texts, found.troubles) for found in surveyed(tmp_path)] == [(4, ())]
    index = states.with_suffix(".npz")
    kept = index.read_bytes()
    index.write_bytes(kept[:50])
    with pytest.raises(DataError, match="is damaged"):
        cache_of(one, tmp_path)
    index.write_bytes(kept)
    other = build("mt5")
    elsewhere = cache_of(other, tmp_path).folder
    elsewhere.mkdir()
    for path in (states, index):
        (elsewhere / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="another encoder"):
        cache_of(other, tmp_path)


def test_states_beyond_half_precision_are_refused(one: LangBridge, tmp_path: Path) -> None:
    with torch.no_grad():
        one.encoder.model.encoder.layer[-1].output.LayerNorm.bias += 1e6
    with pytest.raises(DataError, match=r"half precision ends at 65,504"):
        filled(one, tmp_path)
    assert len(cache_of(one, tmp_path)) == 0


def test_caches_are_cleared(one: LangBridge, tmp_path: Path) -> None:
    cache = filled(one, tmp_path)
    with pytest.raises(DataError, match=f"there are: {cache.folder.name}"):
        list(cleared("nothing", tmp_path))
    ((folder, size),) = cleared(cache.folder.name, tmp_path)
    assert folder == cache.folder
    assert size > 0
    assert not list(surveyed(tmp_path))
    assert not list(cleared(None, tmp_path))


BUILDER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import build
from langbridge.data.states import About, StateCache
model = build()
texts = ["number " + "x" * (1 + i % 60) + str(i) for i in range(1500)]
cache = StateCache(About.of("tiny", model.encoder), Path({root!r}))
ids = [model.collate.source_ids(text) for text in texts]
print("ready", flush=True)
print(cache.build(model.encoder, ids, 0, shard=20_000), len(cache), flush=True)
"""


def builder(root: Path) -> subprocess.Popen[str]:
    code = BUILDER.format(tests=str(Path(__file__).parent.parent), root=str(root))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def test_a_killed_builder_leaves_a_cache_that_works(tmp_path: Path) -> None:
    process = builder(tmp_path)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*/*.npz"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cache = cache_of(build(), tmp_path)
    done = len(cache)
    assert 0 < done < 1500
    (cache.folder / "stray.states").write_bytes(b"half of someth")  # as a kill within a shard leaves it
    out, _ = builder(tmp_path).communicate(timeout=200)
    assert f"{1500 - done} 1500" in out
    assert not (cache.folder / "stray.states").exists()
    assert [(found.texts, found.troubles) for found in surveyed(tmp_path)] == [(1500, ())]


def test_two_builders_share_the_work(tmp_path: Path) -> None:
    """Together they compute every text exactly once."""
    both = [builder(tmp_path), builder(tmp_path)]
    lines = [process.communicate(timeout=300)[0].splitlines()[-1].split() for process in both]
    assert sorted(int(new) for new, _ in lines) == [0, 1500]
    assert {size for _, size in lines} == {"1500"}
    assert [found.texts for found in surveyed(tmp_path)] == [1500]
