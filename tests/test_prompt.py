"""Templates, and the tokens in front of and behind the slot."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from langbridge.errors import PromptError
from langbridge.prompt import NAMED, SLOT, PromptTemplate, default_template

CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,:#\n{}|<>/"


def tokenizer(
    frame: str = "$A", *, chat_template: str | None = None, bos: str | None = "<s>"
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single characters whose post-processor frames every text as in `frame`."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", "<cls>", *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    specials = [(token, vocabulary[token]) for token in ("<s>", "</s>", "<cls>")]
    backend.post_processor = processors.TemplateProcessing(single=frame, special_tokens=specials)
    result = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="</s>", unk_token="<unk>", cls_token="<cls>"
    )
    result.chat_template = chat_template
    return result


PLAIN = tokenizer()


def characters(text: str) -> list[int]:
    """Return the ids of `text`, character by character: the oracle."""
    return [4 + CHARACTERS.index(character) for character in text]


def test_toy_tokenizers_differ_only_in_the_begin_token() -> None:
    assert tokenizer("<s> $A")("ab").input_ids == [0, *characters("ab")]
    assert tokenizer("$A")("ab").input_ids == characters("ab")


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_surround_the_slot(name: str) -> None:
    template = PromptTemplate.of(name, tokenizer())
    assert template.text == NAMED[name]
    assert template.text.count(SLOT) == 1


def test_metamath_is_the_template_of_the_paper() -> None:
    template = PromptTemplate.of("metamath", tokenizer())
    assert template.before.endswith("appropriately completes the request.\n\n### Instruction:\n")
    assert template.after == "\n\n### Response:\n"


def test_orca_speaks_in_three_turns() -> None:
    template = PromptTemplate.of("orca", tokenizer())
    assert template.before.startswith("<|im_start|>system\nYou are Orca")
    assert template.before.endswith("<|im_end|>\n<|im_start|>user\n")
    assert template.after == "<|im_end|>\n<|im_start|>assistant\n"


def test_none_is_the_slot_alone() -> None:
    assert PromptTemplate.of("none", tokenizer()) == PromptTemplate("", "")


def test_own_text_is_split_at_its_slot() -> None:
    assert PromptTemplate.of("Q: {prompt}\nA:", tokenizer()) == PromptTemplate("Q: ", "\nA:")


pieces = st.lists(st.sampled_from(["{", "}", "prompt", SLOT, "chat", "none", " ", "\n", "é"]), max_size=5).map("".join)


@settings(deadline=None)
@given(before=pieces, after=pieces)
def test_text_is_read_back(before: str, after: str) -> None:
    """A run folder keeps `text`; `of` must give the same template again."""
    template = PromptTemplate(before, after)
    if template.text.count(SLOT) == 1:
        assert PromptTemplate.of(template.text, PLAIN) == template


@pytest.mark.parametrize(("name", "slots"), [("alpaca", 0), ("", 0), ("{prompt} and {prompt}", 2), ("{ prompt }", 0)])
def test_template_needs_one_slot(name: str, slots: int) -> None:
    with pytest.raises(PromptError, match=f"has {slots} .*slots.*exactly one") as raised:
        PromptTemplate.of(name, tokenizer())
    assert repr(name) in str(raised.value)
    assert "chat, metamath, orca, orca_choices, orca_steps, none" in str(raised.value)


def test_chat_is_the_tokenizers_own_template() -> None:
    template = PromptTemplate.of("chat", tokenizer(chat_template=CHATML))
    assert template == PromptTemplate("<|user|>", "</s><|assistant|>")


def test_chat_without_a_chat_template_says_what_to_set() -> None:
    with pytest.raises(PromptError, match=r"no chat template.*metamath, orca, none"):
        PromptTemplate.of("chat", tokenizer())


@pytest.mark.parametrize("chat_template", ["hello", "{{ messages[0]['content'] }} {{ messages[0]['content'] }}"])
def test_chat_template_that_loses_or_repeats_the_content(chat_template: str) -> None:
    with pytest.raises(PromptError, match="exactly one"):
        PromptTemplate.of("chat", tokenizer(chat_template=chat_template))


def test_default_is_chat_for_chat_models() -> None:
    assert default_template(tokenizer(chat_template=CHATML)) == "chat"
    assert default_template(tokenizer()) == "none"


def test_instruction_stands_directly_before_the_slot() -> None:
    template = PromptTemplate("<|user|>", "</s>")
    assert template.with_instruction("Repeat: ").text == "<|user|>Repeat: {prompt}</s>"
    assert template.with_instruction("") == template
    assert template.text == "<|user|>{prompt}</s>"


def test_begin_token_comes_first_where_the_tokenizer_adds_one() -> None:
    assert PromptTemplate("ab", "cd").before_ids(tokenizer("<s> $A")) == [0, *characters("ab")]


def test_begin_token_stands_even_before_an_empty_text() -> None:
    """With template `none` the LM still expects its begin token, alone in front of the soft prompt."""
    assert PromptTemplate("", "").before_ids(tokenizer("<s> $A")) == [0]


def test_no_begin_token_where_the_tokenizer_adds_none() -> None:
    """Having a begin token is not using it (SmolLM2, Qwen2)."""
    assert PromptTemplate("ab", "").before_ids(tokenizer("$A")) == characters("ab")
    assert PromptTemplate("", "").before_ids(tokenizer("$A")) == []


def test_begin_token_is_not_doubled() -> None:
    """Many chat templates write the begin token themselves."""
    written = PromptTemplate("<s>ab", "")
    assert written.before_ids(tokenizer("<s> $A")) == [0, *characters("ab")]
    assert written.before_ids(tokenizer("$A")) == [0, *characters("ab")]


def test_end_token_of_the_tokenizer_is_left_out() -> None:
    assert PromptTemplate("ab", "").before_ids(tokenizer("<s> $A </s>")) == [0, *characters("ab")]
    assert PromptTemplate("ab", "").before_ids(tokenizer("$A </s>")) == characters("ab")


def test_other_leading_tokens_are_not_begin_tokens() -> None:
    assert PromptTemplate("ab", "").before_ids(tokenizer("<cls> $A")) == characters("ab")
    assert PromptTemplate("ab", "").before_ids(tokenizer("<s> $A", bos=None)) == characters("ab")


@pytest.mark.parametrize("frame", ["<s> $A", "$A", "<s> $A </s>"])
def test_nothing_is_added_behind_the_slot(frame: str) -> None:
    assert PromptTemplate("ab", "cd").after_ids(tokenizer(frame)) == characters("cd")
    assert PromptTemplate("ab", "").after_ids(tokenizer(frame)) == []


def test_control_tokens_of_a_chat_template_are_single_ids() -> None:
    lm_tokenizer = tokenizer("<s> $A", chat_template="<s>" + CHATML)
    template = PromptTemplate.of("chat", lm_tokenizer)
    assert template.before_ids(lm_tokenizer) == [0, *characters("<|user|>")]
    assert template.after_ids(lm_tokenizer) == [1, *characters("<|assistant|>")]
    filled = lm_tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True)
    assert template.before_ids(lm_tokenizer) + template.after_ids(lm_tokenizer) == list(filled["input_ids"])
