"""docs/scaling.md, the plan, and the formulas in it: three accounts of the same figures."""

import sys
from pathlib import Path

import pytest

from langbridge.pretrained.shapes import language_model_shape
from langbridge.train.plan import GIB, cache_size, can_be_shared, memory, network, plan

sys.path.insert(0, str(Path(__file__).parent.parent / "studies"))
import scaling

MODEL = {"N": 32 * (4 * 4096**2 + 3 * 4096 * 11008), "H": 32_000 * 4096, "L": 32, "w": 4096, "all": 6_738_415_616}
ENCODER = {"N": 24 * (4 * 2048**2 + 3 * 2048 * 5120), "L": 24, "w": 2048, "all": 1_669_958_656}


def test_docs_show_what_the_plan_says() -> None:
    text = scaling.DOCS.read_text(encoding="utf-8")
    shown = text.partition(scaling.BEGIN)[2].partition(scaling.END)[0]
    assert shown.strip() == scaling.tables().strip(), "run `python studies/scaling.py --write`"


def test_the_largest_shape_has_the_published_size() -> None:
    weights = language_model_shape("meta-llama/Llama-2-70b-hf").model.parameters()
    assert sum(weight.numel() for weight in weights) == 68_976_648_192


@pytest.mark.parametrize("devices", [1, 8, 64])
def test_the_formulas_give_the_figures(devices: int) -> None:
    """Those of docs/scaling.md, by hand, for the LM of seven billion weights."""
    recipe = scaling.recipe_of("7B")
    found = plan(recipe, (scaling.SOURCE, scaling.TARGET))
    lm, encoder, s, t = MODEL, ENCODER, 200, 150
    length, bridge, micro = s + 1 + t, 2048 * 4096 + 2 * 4096, 16
    assert found.bridge == found.trained == bridge
    flops = 2 * encoder["N"] * s + 4 * encoder["L"] * encoder["w"] * s**2 + 6 * bridge * s
    flops += 4 * lm["N"] * length + 4 * lm["H"] * t + 6 * lm["L"] * lm["w"] * length**2
    assert found.flops == pytest.approx(flops * found.records, rel=1e-3)  # the encoder's table of distances besides
    assert found.hours(devices, 150) == pytest.approx(flops * found.records / (devices * 150e12) / 3600, rel=1e-3)
    held = 2 * lm["all"] + 2 * encoder["all"] + 4 * bridge + 12 * bridge
    kept = micro * length * lm["L"] * lm["w"] * 32 + min(micro * t, 2**24 / 32_000) * 32_000 * 10
    assert memory(found, recipe, devices, shared=False) == pytest.approx(held + kept, rel=1e-3)
    share = (devices - 1) / devices
    assert network(found, recipe, devices, shared=False) == pytest.approx(2 * share * 4 * bridge)
    if devices > 1:
        layers = 2 * (lm["N"] + encoder["N"])
        gathered = 2 * 2 * (lm["N"] / lm["L"] + encoder["N"] / encoder["L"])
        wanted = held - layers + layers / devices + gathered + kept
        assert memory(found, recipe, devices, shared=True) == pytest.approx(wanted, rel=1e-3)
        turns = 1024 / devices / micro
        sent = 2 * share * 4 * bridge + turns * share * (2 * 2 * lm["N"] + 2 * encoder["N"])
        assert network(found, recipe, devices, shared=True) == pytest.approx(sent, rel=1e-3)
    assert cache_size(found, 1000) == 1000 * 2 * 200 * 2048


def test_recomputing_trades_time_for_memory() -> None:
    recipe = scaling.recipe_of("7B")
    twice = recipe.with_training(gradient_checkpointing=True)
    one, two = (plan(made, (200, 150)) for made in (recipe, twice))
    assert 1.3 < two.flops / one.flops < 1.5
    less = memory(one, recipe, 1, shared=False) - memory(two, twice, 1, shared=False)
    assert less == pytest.approx(16 * 351 * 4096 * (32 * 32 - (2 * 32 + 32)))
    assert less / GIB > 15


def test_what_learns_or_is_packed_cannot_be_spread() -> None:
    assert can_be_shared(scaling.recipe_of("7B"))
    assert not can_be_shared(scaling.recipe_of("70B, 4 bit"))
