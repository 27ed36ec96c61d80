"""Diagnosis: each sign against what it must say, on tiny models; the real pair at the end."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from conftest import build
from langbridge.analyse.diagnose import Lines, examine, near_random
from langbridge.analyse.language_signs import _above_chance, language_signs, overview
from langbridge.analyse.run_signs import affinity, entropy, likeness, run_signs
from langbridge.analyse.verdict import Finding, print_findings
from langbridge.checkpoint import LangBridge
from langbridge.data.parallel import sanity_set
from langbridge.errors import DataError
from langbridge.generate import BridgedGenerator
from langbridge.routing import load


def troubles(findings: list[Finding]) -> set[str]:
    return {found.trouble for found in findings if found.trouble}


def test_entropy_is_in_bits() -> None:
    assert entropy(torch.tensor([3, 3, 3])) == 0.0
    assert entropy(torch.arange(8)) == pytest.approx(3.0)


def test_random_weights_write_anywhere_and_words_where_words_lie() -> None:
    torch.manual_seed(0)
    words = torch.randn(500, 40) * torch.linspace(0.1, 3, 40)
    assert affinity(torch.randn(40, 300), words) == pytest.approx(1.0, abs=0.1)
    assert affinity(words[:300].T, words) > 1.4


def test_what_coins_stay_below() -> None:
    tail = sum(math.comb(24, k) for k in range(round(24 * _above_chance(24)), 25)) / 2**24
    assert tail < 0.025
    assert sum(math.comb(24, k) for k in range(round(24 * _above_chance(24)) - 1, 25)) / 2**24 > 0.025


def test_soft_prompts_out_of_range_and_all_alike() -> None:
    generator = BridgedGenerator(build())
    texts = ["a cat", "the dog sat", "no"]
    linear = generator.model.bridge.linear
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(100 * generator.model.language_model.vectors[7])
    seen = likeness(generator, texts)
    assert seen.entropy == 0.0
    assert seen.size > 50


def test_a_random_bridge_on_tiny_models(tiny_run: Path) -> None:
    generator = load(str(tiny_run), routing="off")
    found = run_signs(generator, str(tiny_run), ["one cat", "two dogs sat", "no", "it rains a lot"])
    assert "English does not come through" in " ".join(troubles(found)) or "does not fit" in " ".join(troubles(found))
    assert all(one.about == "run" for one in found)
    assert all(one.advice for one in found if one.trouble)


def test_other_models_than_those_it_was_trained_with(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    model = LangBridge.from_pretrained(tiny_run)
    model.save_pretrained(folder)
    metadata = json.loads((folder / "langbridge.json").read_text(encoding="utf-8"))
    (folder / "langbridge.json").write_text(json.dumps({**metadata, "encoder": "google/mt5-small"}), encoding="utf-8")
    found = run_signs(BridgedGenerator(model), str(folder), ["one", "two", "three", "four"])
    assert "the bridge is for another encoder" in troubles(found)
    assert any("google/mt5-small" in one.advice for one in found)


def test_a_script_that_the_tokenizer_does_not_know() -> None:
    generator = BridgedGenerator(build())
    strange = ["ᏣᎳᎩ ᎦᏬᏂ", "ᎣᏏᏲ ᏙᎯᏧ", "ᏩᏙ ᏩᏙ", "ᎥᎥ ᎥᎥ"]
    english = ["one cat", "two dogs", "no no", "yes yes"]
    assert "the encoder's tokenizer does not know this script" in troubles(
        language_signs(generator, "chr", strange, english)
    )
    same = language_signs(generator, "xx", english, english)
    assert not any("script" in one for one in troubles(same))
    by_sign = {one.sign.split(",")[0]: one for one in same}
    assert by_sign["encoder pieces per sentence"].figure == 1.0
    assert by_sign["distance of the mean state from English"].figure == pytest.approx(0.0, abs=1e-4)
    assert by_sign["sentences that find their translation among 4"].figure == 1.0


@pytest.mark.parametrize("count", [4, 60])
def test_without_translations_only_strangers_are_compared_with(count: int) -> None:
    """The sanity set has 40 sentences: 60 of the user's own, or 4, are not rows beside it."""
    texts = [f"one cat and {number} dogs" for number in range(count)]
    found = language_signs(BridgedGenerator(build()), "xx", texts, [])
    compared = [one for one in found if "English" in one.sign]
    assert len(compared) == 2
    assert all("weak hint" in one.sign for one in compared)
    assert not any("translation (" in one.sign or "that find" in one.sign or "ratio" in one.sign for one in found)


def test_everything_is_looked_at_in_turn(tiny_run: Path) -> None:
    generator = load(str(tiny_run), routing="off")
    told: list[str] = []
    lines = Lines(language="swh", texts=("aa b", "cc d", "ee f", "gg"), limit=4)
    found = examine(generator, str(tiny_run), lines, (), progress=told.append)
    assert [one.about for one in found] == sorted((one.about for one in found), key=["run", "swh"].index)
    assert told == ["looking at the run in English", "looking at Swahili"]


def accuracy(value: float, low: float, **more: float) -> dict[str, object]:
    """A recorded row of a benchmark."""
    return {"accuracy": {"bridge": {"answer": {"value": value, "ci95": [low, value + 0.1]}}}, **more}


def benchmark(task: str, **rows: dict[str, object]) -> dict[str, Any]:
    return {"task": task, "rules": ["answer"], "languages": rows, "run": {"name": "tiny"}}


def test_recorded_results_near_guessing_are_named() -> None:
    found = near_random(benchmark("xcopa", swh=accuracy(0.7, 0.62), quy=accuracy(0.52, 0.47)), "runs/mine")
    assert [(one.about, one.ok) for one in found] == [("swh", True), ("quy", False)]
    transfer = {"task": "transfer", "languages": {"quy": {"transfer_ratio": 0.02, "ci95": [-0.03, 0.07]}}}
    assert troubles(near_random(transfer, "runs/mine")) == {"scores are near random"}


def test_always_the_commonest_answer_is_guessing() -> None:
    """A quarter of SIB-200 is of one topic: 0.25, from 0.19, passed for better than a choice among seven."""
    always, better = accuracy(0.25, 0.19), accuracy(0.31, 0.26)
    found = near_random(benchmark("sib200", swh=always, deu=better, kat={**better, "commonest": 0.27}), "runs/mine")
    assert [one.ok for one in found] == [False, True, False]
    assert [one.wanted[-6:] for one in found] == ["(0.25)", "(0.25)", "(0.27)"]
    numbers = near_random(benchmark("mgsm", swh=accuracy(0.02, 0.004, commonest=0.02)), "runs/mine")
    assert numbers[0].ok  # where there is nothing to choose from, guessing is right never


def test_advice_is_a_command_that_works(tmp_path: Path) -> None:
    """`--language quy` alone was advised, and refused."""
    weak = accuracy(0.1, 0.1)
    rows = {"swh": weak, "quy": weak, "cmn_Hans": weak, "eng": weak}
    found = {one.about: one.advice for one in near_random(benchmark("xcopa", **rows), "runs/my own")}
    assert found["eng"] == "See whether the signs of the run are well."
    for language, code in (("swh", "swh"), ("quy", "quy"), ("cmn_Hans", "cmn")):
        name, run, *options = shlex.split(found[language].split("`")[1])[1:]
        assert (name, run) == ("diagnose", "runs/my own")
        given = dict(zip(options[::2], options[1::2], strict=True))
        text = tmp_path / given["--text"] if "--text" in given else None
        if text is not None:
            text.write_text("a\nb\nc\nd\n", encoding="utf-8")
        assert Lines.read(given["--language"], text, None, 24).language == code


def test_only_the_asked_language_is_looked_up(tiny_run: Path, tmp_path: Path) -> None:
    """Rows of all languages were printed whichever was asked for."""
    path = tmp_path / "sib200.json"
    path.write_text(json.dumps(benchmark("sib200", deu=accuracy(0.2, 0.1), swh=accuracy(0.2, 0.1))), encoding="utf-8")
    generator = load(str(tiny_run), routing="off")
    found = examine(generator, str(tiny_run), Lines.read("sw", None, None, 4), [path])
    assert {one.about for one in found} == {"run", "swh"}
    assert found[-1].advice == "See whether the signs above are well."
    with pytest.raises(DataError, match="--results hold nothing of kat, only of deu swh: evaluate it, or leave"):
        examine(generator, str(tiny_run), Lines.read("ka", None, None, 4), [path])


def test_lines_come_from_files_or_the_sanity_set(tmp_path: Path) -> None:
    text, english = tmp_path / "quy.txt", tmp_path / "eng.txt"
    text.write_text("a\nb\nc\nd\n", encoding="utf-8")
    english.write_text("a\nb\nc\nd\ne\n", encoding="utf-8")
    assert Lines.read(None, text, None, 24) == Lines(language="quy", texts=("a", "b", "c", "d"))
    assert Lines.read("quy_Latn", text, None, 24).language == "quy"
    with pytest.raises(DataError, match=r"4 lines and .* 5"):
        Lines.read("quy", text, english, 24)
    english.write_text("a\nb\nc\n", encoding="utf-8")
    with pytest.raises(DataError, match="at least 4 sentences"):
        Lines.read("quy", english, None, 24)
    with pytest.raises(DataError, match="sanity set has no quy: give its sentences with --text"):
        Lines.read("quy", None, None, 24)
    assert len(Lines.read("sw", None, None, 6).english) == 6
    with pytest.raises(DataError, match="name that file too"):
        Lines.read("sw", None, english, 24)


def test_a_file_is_named_after_its_language(tmp_path: Path) -> None:
    """`sw.txt` was kept as `sw`, of which no table knows anything."""
    for name in ("sw.txt", "lines.txt"):
        (tmp_path / name).write_text("a\nb\nc\nd\n", encoding="utf-8")
    assert Lines.read(None, tmp_path / "sw.txt", None, 24).language == "swh"
    with pytest.raises(DataError, match=r"lines.txt does not name its language: give --language. 'lines' is no lang"):
        Lines.read(None, tmp_path / "lines.txt", None, 24)
    with pytest.raises(DataError, match="'Swahili' is no language code: wanted two or three small letters"):
        Lines.read("Swahili", tmp_path / "sw.txt", None, 24)
    with pytest.raises(DataError, match="'Swahili' is no language code"):
        Lines.read("Swahili", None, None, 24)


def test_what_is_not_known_of_pretraining_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """An encoder without a published list, or a language outside the tables, had no line at all."""
    generator = BridgedGenerator(build())
    first = language_signs(generator, "swh", ["one cat", "two dogs", "no no", "yes yes"], [])[0]
    assert (first.figure, first.ok) == (None, True)
    assert first.wanted == f"1; our tables have no list for {generator.model.recipe.encoder.name}"
    print_findings([first], Console(width=200))
    assert "not known" in capsys.readouterr().out


def test_the_overview_has_a_line_for_each_language(tiny_run: Path) -> None:
    generator = load(str(tiny_run), routing="off")
    found = overview(generator, 4)
    assert [one.about for one in found] == [code for code in sanity_set().sources if code != "eng"]


@pytest.fixture(scope="module")
def shipped(embedded: None) -> BridgedGenerator:
    """The bridge inside the package."""
    return load("embedded", routing="off")


@pytest.mark.embedded
@pytest.mark.usefixtures("embedded")
class TestEmbedded:
    """Good languages are well; an invented script, another encoder and a random bridge are named."""

    def test_a_good_language_has_no_trouble(self, shipped: BridgedGenerator) -> None:
        lines = Lines.read("swh", None, None, 10)
        found = run_signs(shipped, "embedded", sanity_set().sources["eng"][:8])
        found += language_signs(shipped, "swh", lines.texts, lines.english)
        assert troubles(found) == set()

    def test_an_invented_script(self, shipped: BridgedGenerator) -> None:
        english = sanity_set().sources["eng"][:10]
        shifted = ["".join(chr(0x10400 + ord(c) % 60) if c.isalpha() else c for c in text) for text in english]
        found = troubles(language_signs(shipped, "dsrt", shifted, english))
        assert "the encoder's tokenizer does not know this script" in found
        assert "the encoder does not understand this language" in found
        assert "scores are near random: nothing comes through" in found

    def test_a_language_outside_the_tables(self, shipped: BridgedGenerator) -> None:
        known, unknown = (
            language_signs(shipped, language, sanity_set().sources["swh"][:4], [])[0] for language in ("swh", "aym")
        )
        assert known.figure == 1.0
        assert (unknown.figure, unknown.wanted) == (None, "1; our tables have no language 'aym'")

    def test_english_on_another_subject_is_not_kept_apart(self, shipped: BridgedGenerator) -> None:
        """Sums lie 0.8 to 1.1 spreads from the sanity set's sentences, more than most languages from English."""
        names = ("Anna", "Tom", "Lena", "Paul", "Mary", "John")
        sums = [f"{name} has {n + 3} apples and buys {n * 7} more. How many are there?" for n, name in enumerate(names)]
        assert troubles(language_signs(shipped, "eng", sums, [])) == set()
        shifted = ["".join(chr(0x10400 + ord(c) % 60) if c.isalpha() else c for c in text) for text in sums]
        found = troubles(language_signs(shipped, "dsrt", shifted, []))
        assert "the encoder keeps these sentences apart from English ones" in found

    def test_an_encoder_whose_states_are_shuffled(self, shipped: BridgedGenerator) -> None:
        linear = shipped.model.bridge.linear
        kept, order = linear.weight.data, torch.randperm(384, generator=torch.Generator().manual_seed(1))
        linear.weight.data = kept[:, order]
        try:
            found = run_signs(shipped, "embedded", sanity_set().sources["eng"][:8])
        finally:
            linear.weight.data = kept
        assert "the bridge does not fit this encoder" in troubles(found)
        assert not any("untrained" in trouble for trouble in troubles(found))

    def test_a_random_bridge(self, shipped: BridgedGenerator) -> None:
        linear = shipped.model.bridge.linear
        kept = linear.weight.data
        linear.weight.data = torch.randn(kept.shape, generator=torch.Generator().manual_seed(1)) * kept.std()
        try:
            found = run_signs(shipped, "embedded", sanity_set().sources["eng"][:8])
        finally:
            linear.weight.data = kept
        assert any("untrained" in trouble for trouble in troubles(found))
        assert "the bridge says the same whatever it reads" in troubles(found)
