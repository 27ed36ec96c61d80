"""Each study runs in quick mode on tiny models, and its page says what its cells say."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from langbridge.analyse.neutrality import Neutrality
from langbridge.analyse.studies import STUDIES
from langbridge.analyse.study import Setting, conduct, read_study
from langbridge.checkpoint import LangBridge


@pytest.mark.parametrize("name", ["neutrality", "told"])
def test_quick_on_tiny_models(name: str, quick: Callable[..., Setting]) -> None:
    study = STUDIES[name](quick())
    page = conduct(study)
    text = page.read_text(encoding="utf-8")
    for heading in ("# " + name, "## Method", "## Result", "## Interval", "## Limits", "## How it was made"):
        assert heading in text
    pictures = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert pictures
    for picture in pictures:
        svg = page.parent / picture
        assert svg.stat().st_size > 1000
        assert svg.with_suffix(".png").stat().st_size > 1000
    assert "nan" not in text.split("## How")[0]
    kept = read_study(page.parent / "result.json")
    assert set(kept["cells"]) == set(study.cells())


def test_languages_are_told_apart_on_the_same_sentences(quick: Callable[..., Setting], tmp_path: Path) -> None:
    """Text that pairs each language with English sentences of its own would let a classifier tell topics."""
    for code, topic in (("deu", "sea"), ("fra", "bread")):
        for end, text in ((code, f"{code} {topic}"), ("eng", f"the {topic}")):
            lines = [f"{text} {number}" for number in range(6)]
            (tmp_path / f"{code}-eng.{end}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    apart = Neutrality(quick(data=tmp_path))
    assert apart.text.name != "sanity"
    assert apart.together.name == "sanity"
    assert Neutrality(quick()).together.name == "sanity"
    (tmp_path / "fra-eng.eng").write_text((tmp_path / "deu-eng.eng").read_text())
    assert Neutrality(quick(data=tmp_path)).together.name == tmp_path.name


def test_another_run_is_looked_at_anew(quick: Callable[..., Setting], tiny_run: Path, tmp_path: Path) -> None:
    """With the same work folder and another --out, the vectors of the first run were taken for those of the second."""
    model = LangBridge.from_pretrained(tiny_run)
    with torch.no_grad():
        model.bridge.linear.weight.normal_()
    model.save_pretrained(tmp_path / "run")
    first = conduct(STUDIES["neutrality"](quick()))
    fields = {"run": str(tmp_path / "run"), "out": tmp_path / "second"}
    second = conduct(STUDIES["neutrality"](quick(**fields)))
    alone = conduct(STUDIES["neutrality"](quick(**{**fields, "out": tmp_path / "third", "work": tmp_path / "alone"})))
    views = [next(iter(read_study(page.parent / "result.json")["cells"].values()))["views"] for page in (second, alone)]
    assert views[0] == views[1]
    assert views[0] != next(iter(read_study(first.parent / "result.json")["cells"].values()))["views"]
