"""Unlabelled text cut in two: nothing is lost, nothing repeated; the paper's ranges; runs that resume."""

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from conftest import letters_tokenizer
from langbridge.checkpoint import LangBridge, read_config
from langbridge.config import ObjectiveConfig, Recipe
from langbridge.data import Collator
from langbridge.errors import ConfigError, DataError
from langbridge.pretrained import load_tokenizer, with_whitespace
from langbridge.prompt import PromptTemplate
from langbridge.train.run import train
from langbridge.train.unlabelled import Text, ToCuts, cut_place, drawn, halves, preview
from tokenizers_for_tests import byte_level, sentence_piece


def byte_fallback() -> PreTrainedTokenizerFast:
    """As mT5 and Llama are: letters, and bytes for every other character; compatibility forms are unfolded."""
    pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnop",
        "ab",
        "▁a",
    ]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {
    "letters": letters_tokenizer(encloses=True),
    "bytes": byte_level(),
    "byte fallback": byte_fallback(),
    "sentence piece": sentence_piece(),
    "with whitespace": with_whitespace(sentence_piece()),
}


def collator(tokenizer: PreTrainedTokenizerBase, prefix: str = "", suffix: str = "") -> Collator:
    return Collator(
        encoder_tokenizer=tokenizer,
        lm_tokenizer=letters_tokenizer(encloses=False),
        template=PromptTemplate("", ""),
        longest_source=4096,
        prefix=prefix,
        suffix=suffix,
    )


LONG = ["👩\u200d👩\u200d👧", "नि", "ﬃ", "㍿", "한", "e\u0301", "🇰🇪", "𝔘", "\u200d", "ا"]
characters = st.one_of(
    st.sampled_from(["a", "b", " ", "\n", "\t", ".", *LONG]), st.characters(exclude_categories=["Cs"])
)
mixed = st.lists(characters, max_size=30).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=250)
@given(text=mixed, tokens=st.integers(3, 40), around=st.booleans())
def test_no_character_is_lost_or_repeated(name: str, text: str, tokens: int, around: bool) -> None:
    """Property: both parts have text, together they are the text, and the first has no more tokens than asked for."""
    collate = collator(TOKENIZERS[name], *("a ", " b") if around else ("", ""))
    place = cut_place(text, tokens, collate)
    if place == 0:
        return
    example = halves(text, tokens, collate)
    assert example.source + example.target == text
    assert example.source.strip()
    assert example.target.strip()
    assert not example.complete  # more could follow: no end token
    # what begins the text may take more tokens than asked for: then no cut is shorter
    assert len(collate.source_ids(example.source)) <= tokens or place == cut_place(text, 3, collate)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_place_of_a_text_with_long_characters(name: str) -> None:
    """Cuts inside characters of two to four bytes and inside a ligature fall in front of them."""
    text = "ab né ﬃ 한국 👩‍👩‍👧 नि ab"
    collate = collator(TOKENIZERS[name])
    seen = set()
    for tokens in range(3, 80):
        example = halves(text, tokens, collate)
        assert example.source + example.target == text
        seen.add(len(example.source))
    assert len(seen) > 5


def test_a_cut_is_as_long_as_it_may_be() -> None:
    collate = collator(TOKENIZERS["letters"])
    text = "abcdefghij" * 3
    for tokens in range(3, 30):
        assert len(collate.source_ids(halves(text, tokens, collate).source)) == tokens
    assert halves(text, 99, collate).source == text[:15]  # shorter than the cut: in its middle
    assert cut_place("a", 5, collate) == 0  # nothing to cut
    assert cut_place("  \n", 5, collate) == 0
    assert cut_place("a  ", 5, collate) == 0


@settings(deadline=None)
@given(seed=st.integers(0, 10**6))
def test_lengths_lie_in_the_papers_ranges(seed: int) -> None:
    cut, room = drawn(ObjectiveConfig(), 1024, random.Random(seed))
    assert 32 <= cut <= 1024
    assert 128 <= room <= 1152 - cut


def test_lengths_are_spread_over_the_ranges() -> None:
    rng = random.Random(0)
    cuts, rooms = zip(*(drawn(ObjectiveConfig(), 1024, rng) for _ in range(4000)), strict=True)
    assert abs(sum(cuts) / 4000 - 528) < 15
    assert abs(sum(rooms) / 4000 - 376) < 15  # the mean of U[128, 1152 - cut]
    assert min(cuts) < 36
    assert max(cuts) > 1020


def test_a_batch_has_one_cut_which_its_texts_and_epoch_decide() -> None:
    objective = ObjectiveConfig(kind="prefix_lm", shortest=4, longest=20, continuation=3)
    to_batch = ToCuts(collator(TOKENIZERS["letters"]), objective, seed=1)
    texts = [Text("abcdefghijklmnopqrstuvwxyz" * 2, i) for i in (3, 5)]
    batch, again = to_batch(texts), to_batch(texts)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["encoder_mask"].all()  # as long as each other
    assert batch["target_mask"].all()
    later = [to_batch([Text(text.text, text.index + 100 * epoch) for text in texts]) for epoch in range(1, 9)]
    assert len({other["encoder_ids"].shape[1] for other in later}) > 2
    for other in later:
        cut, room = other["encoder_ids"].shape[1], other["target_ids"].shape[1]
        assert 4 <= cut <= 20
        assert 3 <= room <= 23 - cut
        assert 2 not in other["target_ids"]  # no end token


def test_a_preview_is_short() -> None:
    example = preview("abcdefghij" * 20, collator(TOKENIZERS["letters"]), 16)
    assert (len(example.source), len(example.target)) == (14, 16)


@pytest.mark.embedded
@pytest.mark.usefixtures("embedded")
def test_the_embedded_tokenizer_loses_nothing() -> None:
    collate = collator(load_tokenizer("embedded:e5-small"))
    for language in ("tha", "jpn", "tam", "ara"):
        from langbridge.data.parallel import sanity_set

        text = " ".join(sanity_set().sources[language][:4])
        for tokens in range(4, 40, 3):
            example = halves(unicodedata.normalize("NFD", text), tokens, collate)
            assert example.source + example.target == unicodedata.normalize("NFD", text)
            assert len(collate.source_ids(example.source)) <= tokens


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    words = ["tea", "rain", "a cat", "the old man", "my sister", "nobody here", "snow"]
    texts = [f"{word} is number {i}, and so on until it ends." for i in range(4) for word in words]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def recipe(saved: dict[str, Path], data: Path, /, **sections: dict[str, Any]) -> Recipe:
    fields: dict[str, Any] = {
        "encoder": {"name": str(saved["mt5"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": "none"},
        "objective": {"kind": "prefix_lm", "shortest": 6, "longest": 24, "continuation": 8},
        "data": {"train": str(data), "validation": 4},
        "warm_start": {"sentences": 10},
        "training": {"steps": 9, "batch_size": 4, "save_every": 4, "evaluate_every": 9, "precision": "fp32"},
    }
    for name, section in sections.items():
        fields[name] = fields.get(name, {}) | section
    return Recipe.of(fields, "test")


def test_a_run_trains_the_encoder_too_and_resumes(saved: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """The paper's rule: unlabelled text trains the encoder. More than one epoch; resumed = uninterrupted."""
    settings = recipe(saved, data)
    torch.manual_seed(settings.training.seed)
    before = LangBridge.from_recipe(settings).encoder.state_dict()
    model = train(settings, tmp_path / "run")
    moved = [name for name, value in model.encoder.state_dict().items() if not torch.equal(value, before[name])]
    assert any("block.0" in name for name in moved)
    assert read_config(tmp_path / "run").encoder_policy == "trained"
    assert {name.split(".")[0] for name in model.trained()} == {"bridge", "encoder"}
    for name in ("bridge.safetensors", "langbridge.json", "checkpoint-9/trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    resumed = train(settings, tmp_path / "run", resume=True)
    assert all(torch.equal(value, resumed.trained()[name]) for name, value in model.trained().items())


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"objective": {"shortest": 2}}, "need 2 < shortest <= longest, got 2"),
        ({"objective": {"shortest": 30}}, "need 2 < shortest <= longest, got 30 and 24"),
        ({"objective": {"longest": 600}}, "objective.longest 600 is more than encoder.longest 512"),
        ({"objective": {"continuation": 0}}, "continuation must be positive"),
        ({"data": {"answers": 0.5, "cut_words": 0.1}}, "data.answers and data.cut_words mean nothing for unlabelled"),
    ],
)
def test_mistakes_are_named(saved: dict[str, Path], data: Path, sections: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        recipe(saved, data, **sections)


def test_texts_without_two_parts_are_skipped(saved: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a", "b", "c")), encoding="utf-8")
    with pytest.raises(DataError, match="3 records, 0 within"):
        train(recipe(saved, path), tmp_path / "run")
    path.write_text('{"source": "a", "target": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match='wanted an object with "text"'):
        train(recipe(saved, path), tmp_path / "run")
