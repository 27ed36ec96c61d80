"""Work folders of training grids: what is gone on with, and what is not taken for another's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from langbridge.analyse.encoder_size import ENGLISH, EncoderSize
from langbridge.analyse.encoders import random, rounded, variant
from langbridge.analyse.expressivity import Expressivity
from langbridge.analyse.grid import trained
from langbridge.analyse.study import Cell, Setting, conduct
from langbridge.generate import BridgedGenerator
from langbridge.pretrained import load_encoder


def test_an_interrupted_cell_is_gone_on_with(quick: Callable[..., Setting], recipe: Path) -> None:
    first = Expressivity(quick(recipe=recipe))

    def stop(generator: BridgedGenerator) -> Cell:
        raise KeyboardInterrupt

    first.measured = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        conduct(first)
    [weights] = first.setting.work.glob("*/bridge.safetensors")
    made, again = weights.stat().st_mtime_ns, Expressivity(quick(recipe=recipe))
    measured = again.measured

    def measured_too(generator: BridgedGenerator) -> Cell:
        found.append(weights.stat().st_mtime_ns if weights.is_file() else 0)
        return measured(generator)

    found: list[int] = []
    again.measured = measured_too  # type: ignore[method-assign]
    conduct(again)
    assert found == [made, 0]


@pytest.mark.parametrize("whole", [True, False])
def test_what_another_recipe_made_is_made_anew(
    quick: Callable[..., Setting], recipe: Path, tmp_path: Path, *, whole: bool
) -> None:
    """A finished cell was returned whatever recipe had made it; one under way stopped the study."""
    study, folder = Expressivity(quick(recipe=recipe)), tmp_path / "run"
    trained(study.read_recipe("linear last", 1), folder)
    if not whole:
        (folder / "bridge.safetensors").unlink()
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("say: ", "tell: "), encoding="utf-8")
    changed = study.read_recipe("linear last", 1)
    assert trained(changed, folder).recipe.prompt == changed.prompt
    made = (folder / "bridge.safetensors").stat().st_mtime_ns
    trained(changed, folder)
    assert (folder / "bridge.safetensors").stat().st_mtime_ns == made


def test_encoders_are_made_of_the_one_that_is_set(
    quick: Callable[..., Setting], recipe: Path, saved: dict[str, Path], tmp_path: Path
) -> None:
    """What was set replaced every setting's encoder, and a cut encoder stayed whatever it had been cut from."""
    plain = EncoderSize(quick(recipe=recipe))
    variant(str(saved["bert"]), random, tmp_path / "fresh")
    other = EncoderSize(quick(recipe=recipe, overrides=(f"encoder.name={tmp_path / 'fresh'}",)))
    names = ("whole", "4 bits", "English only")
    first, second = ([study.read_recipe(name, 1).encoder.name for name in names] for study in (plain, other))
    assert first[0] == str(saved["bert"])
    assert second[0] == str(tmp_path / "fresh")
    assert first[2] == second[2] == ENGLISH
    tables = [load_encoder(name).model.get_input_embeddings().weight for name in (first[1], second[1], second[0])]
    assert torch.equal(tables[1], rounded(tables[2], 4))
    assert not torch.equal(tables[1], tables[0])
