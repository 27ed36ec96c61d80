"""Reading JSON lines: good files, and every way a file can be bad."""

import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langbridge.data import Example, read_examples
from langbridge.errors import DataError

FIELDS = ("source", "target", "instruction")
GOOD = {"source": "How are you?", "target": "I am fine."}


def jsonl(folder: Path, *lines: str, name: str = "train.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def packed(count: int = 500) -> bytes:
    """Return a good gzip file of `count` records, long enough to be damaged in the middle."""
    records = [{"source": f"What is {i * 7919 % 10007}?", "target": f"It is {i * i}."} for i in range(count)]
    return gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode(), mtime=0)


def refusal(path: Path) -> str:
    """Return the message of the DataError that reading `path` raises."""
    with pytest.raises(DataError) as raised:
        read_examples(str(path))
    assert str(path) in str(raised.value)
    return str(raised.value)


texts = st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip)


@settings(deadline=None)
@given(
    records=st.lists(
        st.tuples(texts, texts, st.text(st.characters(exclude_categories=["Cs"]))), min_size=1, max_size=5
    ),
    compressed=st.booleans(),
    escaped=st.booleans(),
)
def test_what_is_written_is_read(records: list[tuple[str, str, str]], compressed: bool, escaped: bool) -> None:
    """Any text survives, U+2028 and other line ends of Unicode too."""
    examples = [Example(source=s, target=t, instruction=i) for s, t, i in records]
    lines = "".join(
        json.dumps({name: getattr(example, name) for name in FIELDS}, ensure_ascii=escaped) + "\n"
        for example in examples
    ).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("train.jsonl.gz" if compressed else "train.jsonl")
        path.write_bytes(gzip.compress(lines) if compressed else lines)
        assert read_examples(str(path)) == examples


def test_instruction_may_be_absent_or_empty(tmp_path: Path) -> None:
    path = jsonl(tmp_path, json.dumps(GOOD), json.dumps(GOOD | {"instruction": ""}))
    assert read_examples(str(path)) == [Example(**GOOD), Example(**GOOD)]


def test_blank_lines_and_a_missing_last_line_end_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(f"\n{json.dumps(GOOD)}\r\n   \n{json.dumps(GOOD)}")
    assert len(read_examples(str(path))) == 2


def test_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    jsonl(tmp_path, json.dumps(GOOD))
    assert read_examples("~/train.jsonl") == [Example(**GOOD)]


def test_malformed_line_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path, json.dumps(GOOD), "", '{"source": "cut')
    assert f"{path}, line 3: not JSON" in refusal(path)  # as an editor counts, blank lines too


@pytest.mark.parametrize("line", ["[]", "3", '"text"', "null", '["source", "target"]'])
def test_line_that_is_no_object(tmp_path: Path, line: str) -> None:
    message = refusal(jsonl(tmp_path, json.dumps(GOOD), line))
    assert f"line 2: wanted an object, found {line}" in message


@pytest.mark.parametrize("field", ["source", "target"])
def test_missing_field(tmp_path: Path, field: str) -> None:
    record = {name: value for name, value in GOOD.items() if name != field}
    message = refusal(jsonl(tmp_path, json.dumps(GOOD), json.dumps(record)))
    assert f'line 2: wanted an object with "source" and "target", found {json.dumps(record)}' in message


def test_unknown_field(tmp_path: Path) -> None:
    """A misspelt `instruction` must not be dropped silently."""
    message = refusal(jsonl(tmp_path, json.dumps(GOOD | {"instructions": "Repeat: "})))
    assert "line 1: unknown field 'instructions'; known: source, target, instruction" in message


@pytest.mark.parametrize("field", ["source", "target"])
@pytest.mark.parametrize("value", ["", "  \n", None, 7, ["text"]])
def test_source_and_target_are_text_that_is_not_empty(tmp_path: Path, field: str, value: object) -> None:
    message = refusal(jsonl(tmp_path, json.dumps(GOOD), json.dumps(GOOD | {field: value})))
    assert f"line 2: {field} must be text that is not empty, found {value!r}" in message


def test_instruction_is_text(tmp_path: Path) -> None:
    assert "line 1: instruction must be text" in refusal(jsonl(tmp_path, json.dumps(GOOD | {"instruction": 1})))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_file_without_records(tmp_path: Path, content: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(content)
    assert "holds no record" in refusal(path)
    compressed = tmp_path / "train.jsonl.gz"
    compressed.write_bytes(gzip.compress(content.encode()))
    assert "holds no record" in refusal(compressed)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.jsonl")
    assert "'shipped'" in refusal(tmp_path)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes('{"source": "café", "target": "b"}\n'.encode("latin-1"))
    assert "not UTF-8" in refusal(path)


def test_gzip_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(packed(500))
    assert len(read_examples(str(path))) == 500


@pytest.mark.parametrize("kept", [5, 12, 0.5, -1])
def test_truncated_gzip_is_no_shorter_set(tmp_path: Path, kept: float) -> None:
    """A download that was cut must not train on the lines that arrived."""
    data = packed()
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    assert "damaged" in refusal(path)


def test_gzip_suffix_on_plain_text(tmp_path: Path) -> None:
    assert "damaged" in refusal(jsonl(tmp_path, json.dumps(GOOD), name="train.jsonl.gz"))


def test_gzip_with_a_wrong_checksum(tmp_path: Path) -> None:
    data = bytearray(packed())
    data[-6] ^= 1
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(data)
    assert "damaged" in refusal(path)


def test_gzip_with_a_bad_block(tmp_path: Path) -> None:
    """A byte that changed inside the stream is zlib.error, which is neither EOFError nor BadGzipFile."""
    data = bytearray(packed())
    data[10] = 0xFF  # the first block, right behind the header: a block type that does not exist
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(data)
    assert "damaged" in refusal(path)
