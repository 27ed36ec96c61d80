"""Records from files of several kinds, folders and the published data sets' columns."""

import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from langbridge.data import Example, read_examples, read_prompts, read_texts
from langbridge.errors import DataError

PAIRS = [{"source": f"question {i}", "target": f"answer {i}"} for i in range(5)]


def write_lines(path: Path, records: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_parquet(path: Path, records: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(records), path)


def test_parquet_is_read_as_json_lines_are(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pairs.parquet", PAIRS)
    assert read_examples(str(tmp_path / "pairs.parquet")) == [Example(**pair) for pair in PAIRS]


def test_a_folder_gives_its_training_part(tmp_path: Path) -> None:
    """As data sets lie on the hub: parts by name, each in several files."""
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", PAIRS[:2])
    write_lines(tmp_path / "data" / "train-00001-of-00002.jsonl.gz", PAIRS[2:4])
    write_lines(tmp_path / "data" / "validation.jsonl", PAIRS[4:])
    assert read_examples(str(tmp_path)) == [Example(**pair) for pair in PAIRS[:4]]
    write_lines(tmp_path / "other" / "all.jsonl", PAIRS)
    assert len(read_examples(str(tmp_path / "other"))) == 5


def test_columns_of_published_data_sets(tmp_path: Path) -> None:
    labelled = [{"input": "question", "output": "answer"}]
    write_parquet(tmp_path / "labelled.parquet", labelled)
    assert read_examples(str(tmp_path / "labelled.parquet")) == [Example(source="question", target="answer")]
    assert read_prompts(str(tmp_path / "labelled.parquet")) == [Example(source="question", target="answer")]
    write_parquet(tmp_path / "unlabelled.parquet", [{"input": "a long text", "output": ""}])
    assert read_texts(str(tmp_path / "unlabelled.parquet")) == ["a long text"]
    with pytest.raises(DataError, match='row 1: wanted an object with "text"'):
        read_texts(str(tmp_path / "labelled.parquet"))
    with pytest.raises(DataError, match='row 1: wanted an object with "source" and "target"'):
        read_examples(str(tmp_path / "unlabelled.parquet"))


def test_prompts_need_no_target(tmp_path: Path) -> None:
    write_lines(tmp_path / "prompts.jsonl", [{"source": "who?", "instruction": "Say: "}, {"source": "when?"}])
    found = read_prompts(str(tmp_path / "prompts.jsonl"))
    assert found == [Example(source="who?", instruction="Say: "), Example(source="when?")]
    write_lines(tmp_path / "prompts.jsonl", [{"target": "who?"}])
    with pytest.raises(DataError, match=r'wanted an object with "source", found \{"target"'):
        read_prompts(str(tmp_path / "prompts.jsonl"))


def test_what_is_missing_or_damaged_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(DataError, match=r"bad\.parquet: damaged or no Parquet file"):
        read_examples(str(tmp_path / "bad.parquet"))
    with pytest.raises(DataError, match="hub:nobody/nothing is not to be had"):
        read_examples("hub:nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"a folder of such files, hub:OWNER/NAME, or 'shipped'"):
        read_examples(str(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'langbridge-lm\[parquet\]'"):
        read_examples(str(tmp_path / "bad.parquet"))
