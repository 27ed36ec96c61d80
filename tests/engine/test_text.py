"""Pieces of text: whole characters, no stop strings, nothing lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from conftest import letters_tokenizer
from langbridge.engine.text import TextPieces
from langbridge.pretrained import load_tokenizer
from tokenizers_for_tests import byte_level, sentence_piece

BYTES, WORDS, LETTERS = byte_level(), sentence_piece(), letters_tokenizer(encloses=False)


def read(tokenizer: PreTrainedTokenizerBase, ids: list[int], *stops: str) -> tuple[list[str], bool]:
    text = TextPieces(tokenizer, stops)
    found = []
    for token in ids:
        found.append(text.add(token))
        if text.stopped:
            break
    return [*found, text.end()], text.stopped


@given(st.text(st.characters(codec="utf-8", exclude_characters="!"), max_size=30))  # "!" is this tokenizer's padding
def test_characters_of_many_bytes_come_whole(text: str) -> None:
    found, _ = read(BYTES, BYTES(text).input_ids)
    assert "".join(found) == text
    assert all("\ufffd" not in piece for piece in found) or "\ufffd" in text


@settings(max_examples=300)
@given(st.lists(st.integers(0, len(BYTES) - 1), max_size=20))
def test_any_bytes_give_the_decoded_text_but_for_half_a_character_at_the_end(ids: list[int]) -> None:
    found, _ = read(BYTES, ids)
    whole = BYTES.decode(ids, skip_special_tokens=True)
    assert "".join(found) == whole.rstrip("\ufffd")


@pytest.mark.parametrize("tokenizer", [WORDS, LETTERS], ids=["sentencepiece", "letters"])
@given(text=st.text(alphabet="abxreturn !?", max_size=30))
def test_tokenizers_that_look_back_give_the_decoded_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert "".join(read(tokenizer, ids)[0]) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=300)
@given(
    text=st.text(alphabet="abé", max_size=24),
    stops=st.lists(st.text(alphabet="abé", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_never_leak(text: str, stops: list[str]) -> None:
    """The pieces are the text in front of the first stop string of the shortest text that holds one."""
    found, stopped = read(BYTES, BYTES(text).input_ids, *stops)
    shortest = next((text[:n] for n in range(len(text) + 1) if any(stop in text[:n] for stop in stops)), text)
    ends = [at for stop in stops if (at := shortest.find(stop)) >= 0]
    assert "".join(found) == shortest[: min(ends, default=len(shortest))]
    assert stopped == bool(ends)


@pytest.mark.embedded
@pytest.mark.usefixtures("embedded")
def test_the_embedded_lms_tokenizer() -> None:
    tokenizer = load_tokenizer("embedded:smollm2-135m")
    for text in ("Paris is the capital.", "ఫ్రాన్స్ రాజధాని ఏది?", "👩‍👩‍👧‍👦 family", "a\n\n  b\tc"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        found, _ = read(tokenizer, ids)
        assert "".join(found) == text
        assert not any("\ufffd" in piece for piece in found)
