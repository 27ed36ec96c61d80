"""Tasks against generators whose answers are known, statistics against closed forms, pages that are complete."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from langbridge.data import Example
from langbridge.data.parallel import Parallel, read_parallel, sanity_set
from langbridge.errors import DataError
from langbridge.evaluate.facts import evaluate_facts, is_right, read_facts
from langbridge.evaluate.report import print_answers, print_table, write_report
from langbridge.evaluate.result import read_result
from langbridge.evaluate.rows import Rows
from langbridge.evaluate.statistics import mean_interval, paired_p_value
from langbridge.evaluate.transfer import evaluate_transfer
from langbridge.generate import Sampling, Score
from langbridge.languages import DEVELOPMENT, LANGUAGES


class Knows:
    """A generator that was told which sources it understands and what it answers."""

    def __init__(self, understood: dict[str, str], worth: float = 3.0) -> None:
        self.understood, self.worth = understood, worth

    def generate(self, prompts: Sequence[str], sampling: Sampling | None = None, *, instruction: str = "") -> list[str]:
        return [self.understood.get(prompt, "what?") for prompt in prompts]

    def scores(self, examples: Sequence[Example]) -> list[Score]:
        """4 nats a token for what it does not know, `worth` less for what it does."""
        return [Score(-10 * (4 - self.worth * (self.understood.get(e.source) == e.target)), 10) for e in examples]


ENGLISH = [f"Sentence number {i}." for i in range(20)]
DATA = Parallel(
    "toy",
    {"aaa": [f"aaa {i}" for i in range(20)], "bbb": [f"bbb {i}" for i in range(20)]},
    {"aaa": ENGLISH, "bbb": ENGLISH},
)


def test_transfer_ratio_is_the_share_that_came_through() -> None:
    """All of aaa and half of bbb are understood: ratios 1 and 0.5."""
    known = dict(zip(ENGLISH, ENGLISH, strict=True)) | dict(zip(DATA.sources["aaa"], ENGLISH, strict=True))
    known |= dict(zip(DATA.sources["bbb"][::2], ENGLISH[::2], strict=True))
    result = evaluate_transfer(Knows(known), DATA)
    assert result["pivot"] == {"language": "eng", "sentences": 20, "nll": 1.0, "mismatch": 4.0}
    assert result["languages"]["aaa"]["transfer_ratio"] == 1.0
    assert result["languages"]["aaa"]["chrf"] == 100.0
    assert result["languages"]["bbb"]["transfer_ratio"] == 0.5
    low, high = result["languages"]["bbb"]["ci95"]
    assert 0.2 < low < 0.5 < high < 0.8
    assert result["median_transfer_ratio"] == 0.75


def test_the_plain_lm_stands_beside_in_the_same_unit() -> None:
    """What it makes of a sentence, as a share of what English is worth through the bridge; rows that lack it get it."""
    known = dict(zip(ENGLISH, ENGLISH, strict=True)) | dict(zip(DATA.sources["aaa"], ENGLISH, strict=True))
    rows = Rows()
    first = evaluate_transfer(Knows(known), DATA, render=0, rows=rows)
    both = evaluate_transfer(Knows(known), DATA, render=0, rows=rows, plain=Knows(known, worth=1.5))
    assert "plain" not in first["languages"]["aaa"]
    assert both["languages"]["aaa"].items() > first["languages"]["aaa"].items()
    assert both["languages"]["aaa"]["plain"]["nll"] == 2.5
    assert both["languages"]["aaa"]["plain"]["transfer_ratio"] == 0.5


def test_nothing_understood_is_zero() -> None:
    result = evaluate_transfer(Knows(dict(zip(ENGLISH, ENGLISH, strict=True))), DATA, render=0)
    assert result["median_transfer_ratio"] == 0.0
    assert "chrf" not in result["languages"]["aaa"]


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    """The second run computes only what is missing, and other settings start anew."""
    known = dict(zip(ENGLISH, ENGLISH, strict=True)) | dict(zip(DATA.sources["aaa"], ENGLISH, strict=True))
    out = tmp_path / "result.json"

    def stop_at_second(language: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_transfer(Knows(known), DATA, rows=Rows(out, {"a": 1}), progress=stop_at_second)
    rows = Rows(out, {"a": 1})
    assert list(rows) == ["aaa"]
    assert list(Rows(out, {"a": 2})) == []
    nothing = Knows(dict(zip(ENGLISH, ENGLISH, strict=True)))
    result = evaluate_transfer(nothing, DATA, rows=rows)
    assert result["languages"]["aaa"]["transfer_ratio"] == 1.0  # kept
    assert result["languages"]["bbb"]["transfer_ratio"] == 0.0
    rows.close()
    assert list(tmp_path.iterdir()) == []


def test_line_aligned_folders(tmp_path: Path) -> None:
    (tmp_path / "swh-eng.swh").write_text("moja\nmbili\ntatu\n", encoding="utf-8")
    (tmp_path / "swh-eng.eng").write_text("one\ntwo\nthree\n", encoding="utf-8")
    data = read_parallel(tmp_path).choose(["sw"], limit=2)
    assert data.sources == {"swh": ["moja", "mbili"]}
    assert data.references("swh") == ["one", "two"]
    (tmp_path / "swh-eng.swh").write_text("moja\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 and 3 lines"):
        read_parallel(tmp_path)
    (tmp_path / "swh-eng.swh").write_text("moja\n\ntatu\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        read_parallel(tmp_path)


def test_indexed_folders_are_aligned_by_id(tmp_path: Path) -> None:
    rows = {"eng_Latn": ["7\tx\tseven", "9\tx\tnine"], "swh_Latn": ["9\tx\ttisa", "7\tx\tsaba", "8\tx\tnane"]}
    for name, lines in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.tsv").write_text("\n".join(["index_id\tcategory\ttext", *lines]), encoding="utf-8")
    data = read_parallel(tmp_path)
    assert data.sources == {"swh": ["tisa", "saba"]}
    assert data.references("swh") == ["nine", "seven"]


def test_unknown_folders_and_languages_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds neither"):
        read_parallel(tmp_path)
    with pytest.raises(DataError, match="no data for language 'xx'"):
        sanity_set().choose(["xx"])


def test_the_sanity_set_is_whole() -> None:
    data = sanity_set()
    assert len(data.sources) >= 25
    assert all(len(lines) == 40 for lines in data.sources.values())
    assert set(DEVELOPMENT) <= set(data.sources) <= set(LANGUAGES)
    questions, accepted = read_facts()
    assert len(questions) >= 25
    assert all(len(asked) == len(accepted) == 30 for asked in questions.values())
    for language, lines in data.sources.items():
        same = sum(line == english for line, english in zip(lines, data.sources["eng"], strict=True))
        assert language == "eng" or same == 0


def test_facts_counts_right_answers_of_both() -> None:
    questions, accepted = read_facts(["swh"])
    knows = Knows({q: f"It is {a[0]}." for q, a in zip(questions["swh"], accepted, strict=True)})
    result = evaluate_facts(knows, Knows({}), ["sw"])
    assert result["languages"]["swh"]["bridged"] == 1.0
    assert result["languages"]["swh"]["plain"] == 0.0
    assert result["languages"]["swh"]["p_value"] < 0.01
    assert result["macro_average"] == {"bridged": 1.0, "plain": 0.0}


@pytest.mark.parametrize(
    ("output", "right"),
    [("The capital is PARIS.", True), ("Parisian food", False), ("parís", True), ("", False), ("In 24 hours", False)],
)
def test_grading_by_whole_words(output: str, right: bool) -> None:
    assert is_right(output, ["Paris", "París"]) is right


def test_intervals_and_p_values() -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random(400) < 0.3).astype(float)
    low, high = mean_interval(scores)
    error = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert (low, high) == (
        pytest.approx(scores.mean() - error, abs=0.02),
        pytest.approx(scores.mean() + error, abs=0.02),
    )
    assert paired_p_value(scores, scores) == 1.0
    assert paired_p_value(np.ones(12), np.zeros(12)) < 0.01


def test_report_is_one_complete_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = {"run": {"name": "r", "encoder": "e5", "language_model": "lm"}}
    known = dict(zip(ENGLISH, ENGLISH, strict=True)) | dict(zip(DATA.sources["aaa"], ENGLISH, strict=True))
    transfer = evaluate_transfer(Knows(known), DATA, plain=Knows({})) | run
    questions, _ = read_facts(["swh", "ara"])
    facts = evaluate_facts(Knows(dict.fromkeys(questions["swh"], "<b>Paris</b>")), Knows({}), ["swh", "ara"]) | run
    write_report([transfer, facts], tmp_path / "report.html", title="A <title>")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for part in (
        "viewport",
        "Swahili",
        "A &lt;title&gt;",
        "&lt;b&gt;Paris",
        "median ratio",
        "width:100.0%",
        "1.00 / 0.00",
    ):
        assert part in page
    for outside in ("http://", "https://", "<script", "<b>Paris"):
        assert outside not in page
    print_table(transfer)
    print_table(facts)
    print_answers([transfer, facts])
    printed = capsys.readouterr().out
    assert "median transfer ratio" in printed
    assert "bridge: <b>Paris</b>" in printed


def test_foreign_result_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(DataError, match="not a result"):
        read_result(tmp_path / "x.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_result(tmp_path / "absent.json")
