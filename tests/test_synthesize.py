"""The LM's writing: filters, and runs that are interrupted, with a tiny Llama that really writes English."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from langbridge.data import read_examples
from langbridge.errors import ConfigError, DataError, LangBridgeError
from langbridge.prompt import REPEAT, PromptTemplate
from langbridge.synthesize import LONGEST, SHORTEST, Openers, Synthesis, first_sentence, is_good, normalised, synthesize

NOUNS = [" cat", " dog", " house", " teacher", " river", " book", " window", " garden", " SmolLM"]
ADJECTIVES = [" small", " old", " red", " quiet", " happy", " long"]
FOLLOWS = {
    ("\n",): ["The", "My"],
    ("The", "My", " the", " my", " a"): NOUNS + ADJECTIVES,
    tuple(ADJECTIVES): NOUNS,
    tuple(NOUNS): [" is", " likes", " sees", " has", " near", ".", "?"],
    (" is",): [" cold", " good", " new"],
    (" cold", " good", " new"): [".", "?", " today"],
    (" today",): [".", "?"],
    (" likes", " sees", " has", " near", " in"): [" the", " my", " a"],
    (".", "?"): ["\n", "<|end|>", " The"],
    (" The",): NOUNS,
}
"""What may follow each token; the first is the likeliest, so the greedy answer is "The cat is cold."."""
WORDS = [
    *("<unk>", "<|user|>", "<|end|>", "<|bot|>", "Here", " are", " lines", ":", "Is", "Does", "Where", "I", " like"),
    *itertools.chain(*FOLLOWS, *FOLLOWS.values()),
]
VOCABULARY = list(dict.fromkeys(WORDS))
N = 24
TEMPLATE = PromptTemplate("<|user|>\n", "<|end|>\n<|bot|>\n")
OPENERS = Openers(
    questions=["Is the", "Does my {word}", "Where is the", "Is a {word}"],
    sentences=["The", "My {word}", "I like the", "I like a"],
    words=["cat", "river", "book"],
    sentence_list="Here are lines:\n",
    question_list="Here are lines:\n",
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of words that carry their leading space."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| ?[A-Za-z]+|[.?:]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<|user|>", "<|end|>", "<|bot|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<|end|>", pad_token="<unk>")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Return a Llama whose next token depends on the last one alone, as in FOLLOWS."""
    size = len(VOCABULARY) + len(VOCABULARY) % 2
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=VOCABULARY.index("<|end|>"),
    )
    lm = LlamaForCausalLM(config)
    scores = torch.full((size, size), -30.0)  # (next, last)
    for lasts, nexts in FOLLOWS.items():
        for last, (rank, following) in itertools.product(lasts, enumerate(nexts)):
            scores[VOCABULARY.index(following), VOCABULARY.index(last)] = -0.05 * rank
    with torch.no_grad():
        lm.model.layers[0].self_attn.o_proj.weight.zero_()
        lm.model.layers[0].mlp.down_proj.weight.zero_()
        lm.model.embed_tokens.weight.copy_(torch.eye(size))
        lm.lm_head.weight.copy_(scores / size**0.5)  # the last norm makes a one-hot vector size**0.5 long
    return lm


Write = Callable[..., int]


@pytest.fixture(scope="module")
def write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Write:
    """Return `synthesize` with everything tiny."""

    def run(out: Path, n: int = N, seed: int = 0, **options: object) -> int:
        template = options.pop("template", TEMPLATE)
        chosen = Synthesis(n=n, seed=seed, batch_size=4)
        return synthesize(model, tokenizer, template, chosen, out, **{"openers": OPENERS} | options)

    return run


@pytest.fixture(scope="module")
def whole(write: Write, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return what an uninterrupted run writes: the oracle."""
    out = tmp_path_factory.mktemp("whole") / "deep" / "english.jsonl"
    assert write(out) == N
    assert [path.name for path in out.parent.iterdir()] == ["english.jsonl"]
    return out.read_bytes()


class PowerCut(BaseException):
    """What interrupts a run in these tests."""


def cut_at(batch: int) -> Callable[[int, int], None]:
    """Return a progress callback that ends the run before batch number `batch`."""
    calls = itertools.count()

    def progress(done: int, total: int) -> None:
        if next(calls) == batch:
            raise PowerCut

    return progress


def records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def test_records_are_examples_of_three_kinds(whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "english.jsonl"
    out.write_bytes(whole)
    examples = read_examples(str(out))
    assert len(examples) == N
    repeated = [example for example in examples if example.instruction == REPEAT]
    answered = [example for example in examples if not example.instruction]
    assert len(repeated) + len(answered) == N
    assert all(example.source == example.target for example in repeated)
    assert {example.target for example in answered} == {"The cat is cold."}  # the greedy answer, one sentence of it
    assert {example.source for example in answered} < {example.source for example in repeated}
    assert any(example.source.endswith(".") for example in repeated)
    assert any(example.source.endswith("?") for example in repeated)


def test_every_prompt_is_new_and_passes_the_filters(whole: bytes) -> None:
    written = [json.loads(line) for line in whole.splitlines()]
    repeated = [record["source"] for record in written if record.get("instruction") == REPEAT]
    assert len({normalised(text) for text in repeated}) == len(repeated)
    for text in repeated:
        assert is_good(text, lambda _: True, SHORTEST, LONGEST)
        assert first_sentence(text) == text
        assert "SmolLM" not in text


def test_excluded_texts_are_never_written(write: Write, whole: bytes, tmp_path: Path) -> None:
    """Test sentences stay out, however the LM spells them."""
    exclude = frozenset(normalised(json.loads(line)["source"]) for line in whole.splitlines()[::2])
    write(tmp_path / "rest.jsonl", exclude=exclude)
    rest = records(tmp_path / "rest.jsonl")
    assert len(rest) == N
    assert exclude.isdisjoint(normalised(record["source"]) for record in rest)


def test_seed_decides_the_records(write: Write, whole: bytes, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write(tmp_path / "again.jsonl", progress=lambda done, total: seen.append((done, total)))
    assert (tmp_path / "again.jsonl").read_bytes() == whole
    assert seen[0] == (0, N)  # and progress counts up to the end
    assert seen[-1][0] >= N
    assert seen == sorted(seen)
    write(tmp_path / "other.jsonl", seed=1)
    assert (tmp_path / "other.jsonl").read_bytes() != whole


@pytest.mark.parametrize(("batch", "torn"), [(0, 0), (1, 1), (3, 0), (3, 70)])
def test_interrupted_run_equals_an_uninterrupted_one(
    write: Write, whole: bytes, tmp_path: Path, batch: int, torn: int
) -> None:
    """Cut between batches, in the last line end, or in the middle of a line before it."""
    out = tmp_path / "english.jsonl"
    with pytest.raises(PowerCut):
        write(out, progress=cut_at(batch))
    assert not out.exists()
    content = partial(out).read_bytes()
    partial(out).write_bytes(content[: len(content) - torn])
    resumed: list[int] = []
    assert write(out, progress=lambda done, total: resumed.append(done)) == N
    assert out.read_bytes() == whole
    assert not partial(out).exists()
    if batch == 3:
        assert resumed[0] > 0  # it did go on, and did not begin again


def test_run_may_be_interrupted_twice(write: Write, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "english.jsonl"
    for _ in range(2):
        with pytest.raises(PowerCut):
            write(out, progress=cut_at(2))
    write(out)
    assert out.read_bytes() == whole


def test_more_records_may_be_asked_for_on_the_way(write: Write, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "english.jsonl"
    with pytest.raises(PowerCut):
        write(out, n=N - 5, progress=cut_at(2))
    assert write(out) == N
    assert out.read_bytes() == whole


def test_other_settings_are_refused_and_the_work_is_kept(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "english.jsonl"
    with pytest.raises(PowerCut):
        write(out, progress=cut_at(2))
    before = partial(out).read_bytes()
    with pytest.raises(DataError, match=r"english\.jsonl\.partial was begun with other settings: delete it"):
        write(out, seed=1)
    assert partial(out).read_bytes() == before
    assert not out.exists()


def test_foreign_partial_file_is_refused(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "english.jsonl"
    partial(out).write_text('{"source": "somebody\'s own work"}\n')
    with pytest.raises(DataError, match="other settings"):
        write(out)
    assert partial(out).exists()


def test_old_output_is_whole_until_the_new_one_is(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "english.jsonl"
    out.write_text("old")
    with pytest.raises(PowerCut):
        write(out, progress=cut_at(2))
    assert out.read_text() == "old"


def test_lm_that_writes_nothing_usable_is_given_up(write: Write, tmp_path: Path) -> None:
    """A base LM, or too few openers, once made an endless run."""
    closed = ["cat<|end|>"]  # the turn ends before the LM can add anything
    with pytest.raises(DataError, match=r"nothing new \(0 records so far, kept in .*english\.jsonl\.partial\)"):
        write(tmp_path / "english.jsonl", openers=Openers(closed, closed, ["cat"], "", ""))
    assert not (tmp_path / "english.jsonl").exists()


@pytest.mark.parametrize("after", ["", "\n\n### Response:\n"])
def test_template_without_a_closing_token(write: Write, tmp_path: Path, after: str) -> None:
    """Templates `none` and `metamath` have nothing, or a line end, behind the prompt."""
    out = tmp_path / "english.jsonl"
    try:
        assert write(out, n=5, template=PromptTemplate("\n", after)) == 5
    except LangBridgeError as error:
        assert "template" in str(error)  # noqa: PT017  (working or saying why not: both are fine)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"batch_size": 0}, {"top_k": -1}, {"temperature": 0.0}])
def test_settings_must_be_positive(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        Synthesis(**wrong)


def test_shipped_openers_can_be_read() -> None:
    openers = Openers.read()
    assert len(openers.words) > 100
    assert all(text == text.strip() and text[0].isupper() for text in openers.questions + openers.sentences)
    assert openers.sentence_list.endswith("\n")
    assert openers.question_list.endswith("\n")


@given(rng=st.randoms(use_true_random=False), kind=st.sampled_from(["question", "sentence"]))
@settings(deadline=None)
def test_drawn_openers_are_filled_and_of_the_kind(rng: random.Random, kind: str) -> None:
    drawn = OPENERS.draw(kind, rng)
    choices = OPENERS.questions if kind == "question" else OPENERS.sentences
    assert drawn in {choice.replace("{word}", word) for choice in choices for word in OPENERS.words}


def test_own_openers_of_the_same_shape(tmp_path: Path) -> None:
    path = tmp_path / "openers.yaml"
    path.write_text("questions: [What]\nsentences: [I]\nwords: cat dog\nsentence_list: 'S:'\nquestion_list: 'Q:'\n")
    expected = Openers(["What"], ["I"], ["cat", "dog"], "S:", "Q:")
    assert Openers.read(path) == expected


@pytest.mark.parametrize("content", ["", "- What\n", "questions: [What]\n", "questions: []\nother: 1\n"])
def test_openers_with_missing_or_unknown_fields(tmp_path: Path, content: str) -> None:
    path = tmp_path / "openers.yaml"
    path.write_text(content)
    with pytest.raises(DataError, match="wanted the fields questions, sentences, words, sentence_list, question_list"):
        Openers.read(path)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "questions: [What\n",
        "questions: [What]\nsentences: [I]\nwords: [cat, dog]\nsentence_list: S\nquestion_list: Q\n",
    ],
)
def test_openers_that_are_absent_or_malformed(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "openers.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"openers\.yaml"):
        Openers.read(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("It rains. I stay.", "It rains."),
        ("  \n It rains! Really?", "It rains!"),
        ("What?! Yes.", "What?!"),
        ("Mr. Smith met Dr. Brown. They left.", "Mr. Smith met Dr. Brown."),
        ("John F. Kennedy was born in 1917. He", "John F. Kennedy was born in 1917."),
        ("It costs 3.5 dollars. Cheap.", "It costs 3.5 dollars."),
        ("The capital of Japan is Tokyo.", "The capital of Japan is Tokyo."),
        ("The capital of Japan is", ""),
        ("A list\n1. One.", ""),
        ("", ""),
        ("Mrs.", ""),
    ],
)
def test_first_sentence(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


near_sentences = st.lists(
    st.sampled_from([" ", "\n", ".", "!", "?", "Mr.", "Dr", "A", "I", "it", "rains", "3", "é", "…"]), max_size=12
).map("".join)


@settings(deadline=None)
@given(near_sentences | st.text())
def test_first_sentence_is_one_line_of_the_text_and_stays_the_first(text: str) -> None:
    found = first_sentence(text)
    assert found in text
    assert "\n" not in found
    assert found == "" or found.endswith((".", "!", "?"))
    assert first_sentence(found) == found


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("What's  the TIME?", "what s the time"),
        ("  3.5 kg ", "3 5 kg"),
        ("?!", ""),
        ("", ""),
    ],
)
def test_normalised(text: str, key: str) -> None:
    assert normalised(text) == key


@settings(deadline=None)
@given(st.text())
def test_normalised_keeps_only_words(text: str) -> None:
    key = normalised(text)
    assert normalised(key) == key
    assert all(word.isascii() and word.isalnum() for word in key.split(" ") if word)
    assert "  " not in key
    assert key == key.strip()
    assert normalised(f" {text.upper().lower()}... ") == normalised(text.upper().lower())


GOOD = "The cat sleeps in the warm garden."


@pytest.mark.parametrize("text", [GOOD, "What is your name?", "3 cats sleep.", "It’s cold, isn't it?", "Don't go!"])
def test_plain_english_is_good(text: str) -> None:
    assert is_good(text, lambda _: True, 2, 18)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "Go.",  # too short
        "The " + " ".join(f"word{i}" for i in range(18)) + ".",  # too long
        "the cat sleeps.",  # begins in the middle
        " The cat sleeps.",
        "- The cat sleeps.",
        "The cat cat sleeps.",  # a word twice in a row
        "The cat and the cat and the cat sleep.",  # a loop
        "The **cat** sleeps.",
        "The cat (a pet) sleeps.",
        "The cat sleeps: yes.",
        "The cat... sleeps.",
        "The cat sleeps.\nIt purrs.",
        "The café is open.",
        "I am SmolLM, your helper.",
        "I am a language model.",
        "This is a sentence about cats.",
    ],
)
def test_what_is_not_plain_english_is_not_good(text: str) -> None:
    assert not is_good(text, lambda _: True, 2, 18)


def test_language_has_the_last_word() -> None:
    """Only text that passed everything else is worth identifying."""
    asked: list[str] = []

    def english(text: str) -> bool:
        asked.append(text)
        return text == GOOD

    assert is_good(GOOD, english, SHORTEST, LONGEST)
    assert not is_good("Die Katze schläft im Garten.", english, SHORTEST, LONGEST)
    assert not is_good("Die Katze liegt im Garten.", english, SHORTEST, LONGEST)
    assert asked == [GOOD, "Die Katze liegt im Garten."]


@settings(deadline=None)
@given(text=near_sentences | st.text(), shortest=st.integers(1, 3), longest=st.integers(3, 18))
def test_any_text_can_be_judged_and_good_text_is_short_ascii(text: str, shortest: int, longest: int) -> None:
    if is_good(text, lambda _: True, shortest, longest):
        assert shortest <= len(normalised(text).split()) <= longest
        assert text.replace("’", "").isascii()
        assert "\n" not in text
        assert not is_good(text, lambda _: False, shortest, longest)
