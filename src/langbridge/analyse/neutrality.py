"""Study `neutrality`: do languages share one space? At every encoder layer, behind the bridge, and inside the LM.

After LangBridge, section 5 and figure 3: pooled states of translations, with the bridge and without it.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from langbridge.analyse.alignment import alignment, principal
from langbridge.analyse.figures import Axes, Figure, key, label, lines, points, sheet
from langbridge.analyse.probe import language_probe
from langbridge.analyse.representation import (
    BRIDGE,
    LM,
    PLAIN,
    encoder_layers,
    layer_read,
    lm_states,
    soft_prompts,
    tokenisation,
)
from langbridge.analyse.study import Cell, Page, Setting, Study
from langbridge.data.parallel import Parallel, sanity_set
from langbridge.evaluate.statistics import interval
from langbridge.files import replacing
from langbridge.generate import BridgedGenerator
from langbridge.languages import PIVOT
from langbridge.routing import load

JOINT = "all languages together"
VIEWS = {BRIDGE: "soft prompt", LM: "LM with bridge", PLAIN: "LM alone"}
SENTENCES = 40


class Neutrality(Study):
    """One cell for each language, against English; one for what needs all of them at once."""

    name: ClassVar[str] = "neutrality"
    question: ClassVar[str] = "Do the encoder, the bridge and the LM give translations the same states?"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.text = setting.parallel()
        known = [language for language in self.text.sources if language != PIVOT]
        self.languages = known[:3] if setting.quick else known
        self.count = setting.sentences or (6 if setting.quick else SENTENCES)

    @cached_property
    def together(self) -> Parallel:
        """The same sentences in all languages: the text itself, or, where it pairs each with English, the sanity set.

        Between languages that say different things, a classifier would tell topics.
        """
        texts = [self.text.references(language) for language in self.languages]
        return self.text if all(text == texts[0] for text in texts) else sanity_set()

    def cells(self) -> list[str]:
        """Return the languages, then all of them together."""
        return [*self.languages, JOINT]

    @cached_property
    def generator(self) -> BridgedGenerator:
        """The run that is looked at."""
        return load(self.setting.run, routing="off", dtype=self.setting.dtype)

    def measure(self, cell: str) -> Cell:
        """Compare a language with English at every place; or fit probe and principal axes."""
        if cell == JOINT:
            return self._joint()
        own, english = (self._vectors(self.text, cell, side) for side in ("own", "english"))
        found = {
            view: {name: round(value, 4) for name, value in vars(alignment(own[view], english[view])).items()}
            for view in own
        }
        tokens = tokenisation(self.generator, self.text.sources[cell][: self.count])
        return {"views": found, "tokens": {name: round(value, 4) for name, value in vars(tokens).items()}}

    def _vectors(self, text: Parallel, language: str, side: str) -> dict[str, Tensor]:
        """Return pooled vectors by view, of a language's sentences or of their English references; kept on disk."""
        texts = text.sources[language] if side == "own" else text.references(language)
        shared = side == "english" and all(english is texts for english in text.english.values())
        name = PIVOT if shared else f"{language}-{side}"
        path = self.setting.work / f"{text.name}-{self.count}" / f"{name}.safetensors"
        if not path.is_file():
            keep(pooled_views(self.generator, texts[: self.count]), path)
        found = safetensors.torch.load_file(path)
        return {view: found[view] for view in sorted(found, key=order)}  # the file sorts by name

    def _joint(self) -> Cell:
        """Probe every view; project onto axes fitted on the LM alone, as the paper does, and on both together."""
        text = self.together
        known = [language for language in text.sources if language != PIVOT]
        vectors = {code: self._vectors(text, code, "own") for code in (known[:3] if self.setting.quick else known)}
        vectors = {PIVOT: self._vectors(text, known[0], "english"), **vectors}
        names = list(vectors)
        sizes = [len(vectors[language][PLAIN]) for language in names]
        languages = np.repeat(np.arange(len(names)), sizes)
        sentences = np.concatenate([np.arange(size) for size in sizes])
        probes = {}
        for view in vectors[PIVOT]:
            stacked = torch.cat([vectors[language][view] for language in names])
            accuracy, ci95 = language_probe(stacked.double().numpy(), languages, sentences)
            probes[view] = {"accuracy": round(accuracy, 4), "ci95": ci95}
        plain, bridged, soft = (torch.cat([vectors[code][view] for code in names]) for view in (PLAIN, LM, BRIDGE))
        maps = {}
        for fit_on, fit in (("LM alone", plain), ("both", torch.cat([plain, bridged]))):
            for view, part in (("LM alone", plain), ("LM with bridge", bridged)):
                maps[f"{view}, axes of {fit_on}"] = _placed(part, fit, names, sizes)
        maps["soft prompt, its own axes"] = _placed(soft, soft, names, sizes)
        return {
            "probes": probes,
            "maps": maps,
            "chance": round(1 / len(names), 4),
            "text": text.name,
            "sentences": max(sizes),
            "read": layer_read(self.generator),
        }

    def page(self, cells: Mapping[str, Cell]) -> Page:
        """Draw layers and maps; table the places."""
        rows = {language: cells[language]["views"] for language in self.languages}
        joint = cells[JOINT]
        return Page(
            method=(
                f"{self.count} sentences of `{self.text.name}` in {len(rows)} languages and English, mean-pooled. "
                "Against the English translations: share of sentences whose nearest English sentence by cosine is "
                "their own (retrieval), the same with each language's mean taken away, linear CKA (unbiased), and the "
                "distance of the means in spreads of English. Over all languages together, on "
                f"{joint['sentences']} sentences of `{joint['text']}` in {round(1 / joint['chance'])} languages, the "
                "same in each: the maps, and the accuracy of a linear language classifier, five folds that share no "
                f"sentence (chance {joint['chance']:.1%}). The LM reads the text alone, without a template; its last "
                "layer is pooled without the boundary. The bridge reads encoder layer "
                f"{joint['read']}."
            ),
            result=self._table(rows, joint),
            interval=(
                "Bootstrap 95%: over languages for means over languages, over sentences (all languages of a sentence "
                "together) for the classifier."
            ),
            limits=(
                f"Short sentences, {self.count} to choose from: retrieval is easier than among thousands. Pooling "
                "hides order. A classifier that fails has not been shown that nothing is left: it is linear and "
                f"small. Sentences of `{self.text.name}`, one encoder, one LM, one bridge. The LM alone reads other "
                "scripts in many tokens, close to bytes, which by itself sets languages apart."
            ),
            figures={
                "layers": (
                    _layers(rows, joint),
                    "Mean over languages at each encoder layer, then behind the bridge, which reads layer "
                    f"{joint['read']}; apart from the line, the LM that reads the text itself.",
                ),
                "maps": (
                    _maps(joint),
                    "Each dot is a sentence, coloured by script, English black; the same axes in each row.",
                ),
                "languages": (
                    _by_language(rows, joint),
                    "Retrieval of the English translation, by language and place.",
                ),
            },
        )

    def _table(self, rows: Mapping[str, Any], joint: Cell) -> str:
        head = ["| place | retrieval | 95% | centred | CKA | means apart | language told | 95% |", "|" + "---|" * 8]
        for view, found in joint["probes"].items():
            parts = {
                name: np.array([row[view][name] for row in rows.values()]) for name in next(iter(rows.values()))[view]
            }
            values = parts["retrieval"]
            low, high = interval(lambda chosen, v=values: float(v[chosen].mean()), len(values))  # type: ignore[misc]
            told = found["ci95"]
            head.append(
                f"| {place(view)} | {values.mean():.3f} | {low:.3f} to {high:.3f} | {parts['centred'].mean():.3f} | "
                f"{np.nanmean(parts['cka']):.3f} | {parts['apart'].mean():.2f} | {found['accuracy']:.3f} | "
                f"{told[0]:.3f} to {told[1]:.3f} |"
            )
        return "\n".join(head)


def pooled_views(generator: BridgedGenerator, texts: list[str]) -> dict[str, Tensor]:
    """Return pooled vectors at every encoder layer, behind the bridge, and in the LM with it and alone."""
    layers = encoder_layers(generator, texts)
    return {
        **{f"layer {number}": vectors for number, vectors in enumerate(layers)},
        BRIDGE: soft_prompts(generator, texts),
        LM: lm_states(generator, texts, plain=False),
        PLAIN: lm_states(generator, texts, plain=True),
    }


def keep(vectors: Mapping[str, Tensor], path: Path) -> None:
    """Write vectors, all or nothing."""
    with replacing(path) as temporary:
        safetensors.torch.save_file({name: value.contiguous() for name, value in vectors.items()}, temporary)


def order(view: str) -> tuple[int, int]:
    """Return where a view comes on the way from text to LM: encoder layers by number, then bridge and LM."""
    if view in VIEWS:
        return 1, list(VIEWS).index(view)
    return 0, int(view.removeprefix("layer "))


def place(view: str) -> str:
    """Return what a view is called in tables."""
    return VIEWS.get(view, f"encoder {view}")


def _placed(part: Tensor, fit: Tensor, names: list[str], sizes: list[int]) -> dict[str, Any]:
    places, shares = principal(part, fit)
    split = torch.split(places, sizes)
    return {
        "shares": [round(share, 4) for share in shares],
        "places": {
            name: [[round(x, 3) for x in row] for row in rows.tolist()] for name, rows in zip(names, split, strict=True)
        },
    }


def _layers(rows: Mapping[str, Any], joint: Cell) -> Figure:
    figure, axes = sheet(2, width=6.6, height=3.8)
    views = list(joint["probes"])
    ticks = [view.removeprefix("layer ") if view not in VIEWS else VIEWS[view].replace(" ", "\n") for view in views]
    means = {
        title: [float(np.nanmean([row[view][name] for row in rows.values()])) for view in views]
        for title, name in (("retrieval", "retrieval"), ("retrieval, centred", "centred"), ("CKA", "cka"))
    }
    xs = list(range(len(views)))
    told = [found["accuracy"] for found in joint["probes"].values()]
    _way(axes[0], means, title="Alignment with English", y="mean")
    _way(axes[1], {"probe": told}, title="Language told by a linear classifier", y="accuracy")
    lows, highs = ([found["ci95"][end] for found in joint["probes"].values()] for end in (0, 1))
    axes[1].fill_between(xs[:-1], lows[:-1], highs[:-1], alpha=0.2, linewidth=0)
    axes[1].axhline(joint["chance"], color="#999999", linewidth=0.8, linestyle="--")
    for one in axes:
        one.set_xticks(xs, ticks, fontsize=7)
        one.set_ylim(-0.03, 1.03)
        one.axvline(len(views) - 3.5, color="#bbbbbb", linewidth=0.8)
    return figure


def _way(axes: Axes, series: Mapping[str, list[float]], *, title: str, y: str) -> None:
    """Draw values along the way from text through the bridge; the last, of the LM alone, is on no such way."""
    lines(axes, {name: (list(range(len(ys) - 1)), ys[:-1]) for name, ys in series.items()}, title=title, x="", y=y)
    for line, ys in zip(list(axes.lines), series.values(), strict=True):
        axes.plot([len(ys) - 1], ys[-1:], marker="o", markersize=3.5, color=line.get_color())


def _maps(joint: Cell) -> Figure:
    maps = joint["maps"]
    figure, axes = sheet(2, 2, width=4.6, height=3.9)
    for one, (title, found) in zip(axes, list(maps.items())[:4], strict=True):
        points(one, found["places"], title=title)
        one.set_xlabel(f"{found['shares'][0]:.0%} of the variance fitted", fontsize=8)
        one.set_ylabel(f"{found['shares'][1]:.0%}", fontsize=8)
    for left, right in ((0, 1), (2, 3)):  # the same frame in a row, or nothing could be compared
        for low, high in (("get_xlim", "set_xlim"), ("get_ylim", "set_ylim")):
            ends = [*getattr(axes[left], low)(), *getattr(axes[right], low)()]
            for one in (axes[left], axes[right]):
                getattr(one, high)(min(ends), max(ends))
    key(figure, list(next(iter(maps.values()))["places"]))
    return figure


def _by_language(rows: Mapping[str, Any], joint: Cell) -> Figure:
    figure, (axes,) = sheet(width=4.6, height=1.4 + 0.19 * len(rows))
    shown = [f"layer {joint['read']}", *VIEWS]
    names = sorted(rows, key=lambda language: rows[language][shown[0]]["retrieval"])
    grid = np.array([[rows[language][view]["retrieval"] for view in shown] for language in names])
    picture = axes.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for up, across in np.ndindex(*grid.shape):
        value = grid[up, across]
        axes.text(
            across, up, f"{value:.2f}", ha="center", va="center", size=7, color="white" if value > 0.6 else "#222"
        )
    axes.set_yticks(range(len(names)), [label(language) for language in names], fontsize=7.5)
    axes.set_xticks(range(len(shown)), [place(view).replace(" ", "\n", 1) for view in shown], fontsize=7.5)
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes, label="retrieval", fraction=0.04, pad=0.02)
    return figure
