"""Study `encoder`: how large and how good must the encoder be? Layers cut off, weights made coarse, knowledge taken."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import ClassVar

from langbridge.analyse.encoders import coarse, cut, random, variant
from langbridge.analyse.figures import Figure, lines, sheet
from langbridge.analyse.grid import Grid, by_setting, macro, over_seeds
from langbridge.analyse.study import Cell
from langbridge.config import Recipe

DEPTHS, WIDTHS = (3, 6, 9, 12), (2, 3, 4)
ENGLISH = "embedded:minilm-l6-en"
LAST = ("bridge.layers=last",)


class EncoderSize(Grid):
    """The recipe's encoder cut to a part of its layers, re-quantised, English-only, random; equal budget."""

    name: ClassVar[str] = "encoder"
    question: ClassVar[str] = "Which size and which quality of the encoder does transfer need?"
    base: ClassVar[str] = "whole"
    settings: ClassVar[dict[str, tuple[str, ...]]] = {
        "whole": LAST,
        **{f"{depth} layers": LAST for depth in DEPTHS},
        **{f"{bits} bits": LAST for bits in WIDTHS},
        "English only": LAST,
        "random": LAST,
    }
    about: ClassVar[str] = (
        f"The encoder cut to its first {', '.join(map(str, DEPTHS))} layers; its weights rounded to "
        f"{', '.join(map(str, WIDTHS))} bits in blocks of 32; an English-only encoder; random weights."
    )
    limits: ClassVar[str] = (
        "Cut layers are not retrained, so that what is left is not the best encoder of that size; the whole one is "
        "4-bit already, and `4 bits` rounds it once more; the English-only encoder has half the layers."
    )

    def read_recipe(self, name: str, seed: int) -> Recipe:
        """Return the recipe of one cell with the encoder of its setting, made of the one that the recipe names."""
        recipe = super().read_recipe(name, seed)
        encoder = dataclasses.replace(recipe.encoder, name=self._encoder(name, recipe.encoder.name))
        return dataclasses.replace(recipe, encoder=encoder)

    def _encoder(self, name: str, source: str) -> str:
        """Return the name of a setting's encoder; one that is made of `source` is written first."""
        if name in ("whole", "English only"):
            return source if name == "whole" else ENGLISH
        number = int(name.split()[0]) if name != "random" else 0
        change = random if name == "random" else cut(number) if name.endswith("layers") else coarse(number)
        folder = self.setting.work / "encoders" / hashlib.sha256(source.encode()).hexdigest()[:12]
        return str(variant(source, change, folder / name.replace(" ", "-")).resolve())

    def figures(self, cells: Mapping[str, Cell]) -> dict[str, tuple[Figure, str]]:
        """Draw transfer against layers and against bits, beside the bars of all settings."""
        rows = by_setting(cells, self.settings)
        figure, axes = sheet(2, width=4.2, height=3.4)
        for one, (numbers, unit) in zip(axes, ((DEPTHS, "layers"), (WIDTHS, "bits")), strict=True):
            there = [number for number in numbers if f"{number} {unit}" in rows]
            means = {
                part: [over_seeds([macro(c[part]) for c in rows[f"{n} {unit}"].values()])[0] for n in there]
                for part in ("development", "test")
            }
            lines(one, {p: (there, ys) for p, ys in means.items()}, title="", x=unit, y="transfer ratio")
            one.set_xticks(there)
        return {**super().figures(cells), "size": (figure, "Mean transfer ratio by size and by coarseness.")}
