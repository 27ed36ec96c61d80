"""Text becomes ids and masks, padded on the right side."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from langbridge.data import Collator, Example
from langbridge.data.collate import pad
from langbridge.errors import PromptError
from langbridge.prompt import PromptTemplate

ENCODER_WORDS = ["<pad>", "</s>", "<unk>", "query:", "one", "two", "three", "four"]
LM_WORDS = ["<s>", "</s>", "<unk>", "<pad>", "User", "Bot", "Say", "again", "uno", "due", "tre"]
PAD, EOS, UNK, QUERY, ONE, TWO, THREE, FOUR = range(8)
LM_BOS, LM_EOS, LM_UNK, LM_PAD, USER, BOT, SAY, AGAIN, UNO, DUE, TRE = range(11)


def tokenizer(words: list[str], frame: str, bos: str | None, eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words whose post-processor frames every text as in `frame`."""
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = [(token, vocabulary[token]) for token in ("<s>", "</s>") if token in vocabulary]
    backend.post_processor = processors.TemplateProcessing(single=frame, special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token="<unk>", pad_token="<pad>"
    )


def collator(*, longest_source: int = 4, prefix: str = "", eos: str | None = "</s>") -> Collator:
    return Collator(
        encoder_tokenizer=tokenizer(ENCODER_WORDS, "$A </s>", bos=None),
        lm_tokenizer=tokenizer(LM_WORDS, "<s> $A", bos="<s>", eos=eos),
        template=PromptTemplate("User ", " Bot"),
        longest_source=longest_source,
        prefix=prefix,
    )


EXAMPLES = [
    Example(source="one two three", target="uno due tre", instruction="Say again "),
    Example(source="four", target="tre"),
]


def test_encoder_is_padded_right_and_everything_of_the_lm_left() -> None:
    batch = collator()(EXAMPLES)
    assert batch.encoder_ids.tolist() == [[ONE, TWO, THREE, EOS], [FOUR, EOS, PAD, PAD]]
    assert batch.encoder_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.before_ids.tolist() == [[LM_BOS, USER, SAY, AGAIN], [LM_PAD, LM_PAD, LM_BOS, USER]]
    assert batch.before_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch.after_ids.tolist() == [[BOT], [BOT]]
    assert batch.after_mask.tolist() == [[1], [1]]
    assert batch.target_ids.tolist() == [[UNO, DUE, TRE, LM_EOS], [LM_PAD, LM_PAD, TRE, LM_EOS]]
    assert batch.target_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


def test_all_tensors_are_int64_and_have_one_row_each() -> None:
    for tensor in collator()(EXAMPLES).parts().values():
        assert tensor.dtype == torch.int64
        assert len(tensor) == len(EXAMPLES)


def test_without_end_the_target_is_open() -> None:
    """A choice that is scored, or an answer that is continued, has no end token."""
    batch = collator()(EXAMPLES, end=False)
    assert batch.target_ids.tolist() == [[UNO, DUE, TRE], [LM_PAD, LM_PAD, TRE]]
    assert batch.target_mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_lm_without_an_end_token_gets_none() -> None:
    assert collator(eos=None)(EXAMPLES).target_ids.tolist() == [[UNO, DUE, TRE], [LM_PAD, LM_PAD, TRE]]


def test_target_has_no_begin_token() -> None:
    assert collator().target_ids("uno") == [UNO, LM_EOS]
    assert collator().target_ids("uno", end=False) == [UNO]


def test_prompts_without_target_give_width_zero() -> None:
    batch = collator()([Example(source="one"), Example(source="two")])
    assert batch.target_ids.shape == batch.target_mask.shape == (2, 0)


def test_prompt_beside_an_example_has_an_empty_target() -> None:
    batch = collator()([Example(source="one"), EXAMPLES[0]])
    assert batch.target_mask.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]


def test_prefix_stands_in_front_of_every_source() -> None:
    batch = collator(prefix="query: ")([Example(source="one two"), Example(source="four")])
    assert batch.encoder_ids.tolist() == [[QUERY, ONE, TWO, EOS], [QUERY, FOUR, EOS, PAD]]


def test_longest_source_is_allowed_and_one_more_is_not() -> None:
    collate = collator(longest_source=4)
    assert collate.source_ids("one two three") == [ONE, TWO, THREE, EOS]
    with pytest.raises(PromptError, match=r"has 5 encoder tokens, more than the 4 .* shorten it.*'one two three four'"):
        collate.source_ids("one two three four")


def test_prefix_counts_towards_the_longest_source() -> None:
    with pytest.raises(PromptError, match="has 5 encoder tokens"):
        collator(longest_source=4, prefix="query: ").source_ids("one two three")


def test_over_long_prompt_in_a_batch_is_refused_and_quoted_in_part() -> None:
    long = "one " * 1000
    with pytest.raises(PromptError, match="has 1001 encoder tokens") as raised:
        collator()([EXAMPLES[1], Example(source=long)])
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize("source", ["", " ", "\n\t ", "\u3000"])
@pytest.mark.parametrize("prefix", ["", "query: "])
def test_empty_prompt_is_refused(source: str, prefix: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        collator(prefix=prefix)([EXAMPLES[1], Example(source=source)])


words = st.lists(st.sampled_from(["one", "two", "three", "four"]), min_size=1, max_size=3).map(" ".join)
answers = st.lists(st.sampled_from(["uno", "due", "tre"]), max_size=4).map(" ".join)
instructions = st.sampled_from(["", "Say ", "Say again "])


@settings(deadline=None)
@given(
    rows=st.lists(st.builds(Example, source=words, target=answers, instruction=instructions), min_size=1, max_size=4)
)
def test_a_row_holds_the_same_tokens_alone_and_in_a_batch(rows: list[Example]) -> None:
    collate = collator()
    batch = vars(collate(rows))
    for i, row in enumerate(rows):
        alone = vars(collate([row]))
        for part in ("encoder", "before", "after", "target"):
            ids, mask = batch[f"{part}_ids"][i], batch[f"{part}_mask"][i]
            assert ids[mask == 1].tolist() == alone[f"{part}_ids"][0].tolist()
            assert mask.sum() == alone[f"{part}_mask"].sum()


@settings(deadline=None)
@given(rows=st.lists(st.lists(st.integers(1, 9), max_size=5), max_size=5), left=st.booleans())
def test_pad_against_lists(rows: list[list[int]], left: bool) -> None:
    ids, mask = pad(rows, 0, left=left)
    longest = max(map(len, rows), default=0)
    assert ids.shape == mask.shape == (len(rows), longest)
    for row, padded, content in zip(rows, ids.tolist(), mask.tolist(), strict=True):
        gap = [0] * (longest - len(row))
        assert padded == (gap + row if left else row + gap)
        assert content == (gap + [1] * len(row) if left else [1] * len(row) + gap)
