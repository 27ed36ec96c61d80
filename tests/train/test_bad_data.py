"""Every way a record can be bad: counted, shown with file and line, skipped or refused as the recipe says."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
import torch
from test_train import recipe as usual

from conftest import build
from langbridge.config import DataConfig, Recipe
from langbridge.data import Example
from langbridge.data.bad import SHOWN
from langbridge.errors import ConfigError, DataError
from langbridge.train.dataset import Examples, split, split_texts
from langbridge.train.limits import Limits
from langbridge.train.run import train
from langbridge.train.unlabelled import uncuttable

GOOD = b'{"source": "tea is good.", "target": "tea is good."}'
BAD = {
    "not JSON": b'{"source": "cut',
    "wrong fields": b'{"source": "no target"}',
    "repeated fields": b'{"source": "a", "source": "b", "target": "c"}',
    "not text": b'{"source": 7, "target": "b"}',
    "empty": b'{"source": " \\t ", "target": "b"}',
    "half a character": b'{"source": "a\\ud800", "target": "b"}',
    "not UTF-8": '{"source": "café", "target": "b"}'.encode("latin-1"),
    "UTF-16": '{"source": "a", "target": "b"}'.encode("utf-16-le"),
    "long source": json.dumps({"source": "x" * 300, "target": "b"}).encode(),
    "long target": json.dumps({"source": "a", "target": "x" * 129}).encode(),
    "long for the LM": json.dumps({"source": "x" * 150, "target": "y" * 100, "instruction": "z" * 40}).encode(),
}
OVER_LONG = {"long source", "long target", "long for the LM"}


@pytest.fixture(scope="module")
def limits() -> Limits:
    """Encoder inputs of at most 200 tokens, targets of 128, 256 LM positions."""
    return Limits.of(build())


def write(folder: Path, *lines: bytes, good: int = 30, name: str = "pairs.jsonl") -> Path:
    """Good records in front, so that few are bad."""
    path = folder / name
    content = b"\n".join([GOOD] * good + list(lines)) + b"\n"
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def data(path: Path, **settings: object) -> DataConfig:
    return DataConfig(train=str(path), validation=1, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", BAD)
def test_each_kind_is_skipped_or_refused_as_the_recipe_says(tmp_path: Path, limits: Limits, kind: str) -> None:
    path = write(tmp_path, BAD[kind], GOOD)
    policy = "over_long" if kind in OVER_LONG else "bad_records"
    found = split(data(path, **{policy: "skip"}), limits, 0)
    assert len(found.training) + len(found.validation) == 31
    assert found.bad.counts == {kind: 1}
    assert (found.bad.read, found.bad.skipped) == (32, 1)
    assert found.bad.first[kind][0].startswith(f"{path}, line 31: ")
    with pytest.raises(DataError, match=rf"pairs\.jsonl, line 31: .*set data\.{policy}: skip"):
        split(data(path, **{policy: "refuse"}), limits, 0)


def test_totals_and_the_first_places_of_each_kind(tmp_path: Path, limits: Limits) -> None:
    path = write(tmp_path, *BAD.values(), *[BAD["empty"]] * 5, good=500, name="pairs.jsonl.gz")
    found = split(data(path, bad_records="skip"), limits, 0)
    assert found.bad.counts == dict.fromkeys(BAD, 1) | {"empty": 6}
    assert found.bad.skipped == found.bad.read - 500 == len(BAD) + 5
    assert len(found.bad.first["empty"]) == SHOWN
    lines = found.bad.lines()
    assert "empty: 6 of 516 records, skipped" in lines
    assert "  and 3 more" in lines
    with pytest.raises(DataError, match=r"line 501: not JSON .* In all 13 of 516 records \(1 not JSON, .*6 empty"):
        split(data(path), limits, 0)


def test_too_many_bad_records_are_another_kind_of_file(tmp_path: Path, limits: Limits) -> None:
    path = write(tmp_path, *[BAD["not JSON"]] * 3, good=27)
    assert split(data(path, bad_records="skip", most_bad=0.1), limits, 0).bad.skipped == 3
    with pytest.raises(DataError, match=r"In all 3 of 30 records .*more than data.most_bad 0.05 of all"):
        split(data(path, bad_records="skip"), limits, 0)


def test_a_file_in_another_encoding_is_named(tmp_path: Path, limits: Limits) -> None:
    """Whole files of UTF-16, with their mark; UTF-8 with a mark is read."""
    path = tmp_path / "pairs.jsonl"
    text = (GOOD.decode() + "\n") * 9
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match=r"line 1: zero bytes, as in UTF-16 text; wanted UTF-8: `iconv"):
        split(data(path, bad_records="skip"), limits, 0)
    path.write_bytes(text.encode("utf-8-sig") + text.encode("utf-8-sig"))  # two such files, one behind the other
    found = split(data(path), limits, 0)
    assert len(found.training) == 17
    assert (found.bad.counts, found.bad.skipped) == ({"byte-order mark": 2}, 0)
    assert found.bad.lines()[0] == "byte-order mark: 2 of 18 records, read without it"


def test_half_a_file_is_never_trained_on(tmp_path: Path, limits: Limits) -> None:
    path = write(tmp_path, name="pairs.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"damaged: .*Get the file again"):
        split(data(path, bad_records="skip"), limits, 0)


def test_numbers_of_many_digits_are_no_crash(tmp_path: Path, limits: Limits) -> None:
    """Python refuses to read them with a plain ValueError."""
    path = write(tmp_path, b'{"source": ' + b"9" * 5000 + b', "target": "b"}', b"[" * 100_000)
    assert split(data(path, bad_records="skip", most_bad=0.1), limits, 0).bad.counts == {"not JSON": 2}


def test_texts_by_line_and_those_without_two_parts(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("two words\nalone?\n\nx\nthree words here\u2028still\r\n".encode())
    collate = build().collate
    found = split_texts(data(path), lambda text: uncuttable(text, collate), 0)
    assert {*found.training, *found.validation} == {"two words", "alone?", "three words here\u2028still"}
    assert found.bad.first == {"nothing to cut": [f"{path}, line 4: no two parts with text: 'x'"]}


def test_a_token_is_more_than_a_character_may_seem(limits: Limits) -> None:
    """Bounds by characters hold for ASCII alone: byte-level tokenizers make several tokens of one other character."""
    assert limits.excess(Example(source="a" * 198, target="b")) is None
    found = limits.excess(Example(source="a" * 199, target="b"))
    assert found is not None
    assert found.why == "source of 201 encoder tokens, at most 200 are read"
    calls = []
    counted = dataclasses.replace(limits, prompt=lambda tokens: calls.append(tokens) or tokens + 1)
    assert counted.excess(Example(source="é" * 198, target="b")) is None
    assert calls[0] == 200  # counted, not bounded


def test_noise_never_leaves_an_example_that_cannot_be_used(limits: Limits) -> None:
    """A sentence of full stops lost them all, and training stopped there."""
    dots, words = Example(source="?!..", target="?!.."), Example(source="one two", target="one two")
    dataset = Examples([dots, words], DataConfig(plain_case=1.0, cut_words=1.0), 0, limits.fits)
    assert all(limits.fits(dataset[number]) for number in range(40))
    assert dataset[0] == dots
    assert dataset[1] != words


def test_a_run_tells_and_keeps_what_it_skipped(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, BAD["not JSON"], BAD["long source"])
    fields = dataclasses.asdict(usual(saved, path, steps=2))
    fields["data"] |= {"bad_records": "skip"}
    train(Recipe.of(fields, "test"), tmp_path / "run")
    said = capsys.readouterr().err
    assert "not JSON: 1 of 32 records, skipped" in said
    assert "line 31: not JSON" in said
    kept = json.loads((tmp_path / "run" / "bad_records.json").read_text())
    assert kept["skipped"] == 2
    assert kept["kinds"]["long source"]["count"] == 1


def test_recipes_that_make_no_sense(saved: dict[str, Path], tmp_path: Path) -> None:
    for field, value in (("bad_records", "ignore"), ("over_long", "cut"), ("most_bad", 2.0)):
        with pytest.raises(ConfigError, match=f"data.{field} must"):
            DataConfig(**{field: value})  # type: ignore[arg-type]
    path = tmp_path / "texts.txt"
    path.write_text("some text here\n" * 9)
    fields = dataclasses.asdict(usual(saved, path))
    fields |= {"objective": {"kind": "prefix_lm", "longest": 180, "continuation": 90}, "prompt": {"template": "none"}}
    fields["data"] |= {"train": str(path)}
    with pytest.raises(ConfigError, match=r"can take 271 LM tokens .* but the LM was made for 256"):
        train(Recipe.of(fields, "test"), tmp_path / "run")


def test_what_a_long_prompt_is_agrees_with_the_batch(limits: Limits) -> None:
    """Property: an example that fits takes no more LM positions than there are."""
    model = build()
    for size in range(60, 128):
        example = Example(source="a" * 110, target="b" * size, instruction="say: ")
        length = int(model.lengths(model.collate([example]))[0])
        assert (limits.excess(example) is None) == (length <= 256 and size < 128)
    assert torch.equal(
        model.lengths(model.collate([Example(source="abc")])), torch.tensor([6 + limits.collate.around("")])
    )
