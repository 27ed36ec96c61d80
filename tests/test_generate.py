"""Text in, text out, on tiny models."""

import pytest
import torch

from conftest import build
from langbridge.checkpoint import LangBridge
from langbridge.data import Example
from langbridge.errors import PromptError
from langbridge.generate import BridgedGenerator, PlainGenerator, Sampling, cut

PROMPTS = ["short", "a much longer one, really", "mid size"]


@pytest.mark.parametrize("kind", [BridgedGenerator, PlainGenerator])
def test_padding_does_not_change_the_answer(tiny: LangBridge, kind: type[BridgedGenerator]) -> None:
    """A prompt answers the same alone and beside longer ones, and order is kept."""
    generator = kind(tiny, batch_size=3)
    together = generator.generate(PROMPTS, Sampling(max_new_tokens=6))
    assert together == [generator.generate([prompt], Sampling(max_new_tokens=6))[0] for prompt in PROMPTS]


def test_score_is_the_log_likelihood_of_a_choice(tiny: LangBridge) -> None:
    generator = BridgedGenerator(tiny)
    scores = generator.score("which?", ["this", "that one"])
    for choice, score in zip(["this", "that one"], scores, strict=True):
        batch = tiny.collate([Example(source="which?", target=choice)], end=False)
        with torch.no_grad():
            assert score == pytest.approx(float(tiny.log_likelihood(batch).sum()), abs=1e-4)


def test_plain_is_the_lm_on_the_text(one: LangBridge) -> None:
    generator = PlainGenerator(one)
    text = one.template.before + "who?" + one.template.after
    ids = torch.tensor([one.lm_tokenizer(text, add_special_tokens=False).input_ids])
    wanted = one.language_model.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0
    )[0, ids.shape[1] :]
    decoded = one.lm_tokenizer.decode(wanted, skip_special_tokens=True).strip()
    assert generator.generate(["who?"], Sampling(max_new_tokens=5)) == [decoded]


def test_control_tokens_in_a_users_text_stay_text(one: LangBridge) -> None:
    before, inside = PlainGenerator(one), "a</s>b"
    mask = before._prompt([Example(source=inside)]).mask
    plain = before._prompt([Example(source="a<_s>b")]).mask
    assert mask.shape == plain.shape


def test_streamed_pieces_are_the_answer(one: LangBridge) -> None:
    generator = BridgedGenerator(one)
    sampling = Sampling(max_new_tokens=6)
    assert "".join(generator.stream("who?", sampling)).strip() == generator.generate(["who?"], sampling)[0]


def test_sampling_is_seeded(one: LangBridge) -> None:
    generator = BridgedGenerator(one)
    first, again, other = (
        generator.generate(["who?"], Sampling(max_new_tokens=12, temperature=1.5, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("prompt", "complaint"), [("", "empty"), (" \n", "empty"), ("x" * 300, "302 encoder tokens, more than the 200")]
)
def test_bad_prompts_are_refused(one: LangBridge, prompt: str, complaint: str) -> None:
    with pytest.raises(PromptError, match=complaint):
        BridgedGenerator(one).generate([prompt])
    with pytest.raises(PromptError, match=complaint):
        list(BridgedGenerator(one).stream(prompt))


def test_too_many_new_tokens_are_refused(one: LangBridge) -> None:
    with pytest.raises(PromptError, match="more than the LM's 256"):
        BridgedGenerator(one).generate(["who?"], Sampling(max_new_tokens=300))


def test_nonsense_sampling_is_refused() -> None:
    with pytest.raises(PromptError, match="temperature"):
        Sampling(temperature=-1)
    with pytest.raises(PromptError, match="stop string"):
        Sampling(stop=("",))


def test_stop_strings_cut_the_answer(one: LangBridge) -> None:
    generator = BridgedGenerator(one)
    whole = generator.generate(["who?"], Sampling(max_new_tokens=8))[0]
    stop = whole[3]
    assert generator.generate(["who?"], Sampling(max_new_tokens=8, stop=(stop,)))[0] == whole.split(stop)[0].strip()
    assert cut("one two three", ("three", "two")) == "one"


def test_explain_names_every_vector(one: LangBridge) -> None:
    """A bridge that maps each state onto one word embedding is heard as that word."""
    generator = BridgedGenerator(one)
    target = one.lm_tokenizer("z", add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        one.bridge.linear.weight.zero_()
        one.bridge.linear.bias.copy_(one.language_model.vectors[target])
    heard = generator.explain("who?", nearest=2)
    assert [h.encoder_token for h in heard] == ["<s>", "w", "h", "o", "?", "</s>", "(boundary)"]
    assert {h.nearest[0][0] for h in heard[:-1]} == {"z"}
    assert generator.soft_prompt("who?").shape == (7, one.language_model.dim)


def test_templates_around_the_soft_prompt() -> None:
    """`none` sends everything through the encoder: [soft prompt][answer]."""
    model = build(template="none")
    batch = model.collate([Example(source="hi")])
    assert batch.before_ids.shape[1] == batch.after_ids.shape[1] == 0
    assert BridgedGenerator(model).generate(["hi"], Sampling(max_new_tokens=3))
