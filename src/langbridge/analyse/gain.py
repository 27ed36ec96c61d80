"""Study `gain`: does an encoder's neutrality in a language predict what transfers from it?

Transfer ratios come from recorded tables (`evaluate --task transfer --out`), neutrality is computed here on the same
parallel text; every setting of study `encoder` that has been run is one more encoder, with its own transfer.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from langbridge.analyse.alignment import alignment
from langbridge.analyse.encoder_size import EncoderSize
from langbridge.analyse.figures import Figure, bars, named_points, sheet
from langbridge.analyse.grid import by_setting, unlearned
from langbridge.analyse.representation import encoder_layers, layer_read, tokenisation
from langbridge.analyse.study import RESULT, Cell, Page, Setting, Study, data_name, fields_set, read_study
from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe
from langbridge.errors import DataError
from langbridge.evaluate.resources import corpus_size, pretraining
from langbridge.evaluate.result import read_result
from langbridge.evaluate.statistics import ROUNDS, interval
from langbridge.generate import BridgedGenerator
from langbridge.languages import PIVOT

TABLES = {
    "multilingual": ("studies/embedded/transfer_tatoeba.json", "recipes/embedded.yaml"),
    "English only": ("studies/embedded/negative_control_tatoeba.json", "recipes/negative_control.yaml"),
}
"""Recorded transfer and the recipe that made the bridge, from the folder the command is called in."""
GRID = Path("studies/encoder") / RESULT
GRID_CELL = "study encoder: "
MEASURES = {
    "centred": "retrieval, means taken away",
    "retrieval": "retrieval",
    "cka": "CKA",
    "apart": "means apart",
    "per_sentence": "pieces per sentence over English",
}
BEST = "centred"
"""The measure that figures show."""
SENTENCES = 200
FEWEST = 8
"""Languages that a correlation needs."""
FEWEST_ENCODERS = 4
CLOSE = 0.02
"""Transfer ratios whose labels would lie on top of each other."""
Numbers = NDArray[np.float64]


class Gain(Study):
    """One cell for each encoder that there is a table of transfer for."""

    name: ClassVar[str] = "gain"
    question: ClassVar[str] = "Does neutrality of the encoder in a language predict what transfers from it?"
    uses: ClassVar[frozenset[str]] = frozenset({"recipe", "overrides"})
    tables: ClassVar[dict[str, tuple[str, str]]] = TABLES
    grid: ClassVar[Path] = GRID

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.text = setting.parallel()
        self.count = setting.sentences or (8 if setting.quick else SENTENCES)

    def cells(self) -> list[str]:
        """Return the encoders."""
        return [*self.tables, *self._grid_ratios]

    def basis(self) -> dict[str, Any]:
        """Return what the cells are measured on: the tables, the data, and what is read of study `encoder`."""
        files = {name: _there(path).read_bytes() for name, (path, _) in self.tables.items()}
        digests = {name: hashlib.sha256(file).hexdigest()[:16] for name, file in files.items()}
        return {"tables": digests, "data": data_name(self.setting), **self._grid_basis()}

    @cached_property
    def _grid(self) -> dict[str, Any]:
        return read_study(self.grid)

    @cached_property
    def _grid_ratios(self) -> dict[str, dict[str, float]]:
        """Return transfer ratios by language, first seed, of each setting of study `encoder`, where it has been run."""
        if self.setting.quick or not self.grid.is_file():
            return {}
        rows = by_setting(self._grid["cells"])
        return {f"{GRID_CELL}{name}": next(iter(own.values()))["test"] for name, own in rows.items()}

    @cached_property
    def _unlearned(self) -> list[str]:
        """Return settings of study `encoder` through which English itself was not learned."""
        if not self._grid_ratios:
            return []
        rows = by_setting(self._grid["cells"])
        return [f"{GRID_CELL}{name}" for name in unlearned(rows, EncoderSize.base)]

    def _grid_basis(self) -> dict[str, Any]:
        """Return the digest of the grid's ratios, and what its encoders are made by; nothing without a grid."""
        if not self._grid_ratios:
            return {}
        ratios = hashlib.sha256(json.dumps(self._grid_ratios, sort_keys=True).encode()).hexdigest()[:16]
        recipe = self.setting.recipe or Path(EncoderSize.recipe)
        return {"study encoder": ratios, "recipe": recipe.name, **fields_set(self.setting)}

    def measure(self, cell: str) -> Cell:
        """Return transfer and neutrality by language for one encoder."""
        if cell in self._grid_ratios:
            ratios = self._grid_ratios[cell]
            self._same_text(data_name(self.setting), self._grid["setup"].get("data"), str(self.grid))
            recipe = EncoderSize(self.setting).read_recipe(cell.removeprefix(GRID_CELL), seed=1)
        else:
            path, made_by = self.tables[cell]
            result = read_result(_there(path))
            ratios = {language: row["transfer_ratio"] for language, row in result["languages"].items()}
            recipe = Recipe.read(_there(made_by))
            self._same_text(self.text.name, result["data"], path)
        # an untrained bridge: only what is in front of it is looked at
        generator = BridgedGenerator(LangBridge.from_recipe(recipe).eval())
        return {
            language: {"ratio": ratios[language], **self._neutrality(generator, language)}
            for language in self._shared(ratios)
        }

    def _same_text(self, own: str, other: str | None, source: str) -> None:
        """Raise DataError where neutrality would be measured on another text than transfer was."""
        if own != other:
            raise DataError(
                f"{source} is of {other!r}, and neutrality would be of {own!r}: name with --data the folder that it "
                "was made on."
            )

    def _shared(self, ratios: Iterable[str]) -> list[str]:
        shared = [language for language in ratios if language in self.text.sources and language != PIVOT]
        if len(shared) < FEWEST:
            raise DataError(
                f"the text ({self.text.name}) and the recorded transfer share {len(shared)} languages; at least "
                f"{FEWEST} are needed. Name with --data the folder that the transfer was recorded on."
            )
        return shared[:FEWEST] if self.setting.quick else shared

    def _neutrality(self, generator: BridgedGenerator, language: str) -> dict[str, Any]:
        texts, english = self.text.sources[language][: self.count], self.text.references(language)[: self.count]
        layer = layer_read(generator)
        near = alignment(encoder_layers(generator, texts)[layer], encoder_layers(generator, english)[layer])
        own, pivot = tokenisation(generator, texts), tokenisation(generator, english)
        seen = pretraining(generator.model.recipe.encoder.name)
        return {
            **{name: round(value, 4) for name, value in vars(near).items()},
            "per_sentence": round(own.per_sentence / pivot.per_sentence, 4),
            "unknown": round(own.unknown, 4),
            "seen": None if seen is None else language in seen[0],
        }

    def page(self, cells: Mapping[str, Cell]) -> Page:
        """Draw each encoder's languages, and table rank correlations."""
        rows = {name: _rows(cell) for name, cell in cells.items()}
        rows = {name: own for name, own in rows.items() if len(own) >= FEWEST}
        sources = ", ".join(f"`{Path(path).name}`" for path, _ in self.tables.values())
        return Page(
            method=(
                f"Transfer ratios as recorded in {sources}"
                + (" and in study `encoder`" if self._grid_ratios else "")
                + f"; neutrality on the first {self.count} sentences of each language of `{data_name(self.setting)}`, "
                "mean-pooled states of the layer that the bridge reads, beside their English translations. Spearman's "
                "rank correlation over languages; partial: of the ranks, once pieces per sentence (over English) and "
                "the language's size in CC-100, the corpus of XLM-R, which the multilingual encoder descends from "
                "(Conneau et al., ACL 2020, table 6), have been taken out by regression."
            ),
            result="\n\n".join([_table(rows), _across(rows, self._unlearned)]),
            interval=f"Bootstrap 95% over languages ({ROUNDS} rounds); of their means, over encoders, which are few.",
            limits=(
                "Languages are not independent (families), and a correlation over them is no cause. The encoder saw "
                "more text after that corpus, which is not published by language. Sentence pairs differ from "
                "language to language, so that both sides share the difficulty of the text. "
                f"{len(rows)} encoders; the transfer of those of study `encoder` is of short trainings, one seed."
            ),
            figures={
                "gain": (_drawn(rows), "Left: each point is a language, colours are scripts. Right: means by encoder."),
                "correlations": (_correlated(rows), "Rank correlation over languages by encoder, with its interval."),
            },
        )


def spearman(left: Numbers, right: Numbers) -> float:
    """Return the rank correlation; 0 where one side is constant."""
    one, two = rankdata(left), rankdata(right)
    if one.std() == 0 or two.std() == 0:
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])


def partial_spearman(left: Numbers, right: Numbers, controls: Numbers) -> float:
    """Return the correlation of the ranks of two sides, with the ranks of controls (rows, controls) regressed out."""
    ranks = [rankdata(side) for side in (left, right)]
    known = np.column_stack([np.ones(len(left)), *(rankdata(column) for column in controls.T)])
    rest = [side - known @ np.linalg.lstsq(known, side, rcond=None)[0] for side in ranks]
    if min(side.std() for side in rest) < 1e-9:
        return 0.0
    return float(np.corrcoef(*rest)[0, 1])


def _rows(cell: Cell) -> dict[str, dict[str, Any]]:
    """Return what is known of each language, with what the pretraining corpus has of it."""
    return {language: {**row, "size": corpus_size(language)} for language, row in cell.items() if isinstance(row, dict)}


def _table(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    lines = ["| encoder | languages | measure | rank correlation | 95% | partial | 95% |", "|" + "---|" * 7]
    for name, own in rows.items():
        for measure, title in MEASURES.items():
            if any(measure not in row for row in own.values()):
                continue
            whole, partial = _correlations(list(own.values()), measure)
            lines.append(f"| {name} | {len(own)} | {title} | {_shown(whole)} | {_shown(partial)} |")
    return "\n".join(lines)


def _correlations(
    rows: Sequence[Mapping[str, Any]], measure: str
) -> tuple[tuple[float, float, float], tuple[float, float, float] | None]:
    """Return (value, low, high) of the rank correlation with transfer, plain and partial; None without controls."""
    kept = [row for row in rows if row[measure] is not None and np.isfinite(row[measure])]
    values, ratios = (np.array([row[name] for row in kept], dtype=np.float64) for name in (measure, "ratio"))
    draws = np.random.default_rng(0).integers(0, len(kept), (ROUNDS, len(kept)))
    rounds = [spearman(values[chosen], ratios[chosen]) for chosen in draws]
    whole = (spearman(values, ratios), *(float(end) for end in np.percentile(rounds, [2.5, 97.5])))
    if measure == "per_sentence" or not all("per_sentence" in row for row in kept):
        return whole, None  # type: ignore[return-value]
    controls = np.array([[row["per_sentence"], row["size"]] for row in kept], dtype=np.float64)
    rounds = [partial_spearman(values[chosen], ratios[chosen], controls[chosen]) for chosen in draws]
    ends = np.percentile(rounds, [2.5, 97.5])
    return whole, (partial_spearman(values, ratios, controls), float(ends[0]), float(ends[1]))  # type: ignore[return-value]


def _shown(figure: tuple[float, float, float] | None) -> str:
    return " | " if figure is None else f"{figure[0]:+.2f} | {figure[1]:+.2f} to {figure[2]:+.2f}"


def _means(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, tuple[float, float]]:
    """Return (mean neutrality, mean ratio) over languages by encoder."""
    return {
        name: (_mean(row[BEST] for row in own.values()), _mean(row["ratio"] for row in own.values()))
        for name, own in rows.items()
    }


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _across(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], unlearned: Collection[str] = ()) -> str:
    """Return how means go together over the encoders of study `encoder`, which were trained and measured alike."""
    alike = {name: own for name, own in rows.items() if name.startswith(GRID_CELL)}
    different = {place: name for name, place in reversed(_means(alike).items())}  # one that is cut nowhere is no other
    lines: list[str] = []
    for title, names in (
        ("different encoders of study `encoder`", list(different.values())),
        ("of them through which English was learned", [n for n in different.values() if n not in unlearned]),
    ):
        if len(names) < FEWEST_ENCODERS or (lines and len(names) == len(different)):
            continue
        left, right = (np.array(side) for side in zip(*_means({n: rows[n] for n in names}).values(), strict=True))
        low, high = interval(lambda i, x=left, y=right: spearman(x[i], y[i]), len(names))  # type: ignore[misc]
        lines.append(
            f"Over the {len(names)} {title}, means over languages: rank correlation {spearman(left, right):+.2f} "
            f"({low:+.2f} to {high:+.2f}) between {MEASURES[BEST]} and transfer ratio."
        )
    return " ".join(lines)


def _drawn(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    figure, axes = sheet(2, width=5.0, height=3.9)
    name, own = next(iter(rows.items()))
    places = {language: (row[BEST], row["ratio"]) for language, row in own.items()}
    named_points(axes[0], places, x=MEASURES[BEST], y="transfer ratio", title=name)
    for names, (across, up) in _close(_means(rows)).items():
        axes[1].annotate(
            ", ".join(dict.fromkeys(name.removeprefix(GRID_CELL) for name in names)),
            (across, up),
            xytext=(-5, -3),
            textcoords="offset points",
            fontsize=7,
            ha="right",
        )
    xs, ys = zip(*_means(rows).values(), strict=True)
    axes[1].scatter(xs, ys, s=16, color="#4477aa")
    axes[1].set_xlim(left=-0.35)  # for the names
    axes[1].set_xlabel(f"{MEASURES[BEST]}, mean")
    axes[1].set_ylabel("transfer ratio, mean")
    axes[1].set_title("encoders", fontsize=10)
    return figure


def _close(places: Mapping[str, tuple[float, float]]) -> dict[tuple[str, ...], tuple[float, float]]:
    """Return places by the names that share a label there, as names on top of each other cannot be read."""
    found: dict[tuple[str, ...], tuple[float, float]] = {}
    for name, (across, up) in sorted(places.items(), key=lambda pair: pair[1]):
        near = next((names for names, place in found.items() if abs(place[1] - up) < CLOSE), ())
        found[(*near, name)] = found.pop(near) if near else (across, up)
    return found


def _correlated(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    figure, (axes,) = sheet(width=6.2, height=1.2 + 0.3 * len(rows))
    shown = {name: _correlations(list(own.values()), BEST)[0] for name, own in rows.items()}
    bars(axes, shown, title=f"Transfer ratio and {MEASURES[BEST]}", x="rank correlation over languages")
    return figure


def _there(path: str) -> Path:
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file. Call from the repository's folder, where the recorded tables are.")
    return Path(path)
