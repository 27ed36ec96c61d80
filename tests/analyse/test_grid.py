"""Grids train, go on where they stopped, and their tables say what the cells say."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertModel

from langbridge.analyse.budget import BATCH, Budget, falls, plateau_left
from langbridge.analyse.encoders import coarse, cut, random, rounded, variant
from langbridge.analyse.expressivity import Expressivity
from langbridge.analyse.gap import Gap, LowRank, Noise, at_rank, centred
from langbridge.analyse.grid import over_seeds, trained
from langbridge.analyse.measures import task_accuracy
from langbridge.analyse.medians import median_gain
from langbridge.analyse.representation import encoder_layers
from langbridge.analyse.studies import STUDIES
from langbridge.analyse.study import Cell, Setting, conduct, read_study
from langbridge.analyse.training_data import short
from langbridge.checkpoint import LangBridge
from langbridge.data.parallel import sanity_set
from langbridge.errors import ConfigError, DataError
from langbridge.generate import BridgedGenerator
from langbridge.pretrained import load_encoder
from langbridge.transfer import compare

GRIDS = ["encoder", "freezing", "expressivity", "budget", "data", "gap"]


@pytest.mark.parametrize("name", GRIDS)
def test_quick_grids_on_tiny_models(name: str, quick: Callable[..., Setting], recipe: Path) -> None:
    study = STUDIES[name](quick(recipe=recipe))
    page = conduct(study)
    kept = read_study(page.parent / "result.json")
    assert list(kept["cells"]) == study.cells()
    assert len(study.cells()) == 2
    for cell in kept["cells"].values():
        assert set(cell["development"]) == {"deu", "swh", "tel", "kat"}
        assert not set(cell["test"]) & {"deu", "swh", "tel", "kat", "eng"}
        assert cell["losses"]
        assert cell["minutes"] >= 0
    text = page.read_text(encoding="utf-8")
    for cell_name in study.cells():
        assert f"| {cell_name.split(', seed')[0]} |" in text
    left = [path.name for path in study.setting.work.iterdir() if path.is_dir()]
    assert not [folder for folder in left if "seed" in folder]  # the runs are gone


def test_test_languages_can_be_chosen(quick: Callable[..., Setting], recipe: Path) -> None:
    study = Gap(quick(recipe=recipe, languages=("tha", "de", "fra")))
    assert list(study.texts["test"].sources) == ["tha", "fra"]
    assert set(study.texts["development"].sources) == {"deu", "swh", "tel", "kat"}
    assert study.setup()["languages"] == "tha,de,fra"
    with pytest.raises(DataError, match="klingon"):
        Gap(quick(recipe=recipe, languages=("klingon",)))
    with pytest.raises(DataError, match="all are development languages"):
        Gap(quick(recipe=recipe, languages=("sw",)))


def test_cells_are_not_made_anew(quick: Callable[..., Setting], recipe: Path) -> None:
    conduct(Expressivity(quick(recipe=recipe)))
    path = quick().out / "result.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    kept = whole["cells"].pop("resampler mix, seed 1")
    whole["cells"]["linear last, seed 1"]["parameters"] = 12345
    path.write_text(json.dumps(whole), encoding="utf-8")
    conduct(Expressivity(quick(recipe=recipe)))
    again = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert again["linear last, seed 1"]["parameters"] == 12345
    for part in ("development", "test", "facts", "losses"):
        assert again["resampler mix, seed 1"][part] == kept[part]


def test_what_is_not_to_be_measured_is_not(quick: Callable[..., Setting], recipe: Path) -> None:
    study = Expressivity(quick(recipe=recipe, measure=("transfer",)))
    cell = study.measure("linear last, seed 1")
    assert "test" in cell
    assert "facts" not in cell
    assert study.setup()["measured"] == "transfer"


def test_an_interrupted_training_is_gone_on_with(quick: Callable[..., Setting], recipe: Path, tmp_path: Path) -> None:
    study = Expressivity(quick(recipe=recipe, quick=False, steps=8))
    settings = study.read_recipe("mlp-1 last", 1)
    whole = trained(settings, tmp_path / "run")
    for name in ("bridge.safetensors", "langbridge.json", "checkpoint-8/trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    first = (tmp_path / "run" / "checkpoint-6" / "trainer_state.json").stat().st_mtime_ns
    again = trained(settings, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint-6" / "trainer_state.json").stat().st_mtime_ns == first
    assert all((value == again.trained()[name]).all() for name, value in whole.trained().items())


def test_answers_outlive_an_interruption(quick: Callable[..., Setting], recipe: Path, tmp_path: Path) -> None:
    study, folder = Gap(quick(recipe=recipe, quick=False, steps=4)), tmp_path / "run"
    settings = study.read_recipe("distilled", 1)
    trained(settings, folder)
    said = (folder / "answers.jsonl").read_bytes()
    (folder / "answers.jsonl").write_bytes(b"".join(said.splitlines(keepends=True)[:-1]))
    for path in (folder / "bridge.safetensors", folder / "langbridge.json", *folder.glob("*/trainer_state.json")):
        path.unlink()
    with (folder / "answers.jsonl").open() as kept:  # a file that is appended to stays the same file
        trained(settings, folder)
        assert kept.read().encode() == said


def cell(development: float, test: float, **more: object) -> Cell:
    return {
        "development": {"deu": development + 0.1, "swh": development - 0.1},
        "test": {"fra": test},
        "parameters": 1000,
        "nll_development": {"eng": 0.8, "deu": 2 - development, "swh": 2 - development},
        "nll_test": {"eng": 0.8, "fra": 2 - test},
        "losses": [[1, 2.0], [2, 1.0]],
        **more,
    }


def test_the_table_compares_seed_by_seed(quick: Callable[..., Setting], recipe: Path) -> None:
    cells = {}
    for setting, shift in (("mlp-2 mix", 0.05), ("linear last", 0.0)):
        for seed, level in ((1, 0.5), (2, 0.6), (3, 0.7)):
            cells[f"{setting}, seed {seed}"] = cell(level + shift, level - shift)
    text = Expressivity(quick(recipe=recipe)).table(cells)
    assert text.index("| linear last") < text.index("| mlp-2 mix")  # whichever was measured first
    assert "| linear last | 1,000 | 3 | 0.600 ± 0.248 | 0.600 ± 0.248 | 0.800 ± 0.000 | 1.400 ± 0.248 |" in text
    assert "| mlp-2 mix | 1,000 | 3 | 0.650 ± 0.248 (+0.050 ± 0.000) | 0.550 ± 0.248 (-0.050 ± 0.000) |" in text
    assert "Best on the development languages: `mlp-2 mix` (0.650)" in text
    assert "Lowest loss there: `mlp-2 mix` (1.350)" in text


def test_one_seed_has_no_interval() -> None:
    mean, half = over_seeds([0.5])
    assert mean == 0.5
    assert half != half


def test_unknown_settings_and_recipes_are_named(quick: Callable[..., Setting], recipe: Path) -> None:
    with pytest.raises(ConfigError, match="--only golden: settings are linear last, mlp-1 last"):
        Expressivity(quick(recipe=recipe, only=("golden",))).cells()
    with pytest.raises(ConfigError, match="--only golden: settings are linear last, mlp-1 last"):
        Expressivity(quick(recipe=recipe, only=("mlp", "golden"))).cells()  # none is dropped because others are known
    with pytest.raises(ConfigError, match="no such recipe"):
        Expressivity(quick(recipe=recipe / "absent"))


def test_a_setting_is_chosen_by_its_name_or_its_beginning(quick: Callable[..., Setting], recipe: Path) -> None:
    """`layer 10 varied dropout` chose `... noise` and `... centred`, too."""

    def chosen(*only: str) -> list[str]:
        return Gap(quick(recipe=recipe, only=only)).chosen()

    assert chosen("layer 10 varied dropout") == ["layer 10 varied dropout"]
    assert chosen("layer 10 varied", "varied") == [
        name for name in Gap.settings if name.startswith("layer 10 varied") or name == "varied"
    ]


def test_the_gap_is_judged_on_what_development_languages_choose(quick: Callable[..., Setting], recipe: Path) -> None:
    cells = {
        "plain linear, seed 1": cell(0.5, 0.5),
        "varied, seed 1": cell(0.6, 0.57),
        "layer 11, seed 1": cell(0.55, 0.7),  # better on test languages, which do not choose
    }
    text = Gap(quick(recipe=recipe)).table(cells)
    assert "Chosen on the development languages among those with the steps of `plain linear`: `varied`" in text
    assert "+0.070 (+0.070 to +0.070)" in text.splitlines()[-1]
    assert "does not reach the aim of +0.08" in text
    assert text.endswith("Losses, English and test languages: 0.80 and 1.43, against 0.80 and 1.50.")
    assert "| layer 11 | 1 | 0.700 | +0.200 (+0.200 to +0.200) | 1 of 1 |" in text
    assert "One seed each" in text
    twice = {**cells, "plain linear, seed 2": cell(0.5, 0.3), "varied, seed 2": cell(0.6, 0.47)}
    more = Gap(quick(recipe=recipe)).table(twice)
    assert "+0.120 (-0.030 to +0.270)" in more.splitlines()[-1]  # of the means over both seeds
    assert "| layer 11 | 1 | 0.700 | +0.300 (+0.200 to +0.400) | 1 of 1 |" in more  # against both seeds
    assert "The seeds of `plain linear` alone have medians of 0.300, 0.500" in more
    figure, _ = Gap(quick(recipe=recipe)).figures(twice)["medians"]
    assert [round(bar.get_width(), 3) for bar in figure.axes[0].patches] == [0.3, 0.12]  # as the page's table
    longer = {
        **cells,
        "four times as long, seed 1": cell(0.6, 0.6),
        "layer 11 varied dropout four times as long, seed 1": cell(0.7, 0.7),
    }
    last, longest = Gap(quick(recipe=recipe)).table(longer).splitlines()[-3::2]
    assert "steps of `plain linear`: `varied`" in last  # longer ones are not judged against it
    assert "steps of `four times as long`: `layer 11 varied dropout four times as long`" in longest
    assert "+0.100 (+0.100 to +0.100) from that of `four times as long`, which reaches" in longest
    worse = {"plain linear, seed 1": cell(0.5, 0.5), "varied, seed 1": cell(0.4, 0.9)}
    assert "`plain linear`, so that nothing tried is chosen." in Gap(quick(recipe=recipe)).table(worse)


def test_a_ratio_of_what_was_not_learned_is_not_the_best(quick: Callable[..., Setting], recipe: Path) -> None:
    lost = cell(0.9, 0.9, nll_test={"eng": 3.0, "fra": 3.1}, nll_development={"eng": 3.0, "deu": 3.0, "swh": 3.0})
    cells = {"plain linear, seed 1": cell(0.5, 0.5), "rank 32, seed 1": lost, "varied, seed 1": cell(0.6, 0.6)}
    study = Gap(quick(recipe=recipe))
    text = study.table(cells)
    assert "Best on the development languages: `varied`" in text
    assert "so that the ratio says nothing: `rank 32`." in text
    assert "Not run: `state noise`" in text
    assert "plain linear`: `varied`" in text.splitlines()[-1]
    bars = study.figures(cells)["transfer"][0].axes[0].patches
    assert len({bar.get_facecolor() for bar in bars}) == 2  # what was not learned is grey


def test_gains_of_medians_are_over_the_same_languages() -> None:
    base = np.array([[0.1 * i for i in range(9)]])
    gain, low, high = median_gain(base + 0.05, base)
    assert gain == pytest.approx(0.05)
    assert low == pytest.approx(high) == pytest.approx(0.05)  # however far languages are from each other
    other = base.copy()
    other[0, 4:6] = 0.45, 0.44
    gain, low, high = median_gain(other, base)
    assert low <= gain <= high
    assert gain == pytest.approx(0.04)


def test_gains_of_medians_are_over_seeds_too() -> None:
    """What only a seed sets apart is no gain: the interval holds zero."""
    base = np.array([[0.1 * i + seed for i in range(9)] for seed in (0.0, 0.03, 0.06)])
    gain, low, high = median_gain(base[::-1], base)
    assert gain == pytest.approx(0)
    assert low < -0.02
    assert high > 0.02


def test_settings_without_their_data_are_left_out(quick: Callable[..., Setting], recipe: Path) -> None:
    every = Gap(quick(recipe=recipe, quick=False))
    assert "paraphrase contrast" in every.settings
    assert "paraphrase contrast" not in every.chosen()
    with pytest.raises(DataError, match=r"paraphrase contrast needs --data with p3/train.jsonl.gz\."):
        Gap(quick(recipe=recipe, only=("varied", "paraphrase contrast"))).cells()


def test_a_plateau_is_left_where_the_loss_falls_after_it_stood() -> None:
    steps = [1, *range(10, 1001, 10)]
    fall = falls([[step, 3.0 if step < 450 else 1.0] for step in steps])
    assert sum(fall) == pytest.approx(2.0)
    assert plateau_left(fall) == 320 * BATCH
    smooth = falls([[step, 3.0 - math.log10(step)] for step in steps])
    assert smooth == pytest.approx([math.log10(2)] * len(smooth), abs=0.06)
    assert plateau_left(smooth) is None  # falls alike all the time
    assert plateau_left(falls([[step, 3.0] for step in steps])) is None
    assert falls([[1, 3.0]]) == []


def test_budgets_are_whole_runs(quick: Callable[..., Setting], recipe: Path) -> None:
    study = Budget(quick(recipe=recipe, quick=False, seeds=(1,)))
    assert study.read_recipe("random 2e-3 6400", 1).training.steps == 200
    assert study.read_recipe("random 2e-3 6400", 1).warm_start.enabled is False


def test_encoders_that_are_less(saved: dict[str, Path], tmp_path: Path) -> None:
    whole = load_encoder(str(saved["bert"]))
    half = load_encoder(str(variant(str(saved["bert"]), cut(1), tmp_path / "cut")))
    assert half.depth == 1
    ids, mask = torch.tensor([[1, 5, 6, 2]]), torch.ones(1, 4, dtype=torch.int64)
    with torch.no_grad():
        every = whole.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        assert torch.allclose(half(ids, mask), every[1], atol=1e-6)
    with pytest.raises(ConfigError, match="2 layers cannot be cut to 3"):
        variant(str(saved["bert"]), cut(3), tmp_path / "long")
    assert not (tmp_path / "long").exists()
    rough = load_encoder(str(variant(str(saved["bert"]), coarse(2), tmp_path / "coarse")))
    table = rough.model.get_input_embeddings().weight
    assert all(len(row.unique()) <= 4 for row in table)
    other = load_encoder(str(variant(str(saved["bert"]), random, tmp_path / "random")))
    assert isinstance(other.model, BertModel)
    assert not torch.equal(other.model.get_input_embeddings().weight, whole.model.get_input_embeddings().weight)


def test_rounding_errs_by_half_a_step_at_most() -> None:
    torch.manual_seed(0)
    weights = torch.randn(5, 70)
    for bits in (2, 4):
        steps = (weights[:, :32].amax(1) - weights[:, :32].amin(1)) / (2**bits - 1)
        error = (rounded(weights, bits) - weights)[:, :32].abs().amax(1)
        assert (error <= steps / 2 + 1e-6).all()
    assert torch.allclose(rounded(weights, 16), weights, atol=1e-3)


def test_noise_is_only_there_while_learning(tiny_run: Path) -> None:
    model = LangBridge.from_pretrained(tiny_run)
    states, mask = torch.randn(2, 3, 24), torch.ones(2, 3, dtype=torch.int64)
    noise = Noise(0.5)
    noise.on_train_begin(None, None, None, model=model)
    quiet = model.bridge.eval()(states, mask).vectors
    assert torch.equal(quiet, model.bridge(states, mask).vectors)
    assert not torch.equal(quiet, model.bridge.train()(states, mask).vectors)
    noise.on_train_end(None, None, None)
    assert torch.equal(quiet, model.bridge(states, mask).vectors)


def test_low_rank_is_kept(tiny_run: Path) -> None:
    model = LangBridge.from_pretrained(tiny_run)
    LowRank(3).on_step_end(None, None, None, model=model)
    assert torch.linalg.matrix_rank(model.bridge.linear.weight) == 3
    weight = torch.randn(6, 4)
    assert torch.allclose(at_rank(weight, 4), weight, atol=1e-5)


def test_centring_moves_a_language_onto_english(tiny_run: Path) -> None:
    generator = BridgedGenerator(LangBridge.from_pretrained(tiny_run))
    own, english = ["aa bb", "cc dd"], ["one cat", "two dogs"]
    encoder = generator.model.encoder
    batch = generator.collate.encoder_tokenizer(own, return_tensors="pt", padding=True)
    before = encoder(batch.input_ids, batch.attention_mask)
    means = [encoder_layers(generator, part)[-1].mean(dim=0) for part in (own, english)]
    with centred(generator, own, english):
        inside = encoder(batch.input_ids, batch.attention_mask)
    assert torch.allclose(inside - before, (means[1] - means[0]).expand_as(before), atol=1e-5)
    assert torch.equal(encoder(batch.input_ids, batch.attention_mask), before)


def test_what_is_centred_has_the_means_of_other_sentences(
    quick: Callable[..., Setting], recipe: Path, tiny_run: Path
) -> None:
    study, generator = Gap(quick(recipe=recipe)), BridgedGenerator(LangBridge.from_pretrained(tiny_run))
    study.centring = False
    plain = study.measured(generator)
    study.centring = True
    found = study.measured(generator)
    assert found["test"].keys() == plain["test"].keys()
    [language, *_] = found["test"]
    assert found["test"][language] != plain["test"][language]
    whole, measured = sanity_set(), study.texts["test"]
    own, english = whole.sources[language][-100:], next(s[-100:] for s in whole.english.values())
    with centred(generator, own, english):
        loss = compare(generator, measured.sources[language], measured.references(language)).nll
    assert found["nll_test"][language] == pytest.approx(loss, abs=1e-4)


def test_long_and_empty_records_are_left_out() -> None:
    records = [
        {"source": "a", "target": "b", "task": "t"},
        {"source": "x" * 500, "target": "b"},
        {"source": " ", "target": "b"},
    ]
    assert short(records) == [{"source": "a", "target": "b"}]


def test_benchmarks_are_asked_anew_for_each_cell(tiny_run: Path, tmp_path: Path) -> None:
    for folder in ("eng_Latn", "fra_Latn", "swh_Latn"):
        (tmp_path / "data" / "sib200" / folder).mkdir(parents=True)
        for split in ("dev", "test"):
            lines = [f"{number}\t{topic}\tA sentence {number}" for number, topic in enumerate(("travel", "sports") * 3)]
            text = "\n".join(["index_id\tcategory\ttext", *lines]) + "\n"
            (tmp_path / "data" / "sib200" / folder / f"{split}.tsv").write_text(text, encoding="utf-8")
    model = LangBridge.from_pretrained(tiny_run)
    first = task_accuracy(BridgedGenerator(model), "sib200", tmp_path / "data", tmp_path / "answers", quick=True)
    assert set(first) == {"fra", "swh"}
    assert all(share in (0.0, 0.3333, 0.6667, 1.0) for share in first.values())
    kept = {path: path.read_bytes() for path in (tmp_path / "answers").rglob("*.jsonl")}
    assert kept
    with torch.no_grad():
        model.bridge.linear.bias.add_(3.0)  # another cell's bridge
    task_accuracy(BridgedGenerator(model), "sib200", tmp_path / "data", tmp_path / "answers", quick=True)
    assert any(path.read_bytes() != old for path, old in kept.items())
