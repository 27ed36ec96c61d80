"""Signs of one language: its text, its place beside English in the encoder, what comes through to the LM."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from langbridge.analyse.alignment import alignment, unrelated_distance
from langbridge.analyse.representation import Tokenisation, encoder_layers, layer_read, tokenisation
from langbridge.analyse.verdict import Finding, judged
from langbridge.data.parallel import sanity_set
from langbridge.evaluate.resources import pretraining
from langbridge.evaluate.statistics import interval
from langbridge.generate import BridgedGenerator
from langbridge.languages import LANGUAGES, PIVOT, name_of
from langbridge.transfer import Comparison, compare

UNKNOWN = 0.02
"""Share of pieces that stand for text the tokenizer does not know."""
PIECES = {"sentence": 1.45, "word": 2.0, "character": 3.0}
"""Pieces per unit over those of English; languages seen much: 0.8 to 1.2 per sentence, up to 1.8 per word; Quechua 1.5
and 2.3, Yoruba 2.3 and 2.1."""
UNSPACED = 8.0
"""Characters per blank above which words are not what blanks set apart."""
APART = 0.7
"""Distance of the mean state from English, in spreads of English sentences; languages seen much: 0.3 to 0.6, Quechua
and Yoruba 0.7 to 0.8, an invented script 1.5."""
APART_UNRELATED = 1.2
"""The same from English that is not its translation, where the subject counts too: English news are 0.7 and sums 0.8 to
1.1 away, Swahili news 0.8, Quechua and Yoruba ones 1.0, an invented script 1.5 to 1.7; only the last can be told."""
HINT = "weak hint: not its translations"
"""Said of a figure that other English was compared with."""
LIKE = 0.45
"""CKA with the English translations; languages seen much: 0.6 to 0.8, Quechua 0.4, an invented script 0.15."""
RETRIEVED = 0.5
"""Share of sentences that find their translation once each language's mean is taken away."""
RATIO = 0.3
"""Transfer ratio below which too little comes through to answer by."""


def language_signs(
    generator: BridgedGenerator, language: str, texts: Sequence[str], english: Sequence[str]
) -> list[Finding]:
    """Look at a language's sentences; with their English translations, line by line, more can be told.

    Without them (`english` is empty) the sanity set's English stands in, for what strangers can be compared by.
    """
    pivot = english or sanity_set().sources[PIVOT]
    findings = [
        _pretrained(generator, language),
        *_tokens(generator, language, texts, pivot, translated=bool(english)),
    ]
    if not english:
        return [*findings, _unrelated(generator, language, texts, pivot)]
    through, reference = compare(generator, texts, english), compare(generator, english, english)
    findings += _states(generator, language, texts, english)
    return [*findings, _two_ways(language, through), _ratio(language, through, reference)]


def overview(
    generator: BridgedGenerator, limit: int, progress: Callable[[str], None] = lambda what: None
) -> list[Finding]:
    """Look at what comes through from every language of the sanity set."""
    known = sanity_set()
    pivot = known.sources[PIVOT][:limit]
    reference = compare(generator, pivot, pivot)
    findings = []
    for language, texts in known.sources.items():
        if language == PIVOT:
            continue
        progress(f"looking at {name_of(language)}")
        through = compare(generator, texts[:limit], pivot)
        two, ratio = _two_ways(language, through), _ratio(language, through, reference)
        findings.append(two if not two.ok else ratio)
    return findings


def _pretrained(generator: BridgedGenerator, language: str) -> Finding:
    sign, encoder = "seen by the encoder in pretraining (1 = yes)", generator.model.recipe.encoder.name
    seen = pretraining(encoder)
    if seen is None or language not in LANGUAGES:
        missing = f"list for {encoder}" if seen is None else f"language {language!r}"
        return Finding(sign=sign, about=language, figure=None, wanted=f"1; our tables have no {missing}")
    unseen = language not in seen[0]
    return judged(
        sign=sign,
        about=language,
        figure=0.0 if unseen else 1.0,
        wanted="1",
        bad=unseen,
        trouble="the encoder has not seen this language",
        advice=f"Choose an encoder that has ({seen[1]}).",
    )


def _tokens(
    generator: BridgedGenerator, language: str, texts: Sequence[str], english: Sequence[str], *, translated: bool
) -> list[Finding]:
    own, pivot = tokenisation(generator, texts), tokenisation(generator, english)
    unit, figure = _fertility(own, pivot, texts, translated)
    return [
        judged(
            sign="unknown pieces, share",
            about=language,
            figure=own.unknown,
            wanted=f"at most {UNKNOWN}",
            bad=own.unknown > UNKNOWN,
            trouble="the encoder's tokenizer does not know this script",
            advice="What it does not know, no bridge can carry: transliterate, or choose another encoder.",
        ),
        judged(
            sign=f"encoder pieces per {unit}, over English" + ("" if translated else f" ({HINT})"),
            about=language,
            figure=figure,
            wanted=f"at most {PIECES[unit]}",
            bad=figure > PIECES[unit],
            trouble="words are cut into many pieces",
            advice="The encoder has seen little of it; data.cut_words trains the bridge on words in pieces.",
        ),
    ]


def _fertility(own: Tokenisation, pivot: Tokenisation, texts: Sequence[str], translated: bool) -> tuple[str, float]:
    """Return (unit, pieces per unit over those of English): sentences where they are translations, else words."""
    if translated:
        return "sentence", own.per_sentence / pivot.per_sentence
    letters, blanks = sum(map(len, texts)), sum(len(text.split()) for text in texts)
    if letters / max(1, blanks) > UNSPACED * 2:  # no blanks between words: characters are what is left to count
        return "character", own.per_character / pivot.per_character
    return "word", own.per_word / pivot.per_word


def _states(generator: BridgedGenerator, language: str, texts: Sequence[str], english: Sequence[str]) -> list[Finding]:
    found = alignment(_read(generator, texts), _read(generator, english))
    return [
        judged(
            sign="distance of the mean state from English, in spreads",
            about=language,
            figure=found.apart,
            wanted=f"at most {APART}",
            bad=found.apart > APART,
            trouble="the encoder keeps this language apart from English",
            advice="Its states are not language-neutral: another layer (bridge.layers), or another encoder.",
        ),
        _like(language, found.cka),
        _found(language, found.centred, len(texts)),
    ]


def _unrelated(generator: BridgedGenerator, language: str, texts: Sequence[str], english: Sequence[str]) -> Finding:
    distance = unrelated_distance(_read(generator, texts), _read(generator, english))
    return judged(
        sign=f"distance of the mean state from English, in spreads ({HINT})",
        about=language,
        figure=distance,
        wanted=f"at most {APART_UNRELATED}",
        bad=distance > APART_UNRELATED,
        trouble="the encoder keeps these sentences apart from English ones",
        advice="The language or the subject may do that: give translations (--english) to know which.",
    )


def _like(language: str, cka: float) -> Finding:
    return judged(
        sign="likeness of the sentences' geometry to that of their translations (CKA)",
        about=language,
        figure=cka,
        wanted=f"at least {LIKE}",
        bad=not cka >= LIKE,
        trouble="the encoder understands this language poorly",
        advice="It tells its sentences apart by other things than English ones: another encoder.",
    )


def _found(language: str, centred: float, count: int) -> Finding:
    return judged(
        sign=f"sentences that find their translation among {count}, means taken away",
        about=language,
        figure=centred,
        wanted=f"at least {RETRIEVED}",
        bad=centred < RETRIEVED,
        trouble="the encoder does not understand this language",
        advice="Translations do not lie together, so no bridge trained on English can help: another encoder.",
    )


def _read(generator: BridgedGenerator, texts: Sequence[str]) -> Tensor:
    """Return pooled states of the layer that the bridge reads, the last of several: (sentences, width)."""
    return encoder_layers(generator, texts)[layer_read(generator)]


def _two_ways(language: str, through: Comparison) -> Finding:
    better = (through.matched < through.shifted).astype(np.float64)
    share, needed = float(better.mean()), _above_chance(len(better))
    return judged(
        sign="right sentence told from a wrong one by the LM",
        about=language,
        figure=share,
        wanted=f"at least {needed:.2f} (0.50 is guessing)",
        bad=share < needed,
        trouble="scores are near random: nothing comes through",
        advice="If English is well, the encoder is at fault; otherwise the bridge is.",
    )


def _above_chance(size: int) -> float:
    """Return the share of fair coins, out of `size`, that 97.5% of throws stay below."""
    chances = np.cumsum([math.comb(size, k) for k in range(size + 1)], dtype=np.float64) / 2.0**size
    return float(np.searchsorted(chances, 0.975) + 1) / size


def _ratio(language: str, through: Comparison, reference: Comparison) -> Finding:
    ratio = through.gain / reference.gain if reference.gain > 0.05 else 0.0
    low, high = interval(
        lambda rows: through.at(rows).gain / max(0.05, reference.gain),
        len(through.tokens),
    )
    return judged(
        sign=f"transfer ratio ({low:.2f} to {high:.2f})",
        about=language,
        figure=ratio,
        wanted=f"at least {RATIO}",
        bad=ratio < RATIO,
        trouble="little comes through",
        advice="Look at the signs above; with all of them well, train on more varied English (docs/diagnose.md).",
    )
