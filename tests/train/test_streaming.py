"""Streams: nothing lost or doubled, one order for all processes and workers, and runs that resume to the last bit."""

import dataclasses
import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file
from test_train import recipe as usual
from torch.utils.data import DataLoader, SequentialSampler

from langbridge.config import DataConfig, Recipe, TrainingConfig
from langbridge.data.bad import Bad
from langbridge.data.streaming import Files, Hub, Mark, Source, source_of
from langbridge.errors import ConfigError, DataError
from langbridge.train.run import train
from langbridge.train.stream import Endless, Stream, packed, unpacked

WORDS = ["tea", "rain", "a cat", "the old man", "my sister", "nobody here", "snow", "long, long ago there was a king"]
RECORDS = [{"source": f"{word} is {i}.", "target": f"{word} is {i}."} for i in range(6) for word in WORDS]


def lines(records: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write(folder: Path, kind: str) -> str:
    """48 records in two files of a kind; returns the name of the data set."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate((RECORDS[:20], RECORDS[20:])):
        path = data / f"train-{number}.{kind.removeprefix('hub.')}"
        if kind.endswith("parquet"):
            parquet.write_table(pa.Table.from_pylist(part), path, row_group_size=7)
        elif kind.endswith("txt"):
            path.write_text("".join(f"{record['source']} {record['target']}\n\n" for record in part))
        else:
            path.write_bytes(gzip.compress(lines(part)) if kind.endswith("gz") else lines(part))
    return f"hub:{data}" if kind.startswith("hub.") else str(data)


KINDS = ["jsonl", "jsonl.gz", "parquet", "txt", "hub.jsonl", "hub.parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_goes_on_from_every_place(tmp_path: Path, kind: str) -> None:
    name = write(tmp_path, kind)
    source = source_of(name)
    assert isinstance(source, Hub if kind.startswith("hub.") else Files)
    whole: list[Any] = []
    marks: list[Mark] = []
    for found in source.read():
        whole.append(found)
        marks.append(json.loads(json.dumps(source.mark())))
    assert len(whole) == 48
    for number in range(0, 48, 6 if kind.startswith("hub.") else 1):
        assert list(source_of(name).read(marks[number])) == whole[number + 1 :]


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    for kind in ("jsonl", "jsonl.gz"):
        source: Source = Files(write(tmp_path / kind, kind))
        reading = source.read()
        for _ in range(25):
            next(reading)
        mark = source.mark()
        path = tmp_path / kind / "data" / f"train-1.{kind}"
        changed = lines([*RECORDS[20:30], *RECORDS])
        path.write_bytes(gzip.compress(changed) if kind.endswith("gz") else changed)
        assert len(list(Files(str(path.parent)).read(mark))) == 53  # behind the place it may change
        changed = lines(RECORDS)
        path.write_bytes(gzip.compress(changed) if kind.endswith("gz") else changed)
        with pytest.raises(DataError, match=r"train-1.* was changed in front of its line 6 since the checkpoint"):
            list(Files(str(path.parent)).read(mark))
        path.rename(path.with_name(f"train-9.{kind}"))
        with pytest.raises(DataError, match=r"stands in file 2, train-1.*, but train-9.* is there now"):
            list(Files(str(path.parent)).read(mark))


def text(record: Any) -> str | Bad:
    return str(record["source"])


def stream(
    name: str, *, place: Any = None, make: Callable[[Any], str | Bad] = text, batch: int = 4, **given: Any
) -> Stream:
    """32 steps; pools of 12 records, numbered in the order they are read."""
    data = DataConfig(train=name, streaming=True, validation=4, bad_records="skip", **given)
    return Stream(
        lambda: Endless(source_of(name), make, data, held_out=4),
        lambda record, number: (number, record),
        len,
        training=TrainingConfig(steps=32, batch_size=batch),
        processes=1,
        buffer=13,
        place=place,
    )


def read(dataset: Stream, first: int = 0) -> list[Any]:
    return [found for at in range(first, len(dataset), 4) for found in dataset.__getitems__(range(at, at + 4))]


@pytest.mark.parametrize("kind", ["jsonl.gz", "hub.parquet"])
def test_every_record_comes_once_in_each_epoch(tmp_path: Path, kind: str) -> None:
    """44 records are left behind the head: 128 numbers are two epochs and 40 records of a third, which ends a pool."""
    found = read(stream(write(tmp_path, kind)))
    assert [number for number, _ in found] == list(range(128))
    counts = Counter(record for _, record in found)
    trained = {record["source"] for record in RECORDS[4:]}
    assert set(counts) == trained
    assert sorted(counts.values()) == [2] * 4 + [3] * 40
    assert Counter(record for _, record in found[:36]).most_common(1)[0][1] == 1
    assert [record for _, record in found[:44]] != [record for _, record in found[44:88]]
    limited = read(stream(write(tmp_path, kind), limit=8))
    assert {record for _, record in limited} == {record["source"] for record in RECORDS[4:12]}


def test_lengths_are_grouped_within_a_pool(tmp_path: Path) -> None:
    found = [record for _, record in read(stream(write(tmp_path, "jsonl")))]
    pools = [found[first : first + 12] for first in range(0, 120, 12)]
    for pool in pools:
        batches = [sorted(len(record) for record in pool[first : first + 4]) for first in (0, 4, 8)]
        assert [length for batch in sorted(batches) for length in batch] == sorted(map(len, pool))


def first_of(chunk: Any) -> Any:
    """A collate function that workers can be given."""
    return list(chunk), packed(chunk.place)


@pytest.mark.parametrize("kind", ["jsonl", "hub.parquet"])
def test_the_order_is_the_same_for_all_workers_and_from_every_place(tmp_path: Path, kind: str) -> None:
    """The library that reads hub data sets gives each worker of a loader another part, unless it is kept from that."""
    name = write(tmp_path, kind)
    wanted = read(stream(name))
    for workers in (1, 2):
        dataset = stream(name)
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_size=4, sampler=SequentialSampler(dataset), num_workers=workers, collate_fn=first_of
        )
        batches = list(loader)
        assert [found for chunk, _ in batches for found in chunk] == wanted
        for step in (0, 5, 17, 31):  # as a checkpoint of that step would have it
            place = unpacked(batches[step][1])
            assert read(stream(name, place=place), first=4 * step) == wanted[4 * step :]
            assert place["pool"] == step // 3


def test_two_processes_share_the_order(tmp_path: Path) -> None:
    """Each takes every second batch of the order that one has with the doubled batch."""
    name = write(tmp_path, "jsonl")
    double = stream(name, batch=8)
    whole = [found for at in range(0, 128, 8) for found in double.__getitems__(range(at, at + 8))]
    halves = [stream(name, batch=8), stream(name, batch=8)]
    parts = [
        half.__getitems__(range(at + 4 * i, at + 4 * i + 4)) for at in range(0, 128, 8) for i, half in enumerate(halves)
    ]
    assert [found for part in parts for found in part] == whole


def recipe(saved: dict[str, Path], name: str, *, workers: int = 0, **data: Any) -> Recipe:
    fields = dataclasses.asdict(
        usual(saved, Path(name), steps=13, save_every=4, keep=9, evaluate_every=13, workers=workers)
    )
    fields["data"] |= {"train": name, "streaming": True, "buffer": 13, **data}
    return Recipe.of(fields, "test")


def cut_off(run: Path, step: int) -> None:
    """Leave of a finished run what it was when it was killed behind a checkpoint."""
    for folder in run.glob("checkpoint-*"):
        if int(folder.name.split("-")[1]) > step:
            shutil.rmtree(folder)
    for name in ("bridge.safetensors", "langbridge.json", "bad_records.json"):
        (run / name).unlink()


@pytest.mark.parametrize(("kind", "workers"), [("jsonl.gz", 2), ("hub.parquet", 1), ("txt", 0)])
def test_resumed_is_uninterrupted(saved: dict[str, Path], tmp_path: Path, kind: str, workers: int) -> None:
    """Within a pool and within an epoch; what was bad is counted once. Texts: objective prefix_lm."""
    settings = recipe(saved, write(tmp_path, kind), workers=workers, bad_records="skip", most_bad=0.2)
    if kind == "txt":
        fields = dataclasses.asdict(settings) | {"objective": {"kind": "prefix_lm", "shortest": 4, "longest": 20}}
        settings = Recipe.of({**fields, "prompt": {"template": "none"}}, "test")
    if kind == "jsonl.gz":
        path = tmp_path / "data" / "train-0.jsonl.gz"
        path.write_bytes(gzip.compress(lines(RECORDS[:9]) + b"no record\n" + lines(RECORDS[9:20]) + b"{}\n"))
    train(settings, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    bad = json.loads((tmp_path / "whole" / "bad_records.json").read_text())
    cut_off(tmp_path / "cut", 8)
    train(settings, tmp_path / "cut", resume=True)
    whole, cut = (load_file(tmp_path / run / "bridge.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert json.loads((tmp_path / "cut" / "bad_records.json").read_text()) == bad
    assert bad["skipped"] == (2 if kind == "jsonl.gz" else 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_refused_ends_the_run_with_its_line(saved: dict[str, Path], tmp_path: Path, workers: int) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(lines(RECORDS) + b'{"source": "cut\n')
    with pytest.raises(DataError) as raised:
        train(recipe(saved, str(path), workers=workers), tmp_path / "run")
    assert str(raised.value).startswith(f"{path}, line 49: not JSON")
    assert "\n" not in str(raised.value)
    assert "In all 1 of 49 records (1 not JSON): correct them, or set data.bad_records: skip." in str(raised.value)


def test_a_refused_line_is_corrected_and_the_run_goes_on(saved: dict[str, Path], tmp_path: Path) -> None:
    """It lies behind the records that a run looks at first, so a checkpoint was written before it was met."""
    records = [record | {"instruction": f"{i}: "} for i in range(4) for record in RECORDS]
    path, cut = tmp_path / "pairs.jsonl", b'{"source": "cut\n'
    settings = recipe(saved, str(path)).with_training(steps=30)
    path.write_bytes(lines(records[:90]) + cut + lines(records[90:]))
    with pytest.raises(DataError, match="line 91: not JSON"):
        train(settings, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint-20" / "complete").exists()
    path.write_bytes(lines(records))
    train(settings, tmp_path / "run", resume=True)
    train(settings, tmp_path / "whole")
    resumed, whole = (load_file(tmp_path / run / "bridge.safetensors") for run in ("run", "whole"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_what_is_skipped_is_told(saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A packed file that ends too soon costs its rest, not the run."""
    write(tmp_path, "jsonl.gz")
    path = tmp_path / "data" / "train-0.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-9])
    settings = recipe(saved, str(path.parent), bad_records="skip")
    train(settings.with_training(steps=10), tmp_path / "run")
    said = capsys.readouterr().err
    assert "damaged file: 1 of " in said
    kept = json.loads((tmp_path / "run" / "bad_records.json").read_text())
    assert kept["kinds"]["damaged file"]["count"] == 1
    assert "train-0.jsonl.gz" in kept["kinds"]["damaged file"]["first"][0]


def test_too_many_bad_records_end_a_stream(tmp_path: Path) -> None:
    """As soon as a share means something: not at the end of a file that has none."""
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(lines(RECORDS) + b"no record\n" * 100_000)
    with pytest.raises(DataError, match=r"In all 952 of 1,000 records .* more than data.most_bad 0.05 of all"):
        read(stream(str(path)))


def test_mistakes_are_named(saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(lines(RECORDS[:4]))
    with pytest.raises(DataError, match=r"4 records, 4 for validation: nothing is left to train on"):
        train(recipe(saved, str(path)), tmp_path / "run")
    with pytest.raises(DataError, match="nothing is left to train on"):
        read(stream(str(path)))
    with pytest.raises(DataError, match=r"hub:nobody/nothing is not to be had from the hub"):
        list(Hub("hub:nobody/nothing").read())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'langbridge-lm\[data\]'"):
        Hub("hub:nobody/nothing")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": {"kind": "distill"}}, "data.streaming and objective.kind distill exclude each other"),
        ({"data": {"answers": 0.5}}, "data.answers 0.5 needs all records at once"),
        ({"training": {"cache_states": True}}, "training.cache_states keeps the states of a finite set"),
        ({"data": {"buffer": 0}}, "data.buffer must be positive"),
    ],
)
def test_recipes_that_make_no_sense(sections: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"encoder": {"name": "x"}, "language_model": {"name": "y"}, "data": {"streaming": True}}
    for name, section in sections.items():
        fields[name] = fields.get(name, {}) | section
    with pytest.raises(ConfigError, match=message):
        Recipe.of(fields, "test")
