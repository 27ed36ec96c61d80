"""Study `told`: what the LM is told. The LM tokens nearest to the soft prompt of one sentence in ten languages."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from langbridge.analyse.figures import Figure, drawable, label, sheet
from langbridge.analyse.study import Cell, Page, Setting, Study
from langbridge.errors import DataError
from langbridge.evaluate.statistics import mean_interval
from langbridge.generate import BridgedGenerator, Heard, Sampling
from langbridge.languages import PIVOT
from langbridge.prompt import REPEAT
from langbridge.routing import load

LANGUAGES = (PIVOT, "spa", "deu", "rus", "swh", "fin", "tur", "kat", "tel", "jpn")
"""Scripts and families far apart; English first."""
SHOWN = 3
"""Nearest tokens that are kept."""
DRAWN = 14
"""Soft-prompt vectors that a row of the figure has."""
LETTERS = 10
"""Letters that fit into a field of it."""
SENTENCE = 2
"""Number of the sentence in the figure, from 0."""


class Told(Study):
    """One cell for each language: every sentence, its nearest tokens, and what the LM says when asked to repeat."""

    name: ClassVar[str] = "told"
    question: ClassVar[str] = "What is the LM told? Nearest LM tokens to soft prompts of one sentence in ten languages."

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.text = setting.parallel()
        known = [code for code in LANGUAGES if code == PIVOT or code in self.text.sources]
        if len(known) < 2:
            raise DataError(f"{self.text.name} has none of the languages {', '.join(LANGUAGES[1:])}.")
        self.languages = known[:3] if setting.quick else known
        self.count = setting.sentences or (4 if setting.quick else 20)

    def cells(self) -> list[str]:
        """Return the languages."""
        return self.languages

    @cached_property
    def generator(self) -> BridgedGenerator:
        """The run that is looked at."""
        return load(self.setting.run, routing="off", dtype=self.setting.dtype)

    def measure(self, cell: str) -> Cell:
        """Explain every sentence of a language."""
        heard = [self.generator.explain(source, SHOWN) for source in self._sources(cell)]
        said = self.generator.generate(
            self._sources(cell)[:8], Sampling(max_new_tokens=32, stop=("\n",)), instruction=REPEAT
        )
        rows = [_row(source, found) for source, found in zip(self._sources(cell), heard, strict=True)]
        references = self._references(cell)
        shares = [self._overlap(found, text) for found, text in zip(heard, references, strict=True)]
        others = [*references[1:], references[0]]
        chance = [self._overlap(found, text) for found, text in zip(heard, others, strict=True)]
        return {"sentences": rows, "references": references, "said": said, "named": shares, "chance": chance}

    def _sources(self, language: str) -> list[str]:
        source = self.text.pivot_sample(self.count) if language == PIVOT else self.text.sources[language]
        return source[: self.count]

    def _references(self, language: str) -> list[str]:
        return self._sources(PIVOT) if language == PIVOT else self.text.references(language)[: self.count]

    def _overlap(self, heard: list[Heard], english: str) -> float:
        """Return the share of the English sentence's LM tokens, blanks and case aside, among the nearest ones."""
        wanted = {_plain(self.generator.tokenizer.decode([i])) for i in self.generator.collate.text_ids(english)}
        found = {_plain(token) for one in heard for token, _ in one.nearest}
        wanted.discard("")
        return len(wanted & found) / max(1, len(wanted))

    def page(self, cells: Mapping[str, Cell]) -> Page:
        """Draw one sentence in all languages; table the shares over all sentences."""
        number = min(SENTENCE, self.count - 1)
        lines = [
            "| language | English tokens named | 95% | of another sentence | cosine | the LM, asked to repeat |",
            "|" + "---|" * 6,
        ]
        for language, cell in cells.items():
            low, high = mean_interval(np.array(cell["named"]))
            cosines = [row["nearest"][0][1] for part in cell["sentences"] for row in part["heard"]]
            said = cell["said"][number].replace("|", "/") if number < len(cell["said"]) else ""
            lines.append(
                f"| {label(language)} | {np.mean(cell['named']):.0%} | {low:.0%} to {high:.0%} | "
                f"{np.mean(cell['chance']):.0%} | {np.mean(cosines):.2f} | {said} |"
            )
        examples = [f"\n{cells[next(iter(cells))]['references'][number]}\n"]
        for language, cell in cells.items():
            row = cell["sentences"][number]
            told = " · ".join(f"{part['piece']} → {_shown(part['nearest'][0][0])}" for part in row["heard"])
            examples.append(f"- **{label(language)}** {row['source']}  \n  {told}")
        return Page(
            method=(
                f"{self.count} sentences of `{self.text.name}` in {len(self.languages)} languages. For each "
                f"soft-prompt vector the {SHOWN} LM word embeddings of highest cosine. 'Named': the share of the LM's "
                "tokens of the English sentence that are among them, in any place; of another "
                "sentence: chance. What the LM says is asked of the sentence that is shown below."
            ),
            result="\n".join([*lines, *examples]),
            interval="Bootstrap over sentences, 95%.",
            limits=(
                "Nearness to single word embeddings is a reader's aid: the LM reads directions between words too, and "
                "a low cosine does not mean that nothing is said. English tokens are counted literally, so a synonym "
                "counts as a miss. Other languages have other word orders and piece counts."
            ),
            figures={
                "told": (
                    drawn(cells, number),
                    "Large: the LM token nearest to each vector. Small: the encoder's piece, where the figure's "
                    "font has its script. Darker: higher cosine.",
                )
            },
        )


def drawn(cells: Mapping[str, Cell], number: int) -> Figure:
    """Draw the nearest token to each soft-prompt vector of one sentence: rows are languages, columns positions."""
    whole = {language: cell["sentences"][number]["heard"] for language, cell in cells.items()}
    rows = {
        language: [part for part in heard if not _special(part["piece"])][:DRAWN] for language, heard in whole.items()
    }
    width = max(map(len, rows.values()))
    figure, (axes,) = sheet(width=1.6 + 0.86 * width, height=0.9 + 0.52 * len(rows))
    cosines = np.full((len(rows), width), np.nan)
    for up, heard in enumerate(rows.values()):
        for across, part in enumerate(heard):
            cosines[up, across] = part["nearest"][0][1]
    highest = float(np.nanmax(cosines))
    picture = axes.imshow(cosines, cmap="Blues", vmin=0, vmax=highest, aspect="auto")
    for up, heard in enumerate(rows.values()):
        for across, part in enumerate(heard):
            dark = cosines[up, across] > 0.6 * highest
            colour = "white" if dark else "#111111"
            axes.text(across, up - 0.12, _fit(part["nearest"][0][0]), ha="center", va="center", color=colour, size=8.5)
            piece = part["piece"].replace("▁", "")
            if piece and drawable(piece):
                soft = "#e4e4e4" if dark else "#4a4a4a"
                axes.text(across, up + 0.28, piece[:9], ha="center", va="center", color=soft, size=6.5)
    axes.set_yticks(range(len(rows)), [label(language) for language in rows])
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(f"What the LM is told for “{next(iter(cells.values()))['references'][number]}”", fontsize=10)
    figure.colorbar(picture, ax=axes, label="cosine", fraction=0.03, pad=0.01)
    return figure


def _row(source: str, heard: list[Heard]) -> dict[str, Any]:
    return {
        "source": source,
        "heard": [{"piece": one.encoder_token, "nearest": [list(pair) for pair in one.nearest]} for one in heard],
    }


def _plain(token: str) -> str:
    return token.strip().lower().strip(".,!?'\"")


def _shown(token: str) -> str:
    return f"`{token.strip() or repr(token)[1:-1]}`".replace("|", "/")


def _fit(token: str) -> str:
    text = token.strip() or repr(token)[1:-1]
    return (text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…") if drawable(text) else "·"


def _special(piece: str) -> bool:
    """Tell whether a piece is the encoder's own beginning or end, or the boundary, rather than text."""
    return len(piece) > 2 and piece[0] + piece[-1] in ("<>", "[]", "()")
