"""Which language a text is in, by py3langid."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from langbridge.languages import LANGUAGES


@dataclass(frozen=True)
class Guess:
    """The likeliest language of a text, and how likely it is."""

    language: str
    """Two-letter code, as py3langid has it."""
    probability: float


def identify(text: str) -> Guess:
    """Return the likeliest of all languages that py3langid knows."""
    language, probability = _identifier().classify(text)
    return Guess(str(language), float(probability))


def probability_of(text: str, languages: Iterable[str]) -> float:
    """Return the probability that a text is in one of `languages` (ISO 639-3 codes of ours, or two letters)."""
    wanted = {LANGUAGES[code].short if code in LANGUAGES else code for code in languages}
    return float(sum(probability for language, probability in _identifier().rank(text) if language in wanted))


def known() -> frozenset[str]:
    """Return the codes that can be told apart, ours and two-letter ones."""
    short = {str(language) for language in _identifier().nb_classes}
    return frozenset(short | {code for code, language in LANGUAGES.items() if language.short in short})


@functools.cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
