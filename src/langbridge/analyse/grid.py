"""Training grids: settings x seeds, each cell a bridge that is trained, measured and thrown away.

Every cell goes on from its newest checkpoint; cells are made seed by seed, so that an unfinished grid still compares
all settings. Choices are for the development languages; test languages are only looked at.
"""

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy.stats import t as student
from transformers import TrainerCallback

from langbridge.analyse.figures import Figure, bars, sheet
from langbridge.analyse.measures import COMMONEST, ITEMS, facts_accuracy, task_accuracy, transfer_measures
from langbridge.analyse.medians import draw_gains, medians, shades
from langbridge.analyse.study import MEASURES, Cell, Page, Setting, Study, data_name, fields_set
from langbridge.checkpoint import CONFIG, METADATA, WEIGHTS, LangBridge, read_config
from langbridge.config import Recipe
from langbridge.data.parallel import Parallel, sanity_set
from langbridge.errors import ConfigError, DataError
from langbridge.generate import BridgedGenerator
from langbridge.languages import DEVELOPMENT, PIVOT
from langbridge.train import train
from langbridge.train.distill import ANSWERS
from langbridge.train.run import as_begun

TASKS = ("sib200", "xcopa")
QUICK = (
    "training.batch_size=8",
    "training.accumulate=1",
    "warm_start.sentences=32",
    "warm_start.sharpen=10",
    "data.limit=64",
    "data.validation=8",
)
UNTAUGHT = 1.0
"""Nats per token that the English loss may lie above the base's: beyond, a ratio divides by what was not learned."""
PARTS = {"development": "transfer, development", "test": "transfer, test"}


class Grid(Study):
    """Inherit from this: name, question, settings, base and what else differs."""

    uses: ClassVar[frozenset[str]] = frozenset(
        {"recipe", "languages", "steps", "seeds", "only", "overrides", "measure"}
    )
    recipe: ClassVar[str] = "recipes/demo.yaml"
    """Recipe where none is named, from the folder the command is called in."""
    settings: ClassVar[dict[str, tuple[str, ...]]]
    """Name -> fields of the recipe; a name has no comma."""
    base: ClassVar[str]
    """The setting that the others are compared with, seed by seed."""
    steps: ClassVar[int] = 100
    sentences: ClassVar[int] = 40
    development_times: ClassVar[int] = 1
    """So many times the sentences of a test language for a development language, where a choice is the aim."""
    facts: ClassVar[bool] = False
    tasks: ClassVar[bool] = False
    """Whether benchmarks of the data folder are asked too."""
    wanted: ClassVar[float | None] = None
    """What the median ratio is to be raised by, where that is the aim."""
    about: ClassVar[str]
    """What the settings are, for the page."""
    limits: ClassVar[str] = ""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.path = setting.recipe or Path(self.recipe)
        if not self.path.is_file():
            raise ConfigError(f"{self.path}: no such recipe. Call from the repository's folder, or name --recipe.")
        self.texts = self._texts()  # before anything is trained: languages may be misspelt

    def chosen(self) -> list[str]:
        """Return the names of the settings that are run."""
        names = list(self.settings)
        if self.setting.only:
            asked = {name for part in self.setting.only for name in self._asked(part)}
            names = [name for name in names if name in asked]
        elif self.setting.quick:
            names = [self.base, next(name for name in reversed(names) if name != self.base)]
        lacking = self.lacking()
        found = [name for name in names if name not in lacking]
        if not found or lacking.keys() & set(self.setting.only):
            raise DataError("; ".join(f"{name} needs {lacking[name]}" for name in names if name in lacking) + ".")
        return found

    def _asked(self, part: str) -> list[str]:
        """Return the settings that a part of --only means: the one of this name, else those whose names begin so."""
        found = [part] if part in self.settings else [name for name in self.settings if name.startswith(part)]
        if not found:
            raise ConfigError(f"--only {part}: settings are {', '.join(self.settings)}.")
        return found

    def lacking(self) -> dict[str, str]:
        """Return settings that cannot be run here, with what they need; they are left out."""
        return {}

    def cells(self) -> list[str]:
        """Return all settings with the first seed, then with the next."""
        seeds = self.setting.seeds[:1] if self.setting.quick else self.setting.seeds
        return [f"{name}, seed {seed}" for seed in seeds for name in self.chosen()]

    def basis(self) -> dict[str, Any]:
        """Return what decides the cells."""
        return {
            "recipe": self.path.name,
            "steps": self.step_count,
            "data": data_name(self.setting),
            **fields_set(self.setting),
            **({"languages": ",".join(self.setting.languages)} if self.setting.languages else {}),
            **({} if self.development_times == 1 else {"development_times": self.development_times}),
            **({} if self.setting.measure == MEASURES else {"measured": ",".join(self.setting.measure)}),
        }

    def ready(self, cells: Mapping[str, Cell]) -> bool:
        """A page can be written from the first cell on."""
        return bool(cells)

    @property
    def step_count(self) -> int:
        """Steps of a cell, unless its setting says otherwise."""
        return self.setting.steps or (4 if self.setting.quick else self.steps)

    @property
    def length(self) -> str:
        """How long a cell is trained, for the page."""
        return f"for {self.step_count} steps unless its name says otherwise"

    def fields(self, name: str) -> Sequence[str]:
        """Return the fields of one setting; a study may write files for it first."""
        return self.settings[name]

    def callbacks(self, name: str) -> Sequence[TrainerCallback]:
        """Return what else takes part in one setting's training."""
        return ()

    def generator(self, name: str, model: LangBridge) -> BridgedGenerator:
        """Return what is measured: the trained model, unless a setting changes it afterwards."""
        return BridgedGenerator(model, batch_size=48)

    def read_recipe(self, name: str, seed: int) -> Recipe:
        """Return the recipe of one cell: validation at the end only, a checkpoint every quarter."""
        own = [*self.fields(name), *(QUICK if self.setting.quick else ()), *self.setting.overrides]
        stated = [field.split("=")[1] for field in own if field.startswith("training.steps=")]
        steps = int(stated[-1]) if stated and not self.setting.quick else self.step_count
        common = [
            f"training.steps={steps}",
            f"training.seed={seed}",
            f"training.evaluate_every={steps}",
            f"training.save_every={max(1, steps // 4)}",
        ]
        return Recipe.read(self.path, [*own, *common])

    def measure(self, cell: str) -> Cell:
        """Train one bridge, measure it, and drop it."""
        name, _, seed = cell.rpartition(", seed ")
        folder = self.setting.work / "".join(letter if letter.isalnum() else "-" for letter in cell)
        model = trained(self.read_recipe(name, int(seed)), folder, self.callbacks(name)).eval()
        found = self.measured(self.generator(name, model))
        found["results"] = model.results
        found["parameters"] = sum(value.numel() for value in model.trained().values())
        found["losses"] = losses(folder / "metrics.jsonl")
        shutil.rmtree(folder)
        return found

    def measured(self, generator: BridgedGenerator) -> Cell:
        """Return transfer by language, development and test apart, and whatever else the study asks."""
        cell: Cell = {}
        for part, text in self.texts.items():
            cell[part], cell[f"nll_{part}"] = transfer_measures(generator, text, self.counts[part])
        if self.facts and "facts" in self.setting.measure:
            cell["facts"] = facts_accuracy(generator, quick=self.setting.quick)
        data = self.setting.data
        for task in TASKS if self.tasks and "tasks" in self.setting.measure else ():
            if data is not None and (data / task).is_dir():
                answers = self.setting.work / "answers" / str(os.getpid())  # other processes have cells of their own
                cell[task] = task_accuracy(generator, task, data, answers, quick=self.setting.quick)
        return cell

    @property
    def sentence_count(self) -> int:
        """Sentences of each language."""
        return self.setting.sentences or (4 if self.setting.quick else self.sentences)

    @property
    def counts(self) -> dict[str, int]:
        """Sentences of each language by part."""
        return {"development": self.sentence_count * self.development_times, "test": self.sentence_count}

    def _texts(self) -> dict[str, Parallel]:
        """Return the development languages, and the others."""
        text = self.setting.parallel()
        first = text if set(DEVELOPMENT) <= set(text.sources) else sanity_set()
        asked = text.choose(self.setting.languages).sources
        others = [language for language in asked if language not in (*DEVELOPMENT, PIVOT)]
        if not others:
            raise DataError(
                f"--languages {','.join(self.setting.languages)}: all are development languages; name others, too."
            )
        return {
            "development": first.choose(DEVELOPMENT, self.counts["development"]),
            "test": text.choose(others[:2] if self.setting.quick else others, self.counts["test"]),
        }

    def page(self, cells: Mapping[str, Cell]) -> Page:
        """Table all settings, and draw transfer to the test languages."""
        return Page(
            method=(
                f"{self.about} Each bridge is trained on English alone by `{self.path.name}` {self.length}, "
                "and measured by the mean transfer ratio over the development "
                f"languages ({', '.join(DEVELOPMENT)}; first {self.counts['development']} sentences each) and over "
                f"{len(next(iter(cells.values()))['test'])} test languages ({self.counts['test']} each) of "
                f"`{data_name(self.setting)}`. In brackets: the difference from `{self.base}`, seed by seed. Losses "
                "are nats per token of the same English references: a ratio rises, too, where English itself is "
                "learned less well, the loss of the test languages does not fall then."
                f"{self.asked(cells)}"
            ),
            result=self.table(cells),
            interval=(
                "± is half of the 95% interval of Student's t over seeds; with one seed there is none (–). Intervals "
                "of medians are over test languages and seeds (bootstrap: the same languages drawn for both, for each "
                "its own seeds; three seeds are few, and one adds nothing)."
            ),
            limits=(
                f"{self.limits} Small models and few steps: what wins here need not win with mT5-XL and a 7B LM. "
                "Intervals over seeds are on the same sentences and languages."
            ).strip(),
            figures=self.figures(cells),
        )

    def asked(self, cells: Mapping[str, Cell]) -> str:
        """Return what the columns of facts and benchmarks are, where there are any."""
        cell, told = next(iter(cells.values())), ""
        if "facts" in cell:
            own = [language for language in cell["facts"] if language in DEVELOPMENT]
            told += (
                f" Facts: mean share of right answers to the sanity set's questions in {len(cell['facts'])} languages"
                f"{f', {len(own)} of them development languages' if own else ''}."
            )
        if there := [task for task in TASKS if task in cell]:
            counts = ", ".join(f"{task} {len(cell[task])} languages" for task in there)
            floors = ", ".join(f"{task} {COMMONEST[task]:.2f}" for task in there)
            told += (
                f" Benchmarks: mean accuracy on the first {ITEMS} test items ({counts}); always the commonest of their "
                f"answers: {floors}."
            )
        return told

    def figures(self, cells: Mapping[str, Cell]) -> dict[str, tuple[Figure, str]]:
        """Draw the mean transfer ratio of the test languages by setting."""
        rows = by_setting(cells, self.settings)
        figure, (axes,) = sheet(width=6.2, height=1.2 + 0.3 * len(rows))
        shown = {}
        for name, own in rows.items():
            mean, half = over_seeds([macro(cell["test"]) for cell in own.values()])
            shown[name] = (mean, mean - half, mean + half)
        lost = unlearned(rows, self.base)
        colours = shades(rows, lost)
        bars(axes, shown, title="Mean transfer ratio, test languages", x="transfer ratio", colours=colours)
        told = "Pale: one seed. Grey: English itself was not learned, so that a ratio says nothing."
        caption = f"Bars: mean over languages and seeds; lines: 95% interval over seeds. {told}"
        drawn = {"transfer": (figure, caption)}
        if self.base in rows and len(rows) > 1:
            drawn["medians"] = (
                draw_gains(rows, self.base, colours=colours, wanted=self.wanted),
                f"Median over test languages, its difference from `{self.base}`; lines: 95% interval over languages "
                f"and seeds{'; dotted: the aim' if self.wanted else ''}. {told}",
            )
        return drawn

    def table(self, cells: Mapping[str, Cell]) -> str:
        """Return all settings as Markdown."""
        rows = by_setting(cells, self.settings)
        extra = [task for task in ("facts", *TASKS) if any(task in cell for cell in cells.values())]
        heads = [*PARTS.values(), "loss, English", "loss, test", *extra]
        lines = [f"| setting | weights | seeds | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 3)}"]
        for name, own in rows.items():
            columns = [self._compared(name, rows, part) for part in PARTS]
            losses = [cell["nll_test"] for cell in own.values()]
            columns.append(_figure([loss[PIVOT] for loss in losses]))
            columns.append(_figure([macro(foreign(loss)) for loss in losses]))
            columns += [self._compared(name, rows, task) for task in extra]
            weights = next(iter(own.values()))["parameters"]
            lines.append(f"| {name} | {weights:,} | {len(own)} | {' | '.join(columns)} |")
        table = "\n".join([*lines, "", *self.told(rows)])
        return f"{table}\n\n{medians(rows, self.base)}" if self.base in rows and len(rows) > 1 else table

    def told(self, rows: Mapping[str, Mapping[int, Cell]]) -> list[str]:
        """Return sentences on what is best, what does not count and what was not run."""
        lost = unlearned(rows, self.base)
        there = {name: own for name, own in rows.items() if name not in lost}
        best = max(there, key=lambda name: development(there[name]))
        loss = {
            name: float(np.mean([macro(foreign(cell["nll_development"])) for cell in own.values()]))
            for name, own in rows.items()
        }
        lowest = min(loss, key=loss.__getitem__)
        lines = [
            f"Best on the development languages: `{best}` ({development(rows[best]):.3f}). "
            f"Lowest loss there: `{lowest}` ({loss[lowest]:.3f})."
        ]
        if lost:
            names = ", ".join(f"`{name}`" for name in lost)
            lines.append(
                f"Not counted as best, as English itself was not learned (its loss is more than {UNTAUGHT:.0f} nat per "
                f"token above that of `{self.base}`), so that the ratio says nothing: {names}."
            )
        if missing := [name for name in self.settings if name not in rows]:
            lines.append(f"Not run: {', '.join(f'`{name}`' for name in missing)}.")
        return lines

    def _compared(self, name: str, rows: Mapping[str, Mapping[int, Cell]], part: str) -> str:
        own = {seed: macro(cell[part]) for seed, cell in rows[name].items() if part in cell}
        if not own:
            return ""
        base = {seed: macro(cell[part]) for seed, cell in rows.get(self.base, {}).items() if part in cell}
        paired = [own[seed] - base[seed] for seed in own if seed in base]
        gap = f" ({_figure(paired, sign='+')})" if paired and name != self.base else ""
        return _figure(list(own.values())) + gap


def trained(recipe: Recipe, folder: Path, callbacks: Sequence[TrainerCallback] = ()) -> LangBridge:
    """Return the trained model of a cell: as it is on disk, gone on with, or from the start.

    What another recipe made is dropped: its file, which the set-up has by name alone, was changed meanwhile.
    """
    same = (folder / CONFIG).is_file() and as_begun(recipe, begun_by := read_config(folder)) == begun_by
    if same and (folder / WEIGHTS).is_file() and (folder / METADATA).is_file():
        return LangBridge.from_pretrained(folder)
    begun = same and any(path.joinpath("trainer_state.json").is_file() for path in folder.glob("checkpoint-*"))
    if not begun:
        for left in folder.glob("*"):
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name != ANSWERS:  # which took the LM long, and which are checked when they are read
                left.unlink()
    return train(recipe, folder, resume=begun, callbacks=callbacks)


def losses(path: Path) -> list[list[float]]:
    """Return (step, training loss) pairs of a run's log."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [[record["step"], round(record["loss"], 4)] for record in records if "loss" in record]


def by_setting(cells: Mapping[str, Cell], order: Iterable[str] = ()) -> dict[str, dict[int, Cell]]:
    """Return cells by setting and seed; settings in a given order, whichever was measured first."""
    found: dict[str, dict[int, Cell]] = {name: {} for name in order}
    for name, cell in cells.items():
        setting, _, seed = name.rpartition(", seed ")
        found.setdefault(setting, {})[int(seed)] = cell
    return {name: own for name, own in found.items() if own}


def foreign(figures: Mapping[str, float]) -> dict[str, float]:
    """Return all but English."""
    return {language: figure for language, figure in figures.items() if language != PIVOT}


def macro(ratios: Mapping[str, float]) -> float:
    """Return the unweighted mean over languages."""
    return float(np.mean(list(ratios.values())))


def unlearned(rows: Mapping[str, Mapping[int, Cell]], base: str) -> list[str]:
    """Return settings whose English loss is far above the base's."""
    loss = {name: float(np.mean([cell["nll_test"][PIVOT] for cell in own.values()])) for name, own in rows.items()}
    return [name for name in rows if base in loss and loss[name] > loss[base] + UNTAUGHT]


def development(own: Mapping[int, Cell]) -> float:
    """Return the mean transfer ratio over development languages and seeds."""
    return float(np.mean([macro(cell["development"]) for cell in own.values()]))


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and the half-width of its 95% interval (Student's t); nan for one seed."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), float(student.ppf(0.975, len(values) - 1)) * spread


def _figure(values: Sequence[float], sign: str = "") -> str:
    mean, half = over_seeds(values)
    return f"{mean:{sign}.3f} ± {'–' if math.isnan(half) else f'{half:.3f}'}"
