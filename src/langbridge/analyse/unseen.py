"""Study `unseen`: what comes through from languages that the encoder has never seen?"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from langbridge.analyse.alignment import alignment
from langbridge.analyse.figures import Figure, bars, label, sheet
from langbridge.analyse.representation import encoder_layers, layer_read, tokenisation
from langbridge.analyse.study import Cell, Page, Setting, Study, run_name
from langbridge.checkpoint import read_config, run_folder
from langbridge.data.parallel import Parallel, read_parallel
from langbridge.errors import DataError
from langbridge.evaluate.resources import pretraining
from langbridge.evaluate.statistics import interval
from langbridge.evaluate.transfer import ratio_interval
from langbridge.generate import BridgedGenerator
from langbridge.languages import LANGUAGES, PIVOT, our_code, script_of
from langbridge.routing import load
from langbridge.transfer import Comparison, compare

KIN = {
    "hat": ("French creole", "fra"),
    "quy": ("Quechuan", ""),
    "yor": ("Volta-Niger", ""),
    "yue": ("Sinitic", "cmn"),
    "hau": ("Chadic", ""),
    "som": ("Cushitic", ""),
    "amh": ("Ethiosemitic", ""),
    "swh": ("Bantu", ""),
    "fra": ("Romance", "–"),
    "cmn": ("Sinitic", "–"),
    "deu": ("Germanic", "–"),
    "spa": ("Romance", "–"),
    "tam": ("Dravidian", "–"),
    "eus": ("isolate", "–"),
    "est": ("Uralic", "–"),
    "tur": ("Turkic", "–"),
    "kor": ("Koreanic", "–"),
    "rus": ("Slavic", "–"),
}
"""Family, and the relative among the high-resource languages that the encoder has seen; empty: it has none. Of seen
languages it is told only where the encoder has seen little of them: they are what unseen ones compare with."""
SEEN = ("fra", "cmn", "deu", "spa", "swh", "hau", "som", "amh", "tam", "eus", "est", "tur", "kor", "rus")
"""Seen languages to compare with, relatives of the unseen ones among them: high-resource and low-resource."""
UNKNOWN = ("–", "–")
SENTENCES = 40


class Unseen(Study):
    """One cell for each language; English first, as the measure of the others."""

    name: ClassVar[str] = "unseen"
    question: ClassVar[str] = "Do languages that the encoder has not seen come through, and when?"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.text = self._parallel()
        self.count = setting.sentences or (4 if setting.quick else SENTENCES)

    def _parallel(self) -> Parallel:
        """Return the text with our codes: `sib200` in a folder of data sets has the unseen languages."""
        inner = self.setting.data / "sib200" if self.setting.data is not None else None
        found = read_parallel(inner) if inner is not None and inner.is_dir() else self.setting.parallel()
        codes = {our_code(language.split("_")[0]): language for language in found.sources}
        return Parallel(
            found.name,
            {code: found.sources[name] for code, name in codes.items()},
            {code: found.english[name] for code, name in codes.items()},
        )

    @cached_property
    def seen(self) -> frozenset[str]:
        """Languages of the encoder's pretraining; raises DataError where they are not known."""
        encoder = read_config(run_folder(self.setting.run)).encoder.name
        found = pretraining(encoder)
        if found is None:
            raise DataError(f"it is not known which languages {encoder} was pretrained on: nothing can be compared.")
        return found[0]

    def cells(self) -> list[str]:
        """Return English, the unseen languages, then the seen ones; raises DataError where none is unseen."""
        # a code that we have no name for may be another one for a language of the list
        there = [language for language in self.text.sources if language in LANGUAGES and language != PIVOT]
        unseen = [language for language in there if language not in self.seen]
        if not unseen:
            raise DataError(
                f"the encoder of {run_name(self.setting)} has seen all languages of {self.text.name}: name with "
                "--data a folder that has others, such as sib200 (Haitian Creole, Quechua, Yoruba)."
            )
        seen = [language for language in SEEN if language in there and language in self.seen]
        return [PIVOT, *unseen[: 1 if self.setting.quick else None], *seen[: 2 if self.setting.quick else None]]

    @cached_property
    def generator(self) -> BridgedGenerator:
        """The run that is looked at."""
        return load(self.setting.run, routing="off", dtype=self.setting.dtype)

    def measure(self, cell: str) -> Cell:
        """Return transfer, tokenisation and neutrality of one language."""
        if cell == PIVOT:
            pivot = compare(self.generator, *self._sentences(PIVOT))
            return {name: [round(float(x), 4) for x in values] for name, values in vars(pivot).items()}
        texts, english = self._sentences(cell)
        found, pivot = compare(self.generator, texts, english), self._pivot
        layer = layer_read(self.generator)
        near = alignment(encoder_layers(self.generator, texts)[layer], encoder_layers(self.generator, english)[layer])
        own, reference = tokenisation(self.generator, texts), tokenisation(self.generator, english)
        return {
            "seen": cell in self.seen,
            "ratio": round(found.gain / pivot.gain, 4),
            "ci95": ratio_interval(found, pivot),
            "pieces": round(own.per_sentence / reference.per_sentence, 4),
            "unknown": round(own.unknown, 4),
            **{name: round(value, 4) for name, value in vars(near).items()},
        }

    @cached_property
    def _pivot(self) -> Comparison:
        return compare(self.generator, *self._sentences(PIVOT))

    def _sentences(self, language: str) -> tuple[list[str], list[str]]:
        if language == PIVOT:
            english = self.text.pivot_sample(self.count)
            return english, english
        return self.text.sources[language][: self.count], self.text.references(language)[: self.count]

    def page(self, cells: Mapping[str, Cell]) -> Page:
        """Table all languages, unseen ones first, and compare the two groups."""
        rows = {language: cell for language, cell in cells.items() if language != PIVOT}
        lines = [
            "| language | family | script | relative seen | transfer ratio | 95% | pieces | CKA | retrieval | apart |",
            "|" + "---|" * 10,
        ]
        for language, row in rows.items():
            family, kin = KIN.get(language, UNKNOWN)
            kin = {"": "none"}.get(kin, kin if kin in UNKNOWN else label(kin))
            lines.append(
                f"| {label(language)}{'' if row['seen'] else ' (unseen)'} | {family} | {script_of(language)} | {kin} | "
                f"{row['ratio']:.2f} | {row['ci95'][0]:.2f} to {row['ci95'][1]:.2f} | {row['pieces']:.2f} | "
                f"{row['cka']:.2f} | {row['centred']:.2f} | {row['apart']:.2f} |"
            )
        return Page(
            method=(
                f"{self.count} sentences of `{self.text.name}` in each language, run `{run_name(self.setting)}`. "
                "Unseen: not in the list of the encoder's pretraining. Transfer ratio as in the task `transfer`; "
                "pieces: encoder tokens per sentence over those of its English translation; CKA, retrieval (means "
                "taken away) and distance of the means at the layer that the bridge reads."
            ),
            result="\n".join([*lines, "", _groups(rows)]),
            interval="Bootstrap 95% over sentences; for group means over languages.",
            limits=(
                "Few unseen languages, and 'unseen' is by the published list: loan words, names and neighbours in the "
                "web text reach the encoder anyway. Relatives are the nearest of those in the data. The embedded "
                "bridge was trained on short sentences; these may be long."
            ),
            figures={"unseen": (_drawn(rows), "Transfer ratio with its 95% interval; unseen languages are marked *.")},
        )


def _groups(rows: Mapping[str, Cell]) -> str:
    groups: dict[str, list[float]] = {}
    for language, row in rows.items():
        kin = KIN.get(language, UNKNOWN)[1]
        beside = {"–": "", "": ", without a relative that was seen"}.get(kin, ", with a relative that was seen")
        name = f"{'seen' if row['seen'] else 'unseen'}{', little' if row['seen'] and kin != '–' else ''}{beside}"
        groups.setdefault(name, []).append(row["ratio"])
    lines = ["| group | languages | mean transfer ratio | 95% |", "|---|---|---|---|"]
    for name, ratios in sorted(groups.items()):
        values = np.array(ratios)
        low, high = interval(lambda chosen, v=values: float(v[chosen].mean()), len(values))  # type: ignore[misc]
        ends = f"{low:.2f} to {high:.2f}" if len(values) > 2 else "too few"
        lines.append(f"| {name} | {len(values)} | {values.mean():.2f} | {ends} |")
    return "\n".join(lines)


def _drawn(rows: Mapping[str, Any]) -> Figure:
    order = sorted(rows, key=lambda language: (rows[language]["seen"], -rows[language]["ratio"]))
    figure, (axes,) = sheet(width=5.2, height=1.2 + 0.25 * len(order))
    shown = {
        label(language) + ("" if rows[language]["seen"] else " *"): (rows[language]["ratio"], *rows[language]["ci95"])
        for language in order
    }
    bars(axes, shown, title="What comes through", x="transfer ratio")
    return figure
