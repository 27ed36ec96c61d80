"""`langbridge study` and `langbridge diagnose` as a user meets them."""

import dataclasses
import json
from pathlib import Path

import pytest

from langbridge.analyse.study import Setting, fields_set
from langbridge.cli import main
from langbridge.data.parallel import sanity_set
from langbridge.study_commands import _command, _seeds


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process; returns its exit status."""
    monkeypatch.setattr("sys.argv", ["langbridge", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_studies_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "study", "list") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [
        "neutrality", "gain", "encoder", "freezing", "expressivity", "unseen", "budget", "data", "told", "gap",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("study", "astrology"), "no study named 'astrology'; known: neutrality"),
        (("study", "told", "--seeds", "one"), "wanted whole numbers"),
        (("study", "gap", "--measure", "speed"), "no 'speed'; known: transfer, facts, tasks"),
        (("study", "gap", "--recipe", "absent.yaml"), "absent.yaml: no such recipe"),
        (("study", "told", "--sentences", "1"), "Invalid value for '--sentences'"),
        (("study", "gap", "--sentences", "0"), "Invalid value for '--sentences'"),
        (("study", "neutrality", "--sentences", "-3"), "Invalid value for '--sentences'"),
        (("study", "gap", "--steps", "0"), "Invalid value for '--steps'"),
        (("study", "told", "--only", "eng"), "--only changes nothing in study told: leave it out. It is for"),
        (("study", "told", "--seeds", "1"), "It is for encoder, freezing, expressivity, budget, data, gap."),
        (("study", "unseen", "--steps", "9"), "--steps changes nothing in study unseen"),
        (("study", "told", "--recipe", "x.yaml"), "It is for gain, encoder, freezing, expressivity, budget"),
        (("study", "told", "--set", "a.b=1"), "--set changes nothing in study told"),
        (("study", "told", "--languages", "fra"), "--languages changes nothing in study told"),
        (("study", "told", "--measure", "transfer"), "--measure changes nothing in study told"),
        (("study", "gain", "--measure", "transfer"), "--measure changes nothing in study gain"),
        (("study", "gap", "--run", "runs/x"), "--run changes nothing in study gap: leave it out. It is for ne"),
        (("study", "gap", "--dtype", "bfloat16"), "--dtype changes nothing in study gap"),
        (("diagnose", "embedded", "--language", "quy"), "the sanity set has no quy"),
        (("diagnose", "runs/absent"), "no such run folder"),
    ],
)
def test_mistakes_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], complaint: str
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert complaint in capsys.readouterr().err


def test_a_study_writes_where_it_is_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "study", "told", "--quick", "--run", str(tiny_run)) == 0
    page = tmp_path / capsys.readouterr().out.split("page: ")[1].strip()
    text = page.read_text(encoding="utf-8")
    assert "`langbridge study told --quick --run tiny`" in text
    assert not (tmp_path / "studies").exists()  # a quick result is not for the repository


def test_a_recorded_command_runs_as_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Recipe and data were named without their folders, and what the shell takes apart was not quoted."""
    monkeypatch.chdir(tmp_path)
    outside = tmp_path.parent / "elsewhere"
    setting = Setting(
        out=Path("studies/long"),
        work=Path("work"),
        data=tmp_path / "sets" / "data",
        recipe=Path("recipes/own one.yaml"),
        only=("layer 10", "varied"),
        seeds=(4,),
        overrides=("bridge.layers=[11]", f"encoder.name={tmp_path / 'models/e5'}", f"language_model.name={outside}"),
    )
    written = _command("gap", setting, setting.out)
    assert written == (
        "langbridge study gap --out studies/long --data sets/data --recipe 'recipes/own one.yaml' --seeds 4 "
        "--only 'layer 10,varied' --set 'bridge.layers=[11]' --set encoder.name=models/e5 "
        "--set language_model.name=elsewhere"
    )
    assert _command("told", Setting(out=outside, work=outside, run=str(outside), data=outside), None) == (
        "langbridge study told --run elsewhere --data elsewhere"
    )
    assert str(tmp_path.parent) not in json.dumps(fields_set(setting))
    other = dataclasses.replace(setting, overrides=(f"language_model.name={outside / 'elsewhere'}",))
    same = dataclasses.replace(setting, overrides=(f"language_model.name={outside}",))
    assert fields_set(other)["set"] == fields_set(same)["set"]
    assert fields_set(other) != fields_set(same)


def test_seeds_are_trained_once() -> None:
    assert _seeds("2, 1,2,01") == (2, 1)


def test_a_diagnosis_is_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path
) -> None:
    text = tmp_path / "swh.txt"
    text.write_text("\n".join(sanity_set().sources["swh"][:5]), encoding="utf-8")
    out = tmp_path / "found.json"
    assert call(monkeypatch, "diagnose", str(tiny_run), "--text", str(text), "--limit", "5", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text(encoding="utf-8"))["findings"]
    assert {one["about"] for one in found} == {"run", "swh"}
    for one in found:
        if one["trouble"]:
            assert one["trouble"] in printed
            assert one["advice"]
