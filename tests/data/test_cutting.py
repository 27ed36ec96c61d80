"""Words cut into pieces: the text stays, only its tokens change."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from conftest import letters_tokenizer
from langbridge.checkpoint import LangBridge
from langbridge.data import Example
from langbridge.data.cutting import CUT, cut_ids, with_cuts

PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    "▁",
    *"abcdefghijklmnopqrstuvwxyz",
    "▁hello",
    "▁wonderful",
    "▁won",
    "der",
    "ful",
    "lo",
]


def unigram() -> PreTrainedTokenizerFast:
    """A tokenizer of the kind that XLM-R, E5 and mT5 have."""
    scores = [(piece, -len(PIECES) / (1 + len(piece))) for piece in PIECES]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0))
    tokenizer.normalizer = normalizers.Replace("  ", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@given(st.text(alphabet="abehlnoruw ", max_size=30))
def test_without_a_cut_nothing_changes(text: str) -> None:
    for tokenizer in (unigram(), letters_tokenizer(encloses=True)):
        assert cut_ids(tokenizer, text) == tokenizer(text).input_ids


def test_pieces_are_tokenised_apart() -> None:
    tokens = unigram().convert_ids_to_tokens(cut_ids(unigram(), f"hello won{CUT}derful"))
    assert tokens == ["<s>", "▁hello", "▁won", "der", "ful", "</s>"]
    whole = unigram().convert_ids_to_tokens(cut_ids(unigram(), "hello wonderful"))
    assert whole == ["<s>", "▁hello", "▁wonderful", "</s>"]


@given(st.text(alphabet="abc de.", max_size=40), st.integers(0, 9))
def test_cuts_keep_the_text(text: str, seed: int) -> None:
    marked = with_cuts(text, 1.0, random.Random(seed))
    assert marked.replace(CUT, "") == text
    for word, original in zip(marked.split(" "), text.split(" "), strict=True):
        assert word.count(CUT) == (len(original) >= 3)
        assert not word.startswith(CUT)
        assert not word.endswith(CUT)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 400, 600), (1.0, 1000, 1000)])
def test_the_share_is_kept(share: float, low: int, high: int) -> None:
    assert low <= with_cuts("word " * 999 + "word", share, random.Random(0)).count(CUT) <= high


def test_the_collator_hears_cuts(one: LangBridge) -> None:
    """A character tokenizer sees the same tokens with and without a cut, and never the mark itself."""
    marked, plain = (one.collate([Example(source=text)]) for text in (f"what is t{CUT}his", "what is this"))
    assert marked.encoder_ids.tolist() == plain.encoder_ids.tolist()
