"""Training data from SIB-200: English training sentences, and nothing else."""

import json
from pathlib import Path

import pytest

from langbridge.data import read_examples
from langbridge.data.topics import INSTRUCTION, TOPICS, training_examples, write_training_file
from langbridge.errors import DataError


def write(folder: Path, name: str, split: str) -> Path:
    path = folder / name / f"{split}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"index_id\tcategory\ttext\n1\ttravel\t{name} goes.\n2\thealth\t{name} is ill.\n", encoding="utf-8")
    return path


def test_english_training_sentences_become_records(tmp_path: Path) -> None:
    write(tmp_path, "eng_Latn", "train")
    out = tmp_path / "sib200.jsonl"
    assert write_training_file(tmp_path, out, mix=3) == 5
    examples = read_examples(str(out))
    assert [(e.source, e.target, e.instruction) for e in examples[:2]] == [
        ("eng_Latn goes.", "travel", INSTRUCTION),
        ("eng_Latn is ill.", "health", INSTRUCTION),
    ]
    assert examples[2:] == read_examples("shipped")[:3]
    assert write_training_file(tmp_path / "eng_Latn", out) == 2


@pytest.mark.parametrize(("name", "split"), [("swh_Latn", "train"), ("eng_Latn", "dev"), ("eng_Latn", "test")])
def test_other_languages_and_splits_are_refused(tmp_path: Path, name: str, split: str) -> None:
    with pytest.raises(DataError, match="is no training data"):
        training_examples(write(tmp_path, name, split))


def test_another_language_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "swh_Latn", "train")
    with pytest.raises(DataError, match="eng_Latn"):
        write_training_file(tmp_path / "swh_Latn", tmp_path / "x.jsonl")


def test_the_published_split(benchmarks: Path, tmp_path: Path) -> None:
    assert write_training_file(benchmarks / "sib200", tmp_path / "x.jsonl") == 701
    found = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {record["target"] for record in found} == set(TOPICS)
