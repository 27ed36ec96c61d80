"""Who reads a prompt: the plain LM what it knows, the bridge the rest; English loses nothing."""

import json
from pathlib import Path

import pytest
import torch

from conftest import build
from langbridge.calibrate import Measured, measure, threshold
from langbridge.checkpoint import LangBridge, read_config
from langbridge.config import Recipe, RoutingConfig
from langbridge.data import Example, read_examples
from langbridge.data.parallel import sanity_set
from langbridge.errors import ConfigError, PromptError
from langbridge.evaluate.facts import read_facts
from langbridge.generate import BridgedGenerator, PlainGenerator, Sampling
from langbridge.identify import identify, known, probability_of
from langbridge.languages import DEVELOPMENT
from langbridge.routing import RoutedGenerator, effort, load
from test_cli import cli

ENGLISH = ["Where is the nearest station?", "My sister likes to read old books.", "Who wrote this letter to you?"]
GERMAN = ["Wo ist denn der Bahnhof?", "Meine Schwester liest gern.", "Wer hat dir diesen Brief geschrieben?"]
MIXED = [ENGLISH[0], GERMAN[0], GERMAN[1], ENGLISH[1], GERMAN[2], ENGLISH[2]]
BY_LANGUAGE = RoutingConfig(kind="by_language")
FEW = Sampling(max_new_tokens=5)


def examples(prompts: list[str]) -> list[Example]:
    return [Example(source=prompt, target=f"yes {i}") for i, prompt in enumerate(prompts)]


def test_english_through_the_router_is_the_plain_lm(tiny: LangBridge) -> None:
    """To the last bit: scores and answers."""
    router, plain = RoutedGenerator(tiny, BY_LANGUAGE), PlainGenerator(tiny)
    assert {route.to for route in router.routes(ENGLISH)} == {"plain"}
    assert router.scores(examples(ENGLISH)) == plain.scores(examples(ENGLISH))
    assert router.score(ENGLISH[0], ["a", "b c"]) == plain.score(ENGLISH[0], ["a", "b c"])
    assert router.generate(ENGLISH, FEW) == plain.generate(ENGLISH, FEW)
    assert "".join(router.stream(ENGLISH[0], FEW)) == "".join(plain.stream(ENGLISH[0], FEW))


def test_others_through_the_router_are_the_bridge(tiny: LangBridge) -> None:
    router, bridged = RoutedGenerator(tiny, BY_LANGUAGE), BridgedGenerator(tiny)
    assert {route.to for route in router.routes(GERMAN)} == {"bridge"}
    assert router.scores(examples(GERMAN)) == bridged.scores(examples(GERMAN))
    assert router.generate(GERMAN, FEW) == bridged.generate(GERMAN, FEW)
    assert "".join(router.stream(GERMAN[0], FEW)) == "".join(bridged.stream(GERMAN[0], FEW))


def test_mixed_prompts_keep_their_order(tiny: LangBridge) -> None:
    router = RoutedGenerator(tiny, BY_LANGUAGE, batch_size=2)
    moves: list[tuple[int, int]] = []
    found = router.scores(examples(MIXED), progress=lambda done, total: moves.append((done, total)))
    for example, score in zip(examples(MIXED), found, strict=True):
        alone = router.scores([example])[0]
        assert (score.log_likelihood, score.tokens) == (pytest.approx(alone.log_likelihood, abs=1e-4), alone.tokens)
    assert moves[-1] == (6, 6)
    assert moves == sorted(moves)
    assert router.generate(MIXED, FEW) == [router.generate([prompt], FEW)[0] for prompt in MIXED]
    assert [route.to for route in router.routes(MIXED)] == ["plain", "bridge", "bridge", "plain", "bridge", "plain"]


def test_more_languages_may_be_known(one: LangBridge) -> None:
    router = RoutedGenerator(one, RoutingConfig(kind="by_language", languages=("eng", "de")))
    assert {route.to for route in router.routes(MIXED)} == {"plain"}
    strict = RoutedGenerator(one, RoutingConfig(kind="by_language", probability=1.0))
    assert strict.share(GERMAN) == 0.0


def test_bad_prompts_are_refused_whoever_reads_them(one: LangBridge) -> None:
    router = RoutedGenerator(one, BY_LANGUAGE)
    for prompt, complaint in (("", "empty"), ("the " * 100, "more than the 200")):
        with pytest.raises(PromptError, match=complaint):
            router.generate([prompt])
        with pytest.raises(PromptError, match=complaint):
            router.scores([Example(source=prompt, target="x")])
        with pytest.raises(PromptError, match=complaint):
            list(router.stream(prompt))


@torch.no_grad()
def test_effort_is_the_lms_own_loss_for_each_encoder_token(tiny: LangBridge) -> None:
    """By hand: the text behind the template's beginning; alone = among others."""
    found = effort(PlainGenerator(tiny, batch_size=2), MIXED)
    for text, value in zip(MIXED, found, strict=True):
        ids = tiny.lm_tokenizer(tiny.template.before + text, add_special_tokens=False).input_ids
        logits = tiny.language_model.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        rows = range(len(ids) - len(text), len(ids))
        total = -sum(float(logits[row - 1, ids[row]]) for row in rows)
        pieces = len(tiny.encoder_tokenizer(text, add_special_tokens=False).input_ids)
        assert value == pytest.approx(total / pieces, abs=1e-4)


def test_by_likelihood_holds_effort_against_the_threshold(one: LangBridge) -> None:
    efforts = effort(PlainGenerator(one), MIXED)
    middle = sorted(efforts)[2] + 1e-6
    router = RoutedGenerator(one, RoutingConfig(kind="by_likelihood", likelihood=middle))
    assert [route.to == "plain" for route in router.routes(MIXED)] == [value <= middle for value in efforts]
    assert router.share(MIXED) == 0.5


def test_a_template_without_a_beginning_has_a_likelihood_too() -> None:
    assert all(value > 0 for value in effort(PlainGenerator(build("bert", "gpt2", template="none")), MIXED))


def test_a_threshold_gains_most_and_keeps_english() -> None:
    """German is known to this LM: reading it itself gains; Swahili is not. English is kept whatever it costs."""
    found = {
        "eng": Measured([2.0, 2.2, 3.1], [0.5, 0.5, -0.2]),
        "deu": Measured([3.5, 3.7, 4.4], [0.3, 0.2, 0.1]),
        "swh": Measured([8.0, 9.0, 4.8], [-1.0, -2.0, -0.4]),
    }
    chosen = threshold(found)
    assert chosen.value == pytest.approx(4.6)
    assert chosen.plain == {"eng": 1.0, "deu": 1.0, "swh": 0.0}
    hopeless = {name: Measured(part.effort, [-1.0] * 3) for name, part in found.items()}
    assert threshold(hopeless).plain == {"eng": 1.0, "deu": 0.0, "swh": 0.0}
    everything = {name: Measured(part.effort, [1.0] * 3) for name, part in found.items()}
    assert threshold(everything).plain == {"eng": 1.0, "deu": 1.0, "swh": 1.0}


def test_measuring_takes_english_and_the_development_languages_only(one: LangBridge) -> None:
    data = {language: [text[:40] for text in sanity_set().sources[language][:2]] for language in ("eng", *DEVELOPMENT)}
    found = measure(BridgedGenerator(one), limit=2)
    assert set(found) == set(data)
    sources, plain = sanity_set().sources["deu"][:2], PlainGenerator(one)
    assert found["deu"].effort == pytest.approx(effort(plain, sources), abs=1e-5)
    assert all(len(part.gain) == 2 for part in found.values())


def test_loading_by_recipe_or_by_argument(run: Path) -> None:
    assert type(load(run)) is BridgedGenerator
    assert type(load(run, routing="off")) is BridgedGenerator
    assert type(load(run, plain=True, routing="by_language")) is PlainGenerator
    assert type(load(run, routing="by_language")) is RoutedGenerator
    with pytest.raises(ConfigError, match="langbridge calibrate RUN"):
        load(run, routing="by_likelihood")
    with pytest.raises(ConfigError, match="'by_taste' is not one of off, by_language, by_likelihood"):
        load(run, routing="by_taste")
    with pytest.raises(ConfigError, match="'tlh', which py3langid does not know"):
        RoutedGenerator(build(), RoutingConfig(kind="by_language", languages=("tlh",)))
    with pytest.raises(ConfigError, match="nothing to choose from"):
        RoutedGenerator(build(), RoutingConfig())


def test_the_choice_stands_in_the_output_record(run: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text(f"{ENGLISH[0]}\n{GERMAN[2]}\n", encoding="utf-8")
    command = ("generate", str(run), "--input", str(prompts), "--max-new-tokens", "3", "--output", str(out))
    assert cli(*command, "--routing", "by_language").returncode == 0
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [record["route"]["to"] for record in records] == ["plain", "bridge"]
    assert records[0]["route"]["by"] == "by_language"
    assert records[0]["route"]["measure"] > records[0]["route"]["threshold"] > records[1]["route"]["measure"]
    assert cli(*command).returncode == 0
    assert "route" not in json.loads(out.read_text(encoding="utf-8").splitlines()[0])


def test_calibrating_writes_the_run(run: Path) -> None:
    found = cli("calibrate", str(run), "--limit", "2")
    assert found.returncode == 0, found.stderr
    assert "eng: 100% of the sentences" in found.stdout
    value = read_config(run).routing.likelihood
    assert value is not None
    assert f"routing.likelihood: {value}" in found.stdout
    assert type(load(run, routing="by_likelihood")) is RoutedGenerator


def test_evaluation_says_who_read_what(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "facts.json"
    command = ("evaluate", str(run), "--task", "facts", "--languages", "deu", "--limit", "3", "--out", str(out))
    found = cli(*command, "--routing", "by_language")
    assert found.returncode == 0, found.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["routing"] == {
        "kind": "by_language",
        "threshold": 0.1,
        "read_by_the_plain_lm": {"eng": 1.0, "deu": 0.0},
    }
    assert result["languages"]["eng"]["bridged"] == result["languages"]["eng"]["plain"]


def test_languages_are_told_apart() -> None:
    """All of the sanity set; English also where sentences are short, as the shipped ones are."""
    assert identify("Wo ist der Bahnhof?").language == "de"
    assert {"eng", "en", "swh", "sw", "kat"} <= known()
    default = RoutingConfig().probability
    questions, _ = read_facts()
    for texts in (sanity_set().sources, questions):
        for language, lines in texts.items():
            english = [probability_of(line, ("eng",)) >= default for line in lines]
            assert sum(english) >= 0.99 * len(lines) if language == "eng" else sum(english) <= 1, language
    sources = [example.source for example in read_examples("shipped")[:1000]]
    assert sum(probability_of(source, ("eng",)) >= default for source in sources) > 0.98 * len(sources)


def test_off_may_be_written_without_quotes(tmp_path: Path) -> None:
    """YAML reads `off` as false."""
    path = tmp_path / "recipe.yaml"
    path.write_text("encoder: {name: a}\nlanguage_model: {name: b}\nrouting: {kind: off}\n", encoding="utf-8")
    recipe = Recipe.read(path)
    assert recipe.routing.kind == "off"
    recipe.write(path)
    assert Recipe.read(path) == recipe
    with pytest.raises(ConfigError, match=r"routing\.languages is empty"):
        Recipe.read(path, ["routing.languages=[]"])
    with pytest.raises(ConfigError, match=r"routing\.probability must lie"):
        Recipe.read(path, ["routing.probability=0"])
    with pytest.raises(ConfigError, match=r"routing\.likelihood must be positive"):
        Recipe.read(path, ["routing.likelihood=-1"])


@pytest.mark.embedded
@pytest.mark.usefixtures("embedded")
def test_english_loses_nothing_with_the_embedded_pair() -> None:
    router = load("embedded", routing="by_language")
    english = sanity_set().sources["eng"][:4]
    asked = [Example(source=text, target="It is so.") for text in english]
    assert router.scores(asked) == PlainGenerator(router.model, batch_size=16).scores(asked)
    assert isinstance(router, RoutedGenerator)
    likely = load("embedded", routing="by_likelihood")
    assert isinstance(likely, RoutedGenerator)
    assert likely.share(english) == 1.0
    assert likely.share(sanity_set().sources["tel"][:3]) == 0.0
