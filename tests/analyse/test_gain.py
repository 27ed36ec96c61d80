"""Studies on recorded transfer and on unseen languages: correlations against scipy, both on tiny models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from conftest import TEMPLATE
from langbridge.analyse.gain import GRID_CELL, Gain, _across, partial_spearman, spearman
from langbridge.analyse.study import Setting, conduct, read_study
from langbridge.analyse.unseen import Unseen
from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe
from langbridge.data.parallel import sanity_set
from langbridge.errors import DataError
from langbridge.languages import DEVELOPMENT


def test_rank_correlation_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=30), rng.integers(0, 5, 30).astype(float)
    assert spearman(left, right) == pytest.approx(spearmanr(left, right).statistic)
    assert spearman(left, np.ones(30)) == 0.0


def test_a_partial_correlation_drops_what_a_control_explains() -> None:
    rng = np.random.default_rng(0)
    cause = rng.normal(size=400)
    left, right = cause + 0.3 * rng.normal(size=400), cause + 0.3 * rng.normal(size=400)
    assert spearman(left, right) > 0.8
    assert abs(partial_spearman(left, right, cause[:, None])) < 0.15
    assert partial_spearman(left, right, rng.normal(size=(400, 1))) > 0.8


def models(saved: dict[str, Path]) -> dict[str, object]:
    return {
        "encoder": {"name": str(saved["bert"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": TEMPLATE},
    }


def test_gain_joins_recorded_transfer_with_neutrality(
    quick: Callable[..., Setting], saved: dict[str, Path], tmp_path: Path
) -> None:
    languages = [code for code in sanity_set().sources if code != "eng"][:10]
    rows = {code: {"transfer_ratio": number / 10} for number, code in enumerate(languages)}
    table = {"task": "transfer", "data": "sanity", "languages": rows, "run": {"name": "r"}}
    (tmp_path / "table.json").write_text(json.dumps(table), encoding="utf-8")
    Recipe.of(models(saved), "test").write(tmp_path / "recipe.yaml")
    study = Gain(quick())
    study.tables = {"tiny": (str(tmp_path / "table.json"), str(tmp_path / "recipe.yaml"))}  # type: ignore[misc]
    study.grid = tmp_path / "absent"  # type: ignore[misc]
    page = conduct(study)
    cell = read_study(page.parent / "result.json")["cells"]["tiny"]
    assert cell[languages[3]]["ratio"] == 0.3
    assert "| tiny | 8 | CKA |" in page.read_text(encoding="utf-8")
    rows.pop(languages[0])
    for code in languages[1:4]:
        rows.pop(code)
    (tmp_path / "table.json").write_text(json.dumps(table), encoding="utf-8")
    other = Gain(quick(out=tmp_path / "other"))
    other.tables = study.tables  # type: ignore[misc]
    with pytest.raises(DataError, match="share 6 languages; at least 8"):
        conduct(other)


def test_settings_of_study_encoder_are_encoders_too(
    quick: Callable[..., Setting], saved: dict[str, Path], tmp_path: Path
) -> None:
    codes = [code for code in sanity_set().sources if code not in ("eng", *DEVELOPMENT)][:9]
    cells = {
        f"{name}, seed {seed}": {
            "test": {code: number / 10 + seed for number, code in enumerate(codes)},
            "nll_test": {"eng": 3.5 if name == "random" else 1.0},
        }
        for name in ("whole", "2 bits", "3 bits", "4 bits", "random")
        for seed in (1, 2)
    }
    grid = {"study": "encoder", "setup": {"data": "sanity"}, "cells": cells}
    (tmp_path / "grid.json").write_text(json.dumps(grid), encoding="utf-8")
    Recipe.of(models(saved), "test").write(tmp_path / "recipe.yaml")

    def gain() -> Gain:
        study = Gain(quick(quick=False, sentences=6, recipe=tmp_path / "recipe.yaml"))
        study.tables, study.grid = {}, tmp_path / "grid.json"  # type: ignore[misc]
        return study

    page = conduct(gain())
    found = read_study(page.parent / "result.json")["cells"]
    assert found["study encoder: whole"][codes[3]]["ratio"] == pytest.approx(1.3)  # of the first seed
    whole, random = (found[f"study encoder: {name}"] for name in ("whole", "random"))
    assert any(whole[code]["cka"] != random[code]["cka"] for code in codes)  # each is measured by its own encoder
    text = page.read_text(encoding="utf-8")
    assert "| study encoder: random | 9 | CKA |" in text
    assert "Over the 5 different encoders" in text
    assert "Over the 4 of them through which English was learned" in text
    conduct(gain())  # nothing has changed
    cells["whole, seed 1"]["test"][codes[3]] = 0.0
    (tmp_path / "grid.json").write_text(json.dumps(grid), encoding="utf-8")
    with pytest.raises(DataError, match="study encoder differ"):  # what was kept is of the trainings before
        conduct(gain())


def test_gain_joins_only_what_is_of_one_text(
    quick: Callable[..., Setting], saved: dict[str, Path], tmp_path: Path
) -> None:
    """Without --data, transfer on Tatoeba was paired with neutrality on the sanity set."""
    ratios = {code: 0.5 for code in sanity_set().sources if code != "eng"}
    rows = {code: {"transfer_ratio": ratio} for code, ratio in ratios.items()}
    table = {"task": "transfer", "data": "tatoeba", "languages": rows, "run": {"name": "r"}}
    (tmp_path / "table.json").write_text(json.dumps(table), encoding="utf-8")
    Recipe.of(models(saved), "test").write(tmp_path / "recipe.yaml")
    study = Gain(quick())
    study.tables = {"tiny": (str(tmp_path / "table.json"), str(tmp_path / "recipe.yaml"))}  # type: ignore[misc]
    with pytest.raises(DataError, match="is of 'tatoeba', and neutrality would be of 'sanity': name with"):
        conduct(study)
    grid = {"study": "encoder", "setup": {"data": "data"}, "cells": {"whole, seed 1": {"test": ratios}}}
    (tmp_path / "grid.json").write_text(json.dumps(grid), encoding="utf-8")
    study = Gain(quick(quick=False, recipe=tmp_path / "recipe.yaml"))
    study.tables, study.grid = {}, tmp_path / "grid.json"  # type: ignore[misc]
    with pytest.raises(DataError, match="is of 'data', and neutrality would be of 'sanity'"):
        conduct(study)


def test_encoders_that_are_one_count_once() -> None:
    rows = {
        f"{GRID_CELL}{number}": {
            "fra": {"centred": 0.1 * number, "ratio": 0.1 * number},
            "deu": {"centred": 0, "ratio": 0},
        }
        for number in (1, 2, 3, 4)
    }
    assert "Over the 4 different" in _across(rows)
    rows[f"{GRID_CELL}again"] = rows[f"{GRID_CELL}4"]  # such as one that is cut to all of its layers
    rows["another table"] = rows[f"{GRID_CELL}1"]
    assert "Over the 4 different" in _across(rows)
    assert "rank correlation +1.00 (" in _across(rows)


def test_unseen_languages_come_first_and_are_compared(
    quick: Callable[..., Setting], saved: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(saved["bert"], tmp_path / "e5-small")
    recipe = Recipe.of({**models(saved), "encoder": {"name": str(tmp_path / "e5-small")}}, "test")
    LangBridge.from_recipe(recipe).save_pretrained(tmp_path / "run")
    for folder in ("eng_Latn", "hat_Latn", "acm_Arab", "fra_Latn", "zho_Hans", "swh_Latn"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        lines = [f"{number}\ttravel\t{folder[:3]} sentence {number} {'x' * number}" for number in range(6)]
        text = "\n".join(["index_id\tcategory\ttext", *lines]) + "\n"
        (tmp_path / "data" / folder / "test.tsv").write_text(text, encoding="utf-8")
    study = Unseen(quick(run=str(tmp_path / "run"), data=tmp_path / "data"))
    assert study.cells() == ["eng", "hat", "fra", "cmn"]  # whether Mesopotamian Arabic was seen is not known
    text = conduct(study).read_text(encoding="utf-8")
    assert "| Haitian Creole (unseen) | French creole | Latn | French |" in text
    assert "| French | Romance | Latn | – |" in text
    assert "unseen, with a relative that was seen | 1 |" in text


def test_where_nothing_is_unseen_there_is_no_study(
    quick: Callable[..., Setting], saved: dict[str, Path], tmp_path: Path
) -> None:
    """On the sanity set, which XLM-R has seen all of, a page was written that compared nothing."""
    shutil.copytree(saved["bert"], tmp_path / "e5-small")
    recipe = Recipe.of({**models(saved), "encoder": {"name": str(tmp_path / "e5-small")}}, "test")
    LangBridge.from_recipe(recipe).save_pretrained(tmp_path / "run")
    study = Unseen(quick(run=str(tmp_path / "run")))
    with pytest.raises(DataError, match="of run has seen all languages of sanity: name with --data a folder"):
        conduct(study)


def test_an_encoder_of_unknown_pretraining_is_refused(quick: Callable[..., Setting]) -> None:
    with pytest.raises(DataError, match="not known which languages"):
        conduct(Unseen(quick()))
