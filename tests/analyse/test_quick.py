"""Each study runs in quick mode on tiny models, and its page says what its cells say."""

from collections.abc import Callable

import pytest

from langbridge.analyse.studies import STUDIES
from langbridge.analyse.study import Setting, conduct, read_study


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
