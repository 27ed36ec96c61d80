"""Numbers from verdicts, against closed forms; tables and pages that hold them with their intervals."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langbridge.errors import DataError
from langbridge.evaluate.published import published
from langbridge.evaluate.report import write_report
from langbridge.evaluate.resources import groups, pretraining, resource_class
from langbridge.evaluate.result import read_results
from langbridge.evaluate.run import Answered
from langbridge.evaluate.statistics import wilson
from langbridge.evaluate.summary import summarise
from langbridge.evaluate.tables import benchmarks, columns, latex_tables, markdown_tables, ordered
from langbridge.evaluate.task import Setup, Task
from langbridge.evaluate.tasks import TASKS
from langbridge.evaluate.tasks.bbh import Bbh
from langbridge.evaluate.tasks.xcopa import Xcopa
from langbridge.languages import LANGUAGES

XCOPA = Xcopa(setup=Setup())


def answered(verdicts: dict[str, list[int]], task: Task = XCOPA, **fields: Any) -> Answered:
    """Records with these verdicts by every rule."""
    records = {
        language: [
            {
                "id": str(number),
                "prompt": f"<b>{language} {number}</b>",
                "reference": "1",
                "grades": {rule: {"answer": "1", "right": bool(right)} for rule in task.grades},
                **fields,
            }
            for number, right in enumerate(row)
        ]
        for language, row in verdicts.items()
    }
    return Answered(task, records, {})


def result(
    bridge: dict[str, list[int]], plain: dict[str, list[int]], name: str = "mine", **more: Any
) -> dict[str, Any]:
    found = summarise(XCOPA, {"bridge": answered(bridge), "plain": answered(plain)}, "embedded:e5-small")
    return found | {"run": {"name": name, "encoder": "embedded:e5-small", "language_model": "lm"}, "limit": None} | more


def coins(share: float, size: int, seed: int) -> list[int]:
    return (np.random.default_rng(seed).random(size) < share).astype(int).tolist()


def test_accuracies_averages_and_intervals() -> None:
    verdicts = {code: coins(0.6, 400, seed) for seed, code in enumerate(("eng", "swh", "quy", "deu"))}
    found = summarise(XCOPA, {"bridge": answered(verdicts)}, "embedded:e5-small")
    for code, row in verdicts.items():
        figure = found["languages"][code]["accuracy"]["bridge"]["likelihood"]
        mean = np.mean(row)
        error = 1.96 * np.sqrt(mean * (1 - mean) / 400)
        assert figure["value"] == pytest.approx(mean, abs=1e-4)
        assert figure["ci95"] == pytest.approx([mean - error, mean + error], abs=0.01)
    averages = found["averages"]
    assert averages["low-resource"]["languages"] == ["swh", "quy"]
    assert averages["high-resource"]["languages"] == ["eng", "deu"]
    assert averages["unseen by the encoder"]["languages"] == ["quy"]
    assert averages["all but English"]["languages"] == ["swh", "quy", "deu"]
    whole = averages["all"]["accuracy"]["bridge"]["likelihood"]
    assert whole["value"] == pytest.approx(np.mean([np.mean(row) for row in verdicts.values()]), abs=1e-4)
    error = 1.96 * np.array(list(verdicts.values())).mean(axis=0).std() / 20  # items are drawn with all translations
    assert whole["ci95"] == pytest.approx([whole["value"] - error, whole["value"] + error], abs=0.01)


def test_translations_of_an_item_are_not_independent() -> None:
    """Ten languages with the same verdicts know as much as one: the average's interval is no narrower."""
    row = coins(0.5, 200, 0)
    found = summarise(XCOPA, {"bridge": answered(dict.fromkeys(list(LANGUAGES)[:10], row))}, "x")
    one = found["languages"]["afr"]["accuracy"]["bridge"]["likelihood"]["ci95"]
    assert found["averages"]["all"]["accuracy"]["bridge"]["likelihood"]["ci95"] == pytest.approx(one, abs=1e-4)


def test_agreement_is_not_certainty() -> None:
    """None right of four: resampling would say 0 to 0."""
    found = summarise(XCOPA, {"bridge": answered({"eng": [0] * 4, "swh": [0] * 4, "deu": [0, 0, 0, 1]})}, "x")
    assert found["languages"]["swh"]["accuracy"]["bridge"]["likelihood"] == {"value": 0.0, "ci95": [0.0, 0.4899]}
    gap = found["transfer_gap"]["likelihood"]
    assert gap["languages"]["swh"] == {"value": 0.0, "ci95": [-0.4899, 0.4899]}
    assert gap["languages"]["deu"]["value"] == -0.25
    assert wilson(1.0, 4) == pytest.approx((1 - 0.4899, 1.0), abs=1e-4)
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # the textbook's


def test_p_values_are_paired() -> None:
    """Ten items gained of 200 are nothing between strangers, but much when nothing was lost."""
    plain = coins(0.5, 200, 0)
    better = list(plain)
    for place in [i for i, right in enumerate(plain) if not right][:10]:
        better[place] = 1
    found = result({"swh": better, "deu": plain}, {"swh": plain, "deu": plain})
    assert found["languages"]["swh"]["p_value"]["plain"]["likelihood"] < 0.01
    assert found["languages"]["deu"]["p_value"]["plain"]["likelihood"] == 1.0
    assert found["averages"]["all"]["p_value"]["plain"]["likelihood"] < 0.01
    shuffled = result({"swh": coins(0.55, 200, 3)}, {"swh": coins(0.5, 200, 4)})
    assert shuffled["languages"]["swh"]["p_value"]["plain"]["likelihood"] > 0.05


def test_transfer_gap_is_english_minus_the_rest() -> None:
    found = summarise(XCOPA, {"bridge": answered({"eng": [1] * 8 + [0] * 2, "swh": [1] * 6 + [0] * 4})}, "x")
    gap = found["transfer_gap"]["likelihood"]
    assert gap["languages"]["swh"]["value"] == gap["mean"]["value"] == 0.2
    assert gap["share_of_english"]["value"] == 0.75
    assert gap["mean"]["ci95"][0] == 0.0  # paired: Swahili is never better than English here
    assert "transfer_gap" not in summarise(XCOPA, {"bridge": answered({"swh": [1, 0]})}, "x")


def test_parts_and_cut_off_answers_are_counted() -> None:
    task = Bbh(setup=Setup())
    bridge = answered({"eng": [1, 0, 1, 1]}, task, output="...", complete=False, group="navigate")
    found = summarise(task, {"bridge": bridge}, "x")
    assert found["parts"]["eng"]["navigate"] == {"examples": 4, "paper": 0.75, "strict": 0.75}
    assert found["languages"]["eng"]["cut_off"] == {"bridge": 4}
    assert [item["bridge"]["right"] for item in found["languages"]["eng"]["items"]] == [True, False, True]


def test_one_answer_for_all_is_counted_in_each_part() -> None:
    """What a system reaches that reads nothing: two of three here and one of two there."""
    bridge = answered({"eng": [1] * 5}, Bbh(setup=Setup()))
    for record, (group, reference) in zip(
        bridge.records["eng"],
        [("navigate", "No"), ("navigate", "No"), ("navigate", "Yes"), ("snarks", "(A)"), ("snarks", "(B)")],
        strict=True,
    ):
        record |= {"group": group, "reference": reference}
    assert summarise(bridge.task, {"bridge": bridge}, "x")["languages"]["eng"]["commonest"] == 0.6


def test_what_is_known_of_languages() -> None:
    assert {resource_class(code) for code in LANGUAGES} == {1, 2, 3, 4, 5}
    assert resource_class("xyz") is None
    seen, source = pretraining("google/mt5-xl") or (frozenset(), "")
    assert "yor" in seen
    assert "mC4" in source
    xlm_r, _ = pretraining("embedded:e5-small") or (frozenset(), "")
    assert "yor" not in xlm_r
    assert {"swe", "hrv", "lao", "yid"} <= xlm_r  # not only those that we have data of
    assert len(xlm_r) == 93  # and five romanised, Chinese and Burmese twice: the hundred of the paper
    assert pretraining("google/umt5-xl") is None  # another list: not known to us
    assert pretraining("embedded:minilm-l6-en") == (frozenset({"eng"}), "English sentence pairs alone")
    assert "unseen by the encoder" not in groups(["eng", "quy"], "somebody/else")
    mgsm = ["ben", "cmn", "deu", "eng", "fra", "jpn", "rus", "spa", "swh", "tel", "tha"]
    assert groups(mgsm, "x")["low-resource"] == ["ben", "swh", "tel", "tha"]  # as the literature has them


def test_published_rows_agree_with_their_own_averages() -> None:
    assert {task for task in TASKS if published(task)} == {"mgsm", "msvamp", "xcopa"}
    for task in ("mgsm", "msvamp"):
        for row in published(task):
            assert len(row.languages) == 10
            assert np.mean(list(row.languages.values())) == pytest.approx(row.averages["all"], abs=0.11)
            low = [row.languages[code] for code in ("ben", "tha", "swh")]
            assert np.mean(low) == pytest.approx(row.averages["low-resource"], abs=0.11)
            assert row.source


def test_runs_stand_side_by_side_and_the_same_baseline_once() -> None:
    plain = {"swh": coins(0.5, 50, 0), "cmn": coins(0.5, 50, 1)}
    first = result({"swh": coins(0.8, 50, 2), "cmn": coins(0.6, 50, 3)}, plain)
    second = result({"swh": coins(0.7, 50, 4), "cmn": coins(0.6, 50, 5)}, plain, "other")
    (found,) = benchmarks([first, second]).values()
    assert [column.title for column in columns(found, "likelihood")] == [
        "bridge (mine)",
        "plain LM (mine)",
        "bridge (other)",
    ]
    assert ordered(found) == ["cmn", "swh"]  # most resources first
    table = markdown_tables([first, second])
    row = next(line for line in table.splitlines() if line.startswith("| Swahili"))
    assert len(re.findall(r"\d+\.\d \(\d+\.\d to \d+\.\d\)", row)) == 3
    assert row.startswith("| Swahili | 2 | 8")
    assert "XLM-R large" in table
    latex = latex_tables([first])
    assert latex.count(r"\toprule") == 1
    assert all(line.count("&") == 4 for line in latex.splitlines() if line.endswith(r" \\"))


def test_the_page_holds_every_number_with_its_interval(tmp_path: Path) -> None:
    plain = {"swh": coins(0.5, 50, 0), "quy": coins(0.3, 50, 1), "eng": coins(0.9, 50, 6)}
    bridge = {"swh": coins(0.8, 50, 2), "quy": coins(0.3, 50, 3), "eng": coins(0.9, 50, 7)}
    write_report([result(bridge, plain), result(bridge, plain, "other", limit=50)], tmp_path / "r.html", title="T")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for part in (
        "<h2>xcopa</h2>",
        "class 2",
        "Quechua*",
        "Transfer gap",
        "XLM-R large",
        "&lt;b&gt;swh 0",
        "items were limited",
    ):
        assert part in page, part
    for outside in ("http://", "https://", "<script", "<b>swh", "src="):
        assert outside not in page, outside
    # every large figure is followed by its interval
    (headline,) = re.findall(r"<div class=headline>(.*?)</div></div>", page)
    assert headline.count("<b>") == 5  # two bridges, one plain LM, two shares of English
    assert len(re.findall(r"<b>[\d.]+%?<small>[\d.]+ to [\d.]+</small></b>", headline)) == 5
    assert page.count("<details>") == page.count("</details>") == 3
    assert page.count("<div") == page.count("</div>")


def test_folders_of_results_are_read(tmp_path: Path) -> None:
    (tmp_path / "xcopa.json").write_text(json.dumps(result({"swh": [1, 0]}, {"swh": [0, 0]})), encoding="utf-8")
    (tmp_path / "other.json").write_text('{"a": 1}', encoding="utf-8")
    assert [found["task"] for found in read_results([tmp_path, tmp_path / "xcopa.json"])] == ["xcopa", "xcopa"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no result"):
        read_results([tmp_path / "empty"])
    with pytest.raises(DataError, match="not a result"):
        read_results([tmp_path / "other.json"])
