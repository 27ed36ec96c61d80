"""Figures as files. The only part of the package that imports matplotlib, with the studies that draw."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from langbridge.files import replacing
from langbridge.languages import PIVOT, name_of, script_of

__all__ = ["Axes", "Figure", "bars", "drawable", "lines", "points", "save", "sheet"]

matplotlib.use("agg")
DPI = 160
METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""Nothing that differs from one drawing to the next."""
SCRIPTS = {
    "Latn": "Latin", "Cyrl": "Cyrillic", "Arab": "Arabic", "Deva": "Devanagari", "Grek": "Greek", "Hebr": "Hebrew",
    "Hans": "Chinese, simplified", "Hant": "Chinese, traditional", "Jpan": "Japanese", "Hang": "Korean",
    "Thai": "Thai", "Beng": "Bengali", "Taml": "Tamil", "Telu": "Telugu", "Mlym": "Malayalam", "Guru": "Gurmukhi",
    "Geor": "Georgian", "Armn": "Armenian", "Ethi": "Ethiopic", "Zyyy": "others",
}  # fmt: skip
INK = "#222222"


def sheet(columns: int = 1, rows: int = 1, *, width: float = 5.0, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and its axes, row after row."""
    with plt.rc_context({"font.size": 9, "svg.hashsalt": "langbridge", "svg.fonttype": "path"}):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write `path`.png and `path`.svg, each all or nothing; the same figure gives the same bytes."""
    for kind, metadata in METADATA.items():
        with replacing(path.with_name(f"{path.name}.{kind}")) as temporary, plt.rc_context({"svg.hashsalt": path.name}):
            figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)


def colour(language: str) -> tuple[float, float, float, float]:
    """Return the colour of a language: that of its script, as nobody reads a key of fifty; English is black."""
    if language == PIVOT:
        return 0.0, 0.0, 0.0, 1.0
    script = script_of(language) if script_of(language) in SCRIPTS else "Zyyy"
    place = list(SCRIPTS).index(script)
    found: tuple[float, float, float, float] = matplotlib.colormaps["tab20"](
        place % 10 * 2 + place // 10
    )  # dark ones first
    return found


def drawable(text: str) -> bool:
    """Tell whether the font of figures has every letter of a text."""
    letters = get_font(findfont(FontProperties())).get_charmap()
    return all(ord(letter) in letters for letter in text if not letter.isspace())


def points(
    axes: Axes, places: Mapping[str, Sequence[Sequence[float]]], *, title: str, size: float = 7, alpha: float = 0.75
) -> None:
    """Draw (x, y) places by language, coloured by script."""
    for language, rows in sorted(places.items(), key=lambda item: item[0] == PIVOT):  # English on top
        xs, ys = zip(*rows, strict=True)
        axes.scatter(xs, ys, s=size, color=[colour(language)], alpha=alpha, linewidths=0, label=script_of(language))
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def key(figure: Figure, languages: Sequence[str]) -> None:
    """Draw the key of scripts below a figure."""
    first = {
        "English" if language == PIVOT else SCRIPTS.get(script_of(language), SCRIPTS["Zyyy"]): language
        for language in languages
    }
    marks = [
        matplotlib.lines.Line2D([], [], marker="o", linestyle="", color=colour(language), label=name)
        for name, language in sorted(first.items())
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=min(6, len(marks)), fontsize=8, frameon=False)


def lines(
    axes: Axes, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str, x: str, y: str
) -> None:
    """Draw lines (xs, ys) with a mark at each point."""
    for name, (xs, ys) in series.items():
        axes.plot(xs, ys, marker="o", markersize=3.5, linewidth=1.4, label=name)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False)


def bars(
    axes: Axes,
    values: Mapping[str, tuple[float, float, float]],
    *,
    title: str,
    x: str,
    colours: Mapping[str, str] | None = None,
) -> None:
    """Draw (value, low, high) by name as horizontal bars with their intervals, the first on top.

    `colours`: of bars that are unlike the others.
    """
    names = list(values)
    places = range(len(names))
    middles = [values[name][0] for name in names]
    spans = [[max(0.0, v - low), max(0.0, high - v)] for v, low, high in values.values()]
    errors = [[0.0 if math.isnan(span[side]) else span[side] for span in spans] for side in (0, 1)]
    shades = [(colours or {}).get(name, "#4477aa") for name in names]
    axes.barh(places, middles, xerr=errors, color=shades, ecolor=INK, error_kw={"linewidth": 0.9}, height=0.7)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)


def named_points(axes: Axes, places: Mapping[str, tuple[float, float]], *, x: str, y: str, title: str = "") -> None:
    """Draw one (x, y) point for each language, with its code beside it."""
    for language, (across, up) in places.items():
        axes.scatter([across], [up], s=16, color=[colour(language)])
        axes.annotate(language, (across, up), xytext=(3, 2), textcoords="offset points", fontsize=6.5, color=INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)


def label(language: str) -> str:
    """Return the name of a language as figures show it."""
    return name_of(language)
