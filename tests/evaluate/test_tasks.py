"""Benchmarks: what is asked, what is taken out of an answer, and what is right."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest

from langbridge.errors import DataError
from langbridge.evaluate import numbers
from langbridge.evaluate.sources import hub
from langbridge.evaluate.task import Output
from langbridge.evaluate.tasks import open_task
from langbridge.evaluate.tasks.bbh import PAPER, STRICT, paper, strict
from langbridge.evaluate.tasks.sib200 import fit
from langbridge.generate import Score
from langbridge.languages import LANGUAGES

COUNTS = {
    "mgsm": (11, 250),
    "mgsm_8shot": (11, 250),
    "msvamp": (10, 1000),
    "xcopa": (11, 500),
    "bbh": (1, 3261),
    "sib200": (38, 204),
}
"""(languages, examples of each) in the published data sets, humaneval apart."""


def scored(*values: float) -> Output:
    return Output(scores=tuple(Score(value, 1) for value in values))


@pytest.mark.parametrize("name", COUNTS)
def test_published_data_is_read_whole(name: str, benchmarks: Path) -> None:
    task = open_task(name, benchmarks)
    languages, count = COUNTS[name]
    assert len(task.languages()) == languages
    assert set(task.languages()) <= set(LANGUAGES)
    ids = [example.id for example in task.examples(task.languages()[0])]
    for language in task.languages()[:: max(1, languages - 1)]:
        examples = task.examples(language)
        assert len({example.id for example in examples}) == len(examples) == count
        assert all(example.prompt.strip() and example.reference for example in examples)
        assert [example.id for example in examples] == ids  # aligned


@pytest.mark.parametrize(
    ("output", "by_paper", "corrected"),
    [
        ("So 48/2 = 24, in all 72.", "72", "72"),
        ("It costs $1,080.50 a year", "1080.50", "1080.50"),
        ("The answer is 5. That is 2 more than 3.", "3", "5"),  # text behind the result
        ("a loss of -5", "5", "-5"),  # a sign
        ("a loss of \u22125", "5", "-5"),
        ("10-4", "4", "4"),  # no sign, a subtraction
        ("#### 7\nthen 8", "8", "7"),
        ("The answer is unknown, maybe 4", "4", "4"),
        ("৭২", "৭২", "৭২"),
        ("nothing", "0.0", None),
        ("", "0.0", None),
    ],
)
def test_the_number_of_an_answer(output: str, by_paper: str, corrected: str | None) -> None:
    grades = numbers.grade(output, "72")
    assert (grades["paper"].answer, grades["corrected"].answer) == (by_paper, corrected)
    assert grades["paper"].right is (float(by_paper) == 72)


def test_no_number_is_zero_in_the_published_rule_and_wrong_in_ours() -> None:
    grades = numbers.grade("I do not know", "0")
    assert grades["paper"].right
    assert not grades["corrected"].right


def test_mgsm_asks_in_the_language_and_stops_at_its_next_question(tmp_path: Path) -> None:
    (tmp_path / "mgsm_sw.tsv").write_text("Moja na moja?\t2\n", encoding="utf-8")
    task = open_task("mgsm", tmp_path)
    assert task.languages() == ["swh"]
    assert task.examples("swh")[0].prompt == "Swali: Moja na moja?"
    assert task.sampling("swh").stop[0] == "Swali:"
    (tmp_path / "mgsm_sw.tsv").write_text("Moja na moja?\tmbili\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: wanted a number"):
        task.examples("swh")
    (tmp_path / "mgsm_sw.tsv").write_text("Moja na moja?\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: wanted 2 columns"):
        task.examples("swh")


def test_eight_exemplars_have_english_steps_and_questions_of_the_language(tmp_path: Path) -> None:
    for language, words in {"sw": "Swali:", "en": "Question:"}.items():
        rows = "".join(f"{words} {language} {i}?\tStep-by-Step Answer: {language} steps {i}.\n" for i in range(8))
        (tmp_path / f"mgsm_{language}_train.tsv").write_text(rows, encoding="utf-8")
        (tmp_path / f"mgsm_{language}.tsv").write_text(f"{language} last?\t2\n", encoding="utf-8")
    task = open_task("mgsm_8shot", tmp_path)
    prompt = task.examples("swh")[0].prompt
    shots = prompt.split("\n\n")
    assert len(shots) == 9
    assert {f"Swali: sw {i}?\nStep-by-Step Answer: en steps {i}.[END]" for i in range(8)} == set(shots[:8])
    assert shots[8] == "Swali: sw last?\nStep-by-Step Answer:"
    assert prompt.startswith(task.examples("eng")[0].prompt.split("\n")[0].replace("Question: en", "Swali: sw"))


def test_without_own_exemplars_english_problems_stand_in_and_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "mgsm").mkdir()
    (tmp_path / "mgsm" / "mgsm_sw.tsv").write_text("Moja?\t1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no mgsm_en_train\.tsv"):
        open_task("mgsm_8shot", tmp_path).examples("swh")
    (tmp_path / "gsm8k").mkdir()
    rows = [{"question": f"q{i}", "answer": f"It is <<{i}=1>>{i}.\n#### {i}"} for i in range(9)]
    (tmp_path / "gsm8k" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = open_task("mgsm_8shot", tmp_path)
    assert "It is 3. The answer is 3.[END]" in task.examples("swh")[0].prompt
    assert task.settings() == {"exemplars": "English problems of gsm8k/train.jsonl"}


def test_xcopa_takes_the_likelier_letter(tmp_path: Path) -> None:
    row = {"premise": "p", "choice1": "x", "choice2": "y", "question": "effect", "label": 1, "idx": 0}
    (tmp_path / "test.sw.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    task = open_task("xcopa", tmp_path)
    (example,) = task.examples("swh")
    assert "most likely to be the effect of the premise?\n\nPremise: p\nA. x\nB. y\n\nAnswer: " in example.prompt
    assert example.choices == ("A.", "B.")
    assert task.grade(example, scored(-2.0, -1.0))["likelihood"].right
    assert not task.grade(example, scored(-1.0, -1.0))["likelihood"].right  # a tie is the first
    with pytest.raises(DataError, match=r"holds no val\.<language>\.jsonl"):
        open_task("xcopa", tmp_path, split="val").languages()
    (tmp_path / "test.sw.jsonl").write_text(json.dumps(row | {"label": 2}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="label 2"):
        task.examples("swh")


@pytest.mark.parametrize(
    ("kind", "output", "by_paper", "exact"),
    [
        ("letter", "(A) is wrong.\n###Final answer: (B)", "B", "B"),
        ("letter", "###Final answer: (B) because (C) is worse", "C", "B"),
        ("letter", "The answer is B.", "B.", "B"),  # the published rule keeps the full stop, and is wrong
        ("letter", "I think it was Tom", "T", None),  # any capital letter
        ("letter", "so it is option D", "D", "D"),
        ("yes or no", "yes", "yes", "yes"),
        ("yes or no", "None of it. Yes", "Yes", "Yes"),
        ("yes or no", "Yes. Now stop", "No", "Yes"),  # `No` inside `Now`
        ("valid or invalid", "The argument is invalid.", "invalid", "invalid"),
        ("valid or invalid", "Valid", "Valid", "Valid"),
        ("valid or invalid", "", None, None),
    ],
)
def test_the_option_of_an_answer(kind: str, output: str, by_paper: str | None, exact: str | None) -> None:
    assert paper(output, PAPER[kind]) == by_paper
    assert strict(output, STRICT[kind]) == exact


def test_bbh_grades_case_as_each_rule_does(benchmarks: Path) -> None:
    task = open_task("bbh", benchmarks)
    examples = task.examples("eng")
    assert len({example.group for example in examples[:14]}) == 14  # the first few are of all tasks
    fallacy = next(e for e in examples if e.group == "formal_fallacies" and e.reference == "valid")
    grades = task.grade(fallacy, Output(text="Valid"))
    assert not grades["paper"].right
    assert grades["strict"].right


def test_calibration_is_fitted_on_english_alone(benchmarks: Path) -> None:
    """A model that knows the topic but always adds 5 nats to `travel` is cured by English examples."""
    task = open_task("sib200", benchmarks)
    topics = task.examples("eng")[0].choices

    def biased(reference: str) -> Output:
        return scored(*(2.0 * (topic == reference) + 5.0 * (topic == "travel") - 9 for topic in topics))

    seen = task.calibration()
    cured = task.calibrated([biased(example.reference) for example in seen])
    grades = [cured.grade(example, biased(example.reference)) for example in task.examples("swh")]
    assert all(grade["calibrated"].right for grade in grades)
    assert 0 < sum(grade["likelihood"].right for grade in grades) < 60  # the travel ones
    assert cured.settings()["shifts"]["travel"] == min(cured.settings()["shifts"].values())


def test_the_fit_is_at_the_optimum() -> None:
    """No small change of scale or shifts lowers the regularised loss."""
    rng = np.random.default_rng(0)
    topics = rng.integers(0, 3, 60)
    scores = rng.normal(size=(60, 3)) * 4 + 3 * np.eye(3)[topics] + np.array([0.0, 6.0, -2.0])
    scale, shifts = fit(scores, topics)
    spread, centred = scores.std(), scores - scores.mean(axis=1, keepdims=True)

    def loss(scale: float, shifts: np.ndarray) -> float:
        logits = scale * centred + shifts
        likely = logits[np.arange(60), topics] - np.log(np.exp(logits).sum(axis=1))
        return float(-likely.mean() + 0.005 * ((scale * spread - 1) ** 2 + (shifts**2).sum()))

    best = loss(scale, np.array(shifts))
    for step in (0.02, -0.02):
        assert loss(scale + step / spread, np.array(shifts)) > best - 1e-4
        for topic in range(3):
            assert loss(scale, np.array(shifts) + step * np.eye(3)[topic]) > best - 1e-4
    assert loss(1 / spread, np.zeros(3)) > best + 0.1


def test_sib200_rows_must_be_whole(tmp_path: Path) -> None:
    (tmp_path / "eng_Latn").mkdir()
    path = tmp_path / "eng_Latn" / "test.tsv"
    path.write_text("index_id\tcategory\ttext\n7\tsport\tA game.\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        open_task("sib200", tmp_path).examples("eng")
    path.write_text("id\ttext\n7\tA game.\n", encoding="utf-8")
    with pytest.raises(DataError, match="wanted tab-separated columns"):
        open_task("sib200", tmp_path).examples("eng")


def test_unknown_tasks_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no task named 'chess'; known: mgsm"):
        open_task("chess", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        open_task("mgsm", tmp_path / "absent")


@pytest.mark.parametrize("name", COUNTS)
def test_empty_folders_are_named(name: str, tmp_path: Path) -> None:
    task = open_task(name, tmp_path)
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        [task.examples(language) for language in task.languages()]


def test_the_hub_is_read_through_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder laid out as a hub data set stands for the hub, which tests do not ask."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: sw\n  data_files:\n  - {split: test, path: sw.jsonl}\n---\n", encoding="utf-8"
    )
    (tmp_path / "sw.jsonl").write_text('{"question": "Moja?", "answer_number": 1}\n', encoding="utf-8")
    assert hub(str(tmp_path), "sw", "test") == [{"question": "Moja?", "answer_number": 1}]
    with pytest.raises(DataError, match="not to be had from the hub"):
        hub("nobody/nothing", "sw", "test")
