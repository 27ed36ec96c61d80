"""The runner: answers are kept as they come, a kill loses little, and nothing made otherwise is mixed in."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import build
from langbridge.errors import ConfigError, DataError, LangBridgeError, PromptError
from langbridge.evaluate.run import Answered, Request, answer
from langbridge.evaluate.summary import summarise
from langbridge.evaluate.systems import System, baselines, systems, with_random_bridge
from langbridge.evaluate.tasks import open_task
from langbridge.evaluate_commands import evaluate, report
from langbridge.generate import BridgedGenerator, PlainGenerator

TOPICS = ("entertainment", "geography", "health", "politics", "science/technology", "sports", "travel")
MADE_BY = {"weights": "w", "split": "test"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven items of each benchmark in a few languages, with the texts of a toy."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("msvamp", "xcopa", "mgsm"):
        (folder / name).mkdir()
    for language in ("English", "Swahili", "German"):
        rows = [{"m_query": f"{language} has {i} and {i * i}?", "response": str(i)} for i in range(11)]
        (folder / "msvamp" / f"test_{language}.json").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    rows = [
        {"premise": f"p {i}", "choice1": "x" * (i % 4 + 1), "choice2": "y", "question": "cause", "label": i % 2}
        for i in range(11)
    ]
    for language in ("sw", "et"):
        (folder / "xcopa" / f"test.{language}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    for split in ("dev", "test"):
        for language in ("eng_Latn", "swh_Latn"):
            path = folder / "sib200" / language / f"{split}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [f"{i}\t{TOPICS[i % 7]}\t{language} {split} {i}" for i in range(11)]
            path.write_text("\n".join(["index_id\tcategory\ttext", *lines]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def bridge() -> BridgedGenerator:
    return BridgedGenerator(build(), batch_size=2)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ask(
    name: str, data: Path, system: System, out: Path, languages: Sequence[str], limit: int | None = None
) -> Answered:
    request = Request(languages=tuple(languages), limit=limit, max_new_tokens=5)
    return answer(open_task(name, data), system, request, out, MADE_BY)


def test_records_hold_everything(data: Path, bridge: BridgedGenerator, tmp_path: Path) -> None:
    found = ask("msvamp", data, System("bridge", bridge), tmp_path, ["swh"]).records["swh"]
    assert lines(tmp_path / "swh.jsonl") == found
    assert len(found) == 11
    assert set(found[0]) == {"id", "prompt", "reference", "soft_prompt", "output", "complete", "grades"}
    assert found[0]["soft_prompt"] == len("Swahili has 0 and 0?") + 3  # <s>, </s> and the boundary
    assert bridge.generate([found[3]["prompt"]])[0].startswith(found[3]["output"].strip())
    settings = json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))
    assert settings["settings"]["weights"] == "w"
    assert len(settings["data"]["swh"]) == 64
    assert "torch" in settings["record"]["versions"]


def test_scores_are_those_of_the_generator(data: Path, bridge: BridgedGenerator, tmp_path: Path) -> None:
    found = ask("xcopa", data, System("bridge", bridge), tmp_path, ["swh"]).records["swh"]
    for record in found[::5]:
        wanted = bridge.score(record["prompt"], ["A.", "B."])
        assert [score for score, _ in record["scores"]] == pytest.approx(wanted, abs=1e-4)
        assert record["grades"]["likelihood"]["answer"] == str(wanted.index(max(wanted)))


@pytest.mark.parametrize("name", ["msvamp", "sib200"])
def test_killed_and_resumed_gives_the_same_files(
    name: str, data: Path, bridge: BridgedGenerator, tmp_path: Path
) -> None:
    """A process that kills itself in the second language, half a line behind it; then it is gone on with."""
    languages = ["eng", "swh"]
    script = f"""
import os, signal, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from pathlib import Path
from conftest import build
from langbridge.evaluate.run import Request, answer
from langbridge.evaluate.systems import System
from langbridge.evaluate.tasks import open_task
from langbridge.generate import BridgedGenerator, PlainGenerator

def die(text, done, total):
    if text.endswith("swh") and done >= 2:
        os.kill(os.getpid(), signal.SIGKILL)

system = System("bridge", BridgedGenerator(build(), batch_size=2))
request = Request(languages={tuple(languages)!r}, max_new_tokens=5)
answer(open_task({name!r}, Path({str(data)!r})), system, request, Path({str(tmp_path / "killed")!r}), {MADE_BY!r}, die)
"""
    killed = subprocess.run([sys.executable, "-c", script], timeout=200, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    torn = tmp_path / "killed" / "swh.jsonl"
    assert 0 < len(lines(torn)) < 11
    with torn.open("a", encoding="utf-8") as file:
        file.write('{"id": "5", "prom')
    system = System("bridge", bridge)
    ask(name, data, system, tmp_path / "killed", languages)
    ask(name, data, system, tmp_path / "whole", languages)
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.json*"))
    assert len(names) == (4 if name == "sib200" else 3)  # settings, two languages, and sib200's calibration
    for file_name in names:
        assert (tmp_path / "killed" / file_name).read_bytes() == (tmp_path / "whole" / file_name).read_bytes()


def test_what_is_there_is_not_asked_again_and_more_may_be_asked(
    data: Path, bridge: BridgedGenerator, tmp_path: Path
) -> None:
    system = System("bridge", bridge)
    few = ask("msvamp", data, system, tmp_path, ["swh"], limit=3)
    text = (tmp_path / "swh.jsonl").read_text(encoding="utf-8")
    marked = text.replace('"reference": "0"', '"reference": "marked"')
    (tmp_path / "swh.jsonl").write_text(marked, encoding="utf-8")
    more = ask("msvamp", data, system, tmp_path, ["swh", "deu"], limit=7)
    assert more.records["swh"][0]["reference"] == "marked"
    assert [record["id"] for record in more.records["swh"]] == [str(i) for i in range(7)]
    assert more.records["swh"][1:3] == few.records["swh"][1:]
    assert len(lines(tmp_path / "deu.jsonl")) == 7
    fewer = ask("msvamp", data, system, tmp_path, ["swh"], limit=2)
    assert len(fewer.records["swh"]) == 2
    assert len(lines(tmp_path / "swh.jsonl")) == 7  # nothing is thrown away


def test_answers_of_the_plain_lm_outlive_the_bridge(data: Path, bridge: BridgedGenerator, tmp_path: Path) -> None:
    task, request = open_task("msvamp", data), Request(languages=("swh",), limit=2, max_new_tokens=5)
    plain = System("plain", PlainGenerator(bridge.model))
    first = answer(task, plain, request, tmp_path, MADE_BY).records
    (tmp_path / "swh.jsonl").write_text((tmp_path / "swh.jsonl").read_text(encoding="utf-8").replace("paper", "kept"))
    again = answer(task, plain, request, tmp_path, {**MADE_BY, "weights": "v"}).records
    assert json.dumps(again) == json.dumps(first).replace("paper", "kept")


def test_other_settings_and_other_data_are_refused(data: Path, bridge: BridgedGenerator, tmp_path: Path) -> None:
    system, task = System("bridge", bridge), open_task("msvamp", data)
    out = tmp_path / "out"
    ask("msvamp", data, system, out, ["swh"], limit=2)
    with pytest.raises(DataError, match=r'other settings: weights was "w" and is "v"\. Name another --out'):
        answer(task, system, Request(languages=("swh",), max_new_tokens=5), out, {**MADE_BY, "weights": "v"})
    with pytest.raises(DataError, match="max_new_tokens was 5 and is 6"):
        answer(task, system, Request(languages=("swh",), max_new_tokens=6), out, MADE_BY)
    other = tmp_path / "other"
    (other / "msvamp").mkdir(parents=True)
    rows = (data / "msvamp" / "test_Swahili.json").read_text(encoding="utf-8")
    (other / "msvamp" / "test_Swahili.json").write_text(rows.replace("10 and 100", "10 and 101"), encoding="utf-8")
    with pytest.raises(DataError, match="made from other data"):
        ask("msvamp", other, system, out, ["swh"], limit=2)
    (out / "swh.jsonl").write_text("{}\nrubbish\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: not a record"):
        ask("msvamp", data, system, out, ["swh"], limit=2)
    (out / "swh.jsonl").write_text('{"id": "7"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="other examples than the data"):
        ask("msvamp", data, system, out, ["swh"], limit=2)
    (out / "settings.json").unlink()
    with pytest.raises(DataError, match="answers but no settings"):
        ask("msvamp", data, system, out, ["swh"], limit=2)


def test_two_processes_do_not_write_one_folder(data: Path, bridge: BridgedGenerator, tmp_path: Path) -> None:
    code = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    ask("msvamp", data, System("bridge", bridge), tmp_path, ["swh"], limit=1)
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DataError, match="written by another process"):
        ask("msvamp", data, System("bridge", bridge), tmp_path, ["swh"], limit=1)
    holder.communicate("")


def test_prompts_that_cannot_be_given_are_counted_not_hidden(bridge: BridgedGenerator, tmp_path: Path) -> None:
    """The third of five prompts is too long for the encoder: it is wrong, and the result says why."""
    (tmp_path / "data" / "msvamp").mkdir(parents=True)
    rows = [{"m_query": "how many? " * (30 if i == 2 else 1), "response": "0"} for i in range(5)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data" / "msvamp" / "test_English.json").write_text(text, encoding="utf-8")
    found_by = System("bridge", bridge)
    found = ask("msvamp", tmp_path / "data", found_by, tmp_path / "out", ["eng"])
    assert ["refused" in record for record in found.records["eng"]] == [False, False, True, False, False]
    assert "more than the 200" in found.records["eng"][2]["refused"]
    assert not found.records["eng"][2]["grades"]["paper"]["right"]
    result = summarise(open_task("msvamp", tmp_path / "data"), {"bridge": found}, "tiny")
    assert result["languages"]["eng"]["refused"] == {"bridge": 1}
    with pytest.raises(PromptError, match="not one prompt of a batch"):  # 1,024 new tokens: more than the LM has
        answer(
            open_task("msvamp", tmp_path / "data"),
            System("bridge", bridge),
            Request(languages=("eng",)),
            tmp_path / "x",
            {},
        )


def test_baselines_are_what_they_say(data: Path, bridge: BridgedGenerator, tmp_path: Path) -> None:
    """Plain: the LM on the same text; original: the LM on the English item, for each language."""
    assert baselines("random, plain") == ["plain", "random"]
    with pytest.raises(ConfigError, match=r"no baseline named 'magic'; known: plain \(the LM alone"):
        baselines("plain,magic")
    found = {
        system.name: ask("msvamp", data, system, tmp_path / system.name, ["swh", "deu"], limit=4)
        for system in systems(bridge, ["plain", "original", "random"])
    }
    plain = PlainGenerator(bridge.model)
    for record in found["plain"].records["swh"]:
        assert plain.generate([record["prompt"]])[0].startswith(record["output"].strip())
        assert record["soft_prompt"] == 0
    assert list(found["original"].records) == ["eng"]
    originals = [record["prompt"] for record in found["original"].records["eng"]]
    assert originals == [f"English has {i} and {i * i}?" for i in range(4)]
    outputs = {
        name: [record["output"] for record in found[name].records["swh"]] for name in ("bridge", "plain", "random")
    }
    assert outputs["random"] != outputs["bridge"] != outputs["plain"]
    result = summarise(open_task("msvamp", data), found, "tiny")
    rows = result["languages"]
    assert rows["swh"]["accuracy"]["original"] == rows["deu"]["accuracy"]["original"]
    assert set(rows["swh"]["p_value"]) == {"plain", "original", "random"}
    with pytest.raises(DataError, match="xcopa has no English items"):
        ask("xcopa", data, System("original", plain), tmp_path / "y", ["swh"])


def test_a_random_bridge_leaves_the_trained_one_alone() -> None:
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin, again = with_random_bridge(model), with_random_bridge(model)
    assert twin.encoder is model.encoder
    assert twin.language_model is model.language_model
    assert twin.bridge is not model.bridge
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for one, other in zip(twin.bridge.parameters(), again.bridge.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_command(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two benchmarks into one folder; then on with more items; then refused with another template."""
    out = tmp_path / "out"
    common = {"data": data, "out": out, "languages": "sw", "batch_size": 4}
    evaluate(str(run), "xcopa,sib200", limit=3, baseline="plain", **common)
    assert "rule `calibrated`" in capsys.readouterr().out.replace("\n", " ")
    assert (out / "xcopa" / "plain" / "swh.jsonl").is_file()
    result = json.loads((out / "xcopa.json").read_text(encoding="utf-8"))
    assert result["languages"]["swh"]["examples"] == 3
    assert result["run"]["name"] == str(run)
    assert len(result["made_by"]["weights"]) == len(result["data"]["swh"]) == 64
    evaluate(str(run), "xcopa", limit=5, **common)
    assert len(lines(out / "xcopa" / "bridge" / "swh.jsonl")) == 5
    with pytest.raises(DataError, match="other settings: template was"):
        evaluate(str(run), "xcopa", template="none", **common)
    report([out], tmp_path / "page.html", markdown=tmp_path / "tables.md")
    assert "xcopa: accuracy" in (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "sib200" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"languages": "klingon"}, "no data for language 'klingon'"),
        ({"split": "val"}, "holds no val"),
        ({"limit": 0}, "at least one example"),
        ({"baseline": "magic"}, "no baseline named 'magic'"),
        ({"out": Path("x.json")}, "needs --out FOLDER"),
        ({"task": "transfer,facts", "out": None}, "needs --out FOLDER"),
        ({"task": ""}, "no task named ''"),
    ],
)
def test_mistakes_are_named(run: Path, data: Path, tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LangBridgeError, match=complaint):
        evaluate(str(run), **{"task": "xcopa", "data": data, "out": tmp_path / "out"} | options)
    assert not (tmp_path / "out").exists()
