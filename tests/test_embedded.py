"""The embedded real models and the bridge that ships with them."""

import pytest
import torch
from transformers import GenerationConfig

from langbridge.checkpoint import LangBridge
from langbridge.data import Example, read_examples
from langbridge.data.cutting import CUT, cut_ids
from langbridge.data.parallel import sanity_set
from langbridge.generate import BridgedGenerator, PlainGenerator, Sampling
from langbridge.pretrained import load_encoder, load_tokenizer
from langbridge.routing import load
from langbridge.transfer import compare

pytestmark = [pytest.mark.embedded, pytest.mark.usefixtures("embedded")]


@pytest.fixture(scope="module")
def bridged() -> BridgedGenerator:
    return load("embedded")


def test_converted_encoder_reads_languages_alike() -> None:
    """Cosines of pooled sentences tell whether the 4-bit weights were unpacked rightly."""
    encoder, tokenizer = load_encoder("embedded:e5-small"), load_tokenizer("embedded:e5-small")
    texts = ["How old are you?", "Quel âge as-tu ?", "నీ వయస్సు ఎంత?", "The train leaves at nine."]
    batch = tokenizer([f"query: {text}" for text in texts], return_tensors="pt", padding=True)
    with torch.no_grad():
        states = encoder(batch.input_ids, batch.attention_mask)
    mask = batch.attention_mask[..., None]
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    french, telugu, other = (pooled[1:] @ pooled[0]).tolist()
    assert french == pytest.approx(0.94, abs=0.01)
    assert telugu == pytest.approx(0.92, abs=0.02)
    assert other < 0.85


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("ఫ్రాన్స్ రాజధాని ఏది?", "Paris"),
        ("რომელია საფრანგეთის დედაქალაქი?", "Paris"),
        ("Mji mkuu wa Ufaransa ni upi?", "Paris"),
        ("Was ist die Hauptstadt von Italien?", "Rome"),
    ],
)
def test_the_shipped_bridge_answers(bridged: BridgedGenerator, question: str, answer: str) -> None:
    """Telugu, Georgian, Swahili and German in, English out; the LM alone answers none of the first three."""
    assert answer in bridged.generate([question], Sampling(max_new_tokens=24))[0]


def test_alone_and_together_are_the_same(bridged: BridgedGenerator) -> None:
    prompts = sanity_set().sources["tel"][:6]
    together = bridged.generate(prompts, Sampling(max_new_tokens=8))
    assert together == [bridged.generate([prompt], Sampling(max_new_tokens=8))[0] for prompt in prompts]
    examples = [Example(source=prompt, target="It is raining.") for prompt in prompts]
    alone = [bridged.scores([example])[0].log_likelihood for example in examples]
    assert [score.log_likelihood for score in bridged.scores(examples)] == pytest.approx(alone, abs=1e-3)


def test_generate_is_a_naive_greedy_loop(bridged: BridgedGenerator) -> None:
    model: LangBridge = bridged.model
    batch = model.collate([Example(source="Was ist die Hauptstadt von Japan?")])
    config = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=2, eos_token_id=2)
    new = model.generate(batch, config)[0].tolist()
    with torch.no_grad():
        vectors = model.prompt(batch).vectors
        wanted: list[int] = []
        while len(wanted) < 8 and 2 not in wanted:
            wanted.append(int(model.language_model.model(inputs_embeds=vectors).logits[0, -1].argmax()))
            vectors = torch.cat([vectors, model.language_model.vectors[wanted[-1]][None, None]], dim=1)
    assert new[: len(wanted)] == wanted


def test_the_right_sentence_is_worth_something_in_every_development_language(bridged: BridgedGenerator) -> None:
    data = sanity_set().choose(["deu", "swh", "tel", "kat"], limit=12)
    english = data.references("deu")
    pivot = compare(bridged, english, english)
    for language, sources in data.sources.items():
        assert compare(bridged, sources, english).gain / pivot.gain > 0.3, language


def test_plain_knows_english_facts(bridged: BridgedGenerator) -> None:
    plain = PlainGenerator(bridged.model)
    answer = plain.generate(["What is the capital of Japan?"], Sampling(max_new_tokens=16))[0]
    assert "Tokyo" in answer


def test_the_shipped_set_is_large_english_and_without_test_sentences() -> None:
    examples = read_examples("shipped")
    assert len(examples) >= 12_000
    sources = {example.source for example in examples}
    assert not sources & set(sanity_set().sources["eng"])
    assert all(text.isascii() or "’" in text for text in sources)
    lengths = sorted(len(source.split()) for source in sources)
    assert lengths[len(lengths) // 2] <= 10


def test_the_shipped_bridge_is_small(bridged: BridgedGenerator) -> None:
    from langbridge.checkpoint import run_folder

    assert sum(path.stat().st_size for path in run_folder("embedded").rglob("*")) < 2_000_000
    assert sum(value.numel() for value in bridged.model.trained().values()) == 222_336


def test_cut_words_are_the_encoders_own_tokens_where_nothing_is_cut() -> None:
    tokenizer = load_tokenizer("embedded:e5-small")
    for text in ("Where is the nearest railway station?", "I don't know  who won.", "Tom's 3,000 euros — gone!"):
        assert cut_ids(tokenizer, text) == tokenizer(text).input_ids
    tokens = tokenizer.convert_ids_to_tokens(cut_ids(tokenizer, f"a won{CUT}derful day"))
    assert tokens == ["<s>", "▁a", "▁won", "der", "ful", "▁day", "</s>"]
