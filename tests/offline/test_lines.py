"""Lines in, records out: nothing of a line is lost or respelt, and what is no prompt is named by its place."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langbridge.errors import DataError
from langbridge.offline import lines
from langbridge.offline.lines import Line, Source, prompt_of, read, sources

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FILE = Source(Path("some.jsonl"), "some.jsonl")


def line(content: bytes, number: int = 7) -> Line:
    return Line(number, content, True, 0)


@given(
    st.dictionaries(st.text().filter(lambda name: name not in (*lines.OURS, "prompt")), JSON, max_size=4),
    st.text(),
    st.booleans(),
)
def test_extra_fields_stay_as_they_are(extra: dict[str, object], answer: str, ascii_only: bool) -> None:
    record = {"prompt": "who?", **extra}
    text = json.dumps(record, ensure_ascii=ascii_only)
    found = prompt_of(FILE, line(text.encode("utf-8", "replace") + b"\r\n"))
    assert found is not None
    out = found.record(completion=answer)
    assert out.startswith(text.encode("utf-8", "replace").decode()[:-1])
    assert json.loads(out) == json.loads(text.encode("utf-8", "replace")) | {"completion": answer}
    assert "\n" not in out


def test_numbers_keep_their_spelling() -> None:
    found = prompt_of(FILE, line(b'{ "id": 1.10, "big": 12345678901234567890.5, "prompt": "\\u00e9" } \n'))
    assert found is not None
    assert found.text == "é"
    wanted = '{ "id": 1.10, "big": 12345678901234567890.5, "prompt": "\\u00e9", "completion": "x"}'
    assert found.record(completion="x") == wanted


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"prompt": \n', "not JSON"),
        (b'{"prompt": NaN}\n', "NaN is no JSON number"),
        (b'["prompt"]\n', 'wanted an object with a text "prompt"'),
        (b'{"prompt": 5}\n', 'wanted an object with a text "prompt"'),
        (b'{"text": "x"}\n', 'wanted an object with a text "prompt"'),
        (b'{"prompt": "x", "completion": "y"}\n', 'a field "completion" already'),
        (b'{"prompt": "\xff"}\n', "not UTF-8 text"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}\n", "not JSON"),
    ],
)
def test_what_is_no_prompt_is_named_by_file_and_line(content: bytes, complaint: str) -> None:
    with pytest.raises(DataError, match=r"some\.jsonl, line 7: ") as error:
        prompt_of(FILE, line(content))
    assert complaint in str(error.value)
    assert len(str(error.value)) < 300


def test_blank_lines_are_nothing_and_text_files_hold_prompts() -> None:
    assert prompt_of(FILE, line(b" \r\n")) is None
    found = prompt_of(Source(Path("some.txt"), "some.txt"), line(b' say "hi" \n'))
    assert found is not None
    assert json.loads(found.record(completion="ho")) == {"prompt": 'say "hi"', "completion": "ho"}


def test_packed_and_plain_files_are_read_alike(tmp_path: Path) -> None:
    content = "\ufeffone\n\ntwo\r\nthree".encode()
    (tmp_path / "plain.txt").write_bytes(content)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(content))
    plain, packed = (list(read(Source(tmp_path / name, name))) for name in ("plain.txt", "packed.jsonl.gz"))
    assert [(one.number, one.content) for one in plain] == [(1, b"one\n"), (2, b"\n"), (3, b"two\r\n"), (4, b"three")]
    assert [one.content for one in packed] == [one.content for one in plain]
    assert plain[-1].position == len(content)


def test_an_endless_line_takes_no_memory_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST", 10)
    (tmp_path / "x.txt").write_bytes(b"a" * 35 + b"\nshort\n" + b"b" * 9 + b"\n" + b"c" * 10)
    found = list(read(Source(tmp_path / "x.txt", "x.txt")))
    assert [(one.content, one.whole) for one in found] == [
        (b"a" * 10, False),
        (b"short\n", True),
        (b"b" * 9 + b"\n", True),
        (b"c" * 10, False),
    ]
    with pytest.raises(DataError, match="longer than 10 bytes"):
        prompt_of(FILE, found[0])


def test_damaged_and_missing_input_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(b'{"prompt": "one"}\n' * 9)[:-9])
    with pytest.raises(DataError, match=r"broken\.jsonl\.gz: cannot be read behind line"):
        list(read(Source(broken, broken.name)))
    with pytest.raises(DataError, match="no such file or folder"):
        sources(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file that ends in \.jsonl"):
        sources(tmp_path / "empty")


def test_a_folder_is_read_in_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a.jsonl", "b/1.jsonl.gz", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [one.name for one in sources(tmp_path)] == ["a.jsonl", "b/1.jsonl.gz", "b/2.jsonl"]
