"""Whitespace that a tokenizer drops is found by a round trip and given back; Python source survives exactly."""

import inspect
import json
import string
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from langbridge.pretrained import load_tokenizer, load_tokenizer_folder, whitespace_ids, with_whitespace
from langbridge.pretrained.whitespace import RUNS, lost
from tokenizers_for_tests import byte_level, sentence_piece


def back(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids))


TOKENIZERS = {"metaspace": sentence_piece(), "split at spaces first": sentence_piece(splits=True)}
CURED = {
    name: with_whitespace(sentence_piece(splits=splits))
    for name, splits in (("metaspace", False), ("split at spaces first", True))
}

statements = st.text(string.ascii_letters + string.digits + string.punctuation + " \t", min_size=1, max_size=20)
indents = st.sampled_from(["", "  ", "    ", "\t", "\t\t", "     ", "      ", "        ", " "])
lines = st.tuples(indents, statements, st.sampled_from(["\n", "\r\n", "\n\n", "\x0c\n", " \n"])).map("".join)
sources = st.lists(lines, min_size=1, max_size=6).map("".join).filter(lambda text: text[0] != " " or text[1] == " ")


@pytest.mark.parametrize("name", CURED)
@settings(deadline=None, max_examples=300)
@given(text=sources)
def test_python_source_survives(name: str, text: str) -> None:
    """Property: for any indented text, decoded ids are the text, to the last blank."""
    assert back(CURED[name], text) == text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_sentence_piece_loses_all_of_it_and_gets_it_back(name: str) -> None:
    plain, cured = TOKENIZERS[name], CURED[name]
    assert lost(plain) == list(RUNS)
    assert lost(cured) == []
    first = len(plain)
    assert cured.convert_tokens_to_ids(list(RUNS)) == list(range(first, first + len(RUNS)))  # the paper's order
    assert whitespace_ids(cured) == list(range(first, first + len(RUNS)))


def test_text_without_such_whitespace_is_cut_as_before() -> None:
    """A bridge trained without the tokens would meet the same ids."""
    for text in ("return x", "a plain sentence, as ever", "f(x) = 3"):
        assert CURED["metaspace"](text).input_ids == sentence_piece()(text).input_ids


def test_a_tokenizer_that_loses_nothing_stays_as_it_is() -> None:
    tokenizer = byte_level()
    before = tokenizer.backend_tokenizer.to_str()
    assert lost(tokenizer) == []
    assert with_whitespace(tokenizer).backend_tokenizer.to_str() == before
    assert whitespace_ids(tokenizer) == []


def test_saved_is_loaded(tmp_path: Path) -> None:
    CURED["metaspace"].save_pretrained(tmp_path)
    again = with_whitespace(load_tokenizer_folder(tmp_path))  # a second cure changes nothing
    text = "def f(x):\n\treturn  x\n"
    assert again(text).input_ids == CURED["metaspace"](text).input_ids
    assert back(again, text) == text
    assert whitespace_ids(again) == whitespace_ids(CURED["metaspace"])


@pytest.mark.embedded
@pytest.mark.usefixtures("embedded")
def test_the_embedded_encoder_reads_real_python() -> None:
    tokenizer = with_whitespace(load_tokenizer("embedded:e5-small"))
    assert len(whitespace_ids(tokenizer)) == len(RUNS)
    for module in (json.decoder, textwrap, inspect):
        for part in inspect.getsource(module).split("\n\n"):
            assert part[:1] != " " or part[:2] == "  "
            assert back(tokenizer, part) == part
