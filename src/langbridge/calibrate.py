"""The threshold of `by_likelihood`, from English and the development languages alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from langbridge.data import Example
from langbridge.data.parallel import sanity_set
from langbridge.generate import BridgedGenerator, PlainGenerator
from langbridge.languages import DEVELOPMENT, PIVOT
from langbridge.prompt import REPEAT
from langbridge.routing import effort

ENGLISH_KEPT = 0.99
"""Least share of English prompts that the plain LM must read."""


@dataclass(frozen=True)
class Measured:
    """One language on the calibration sentences."""

    effort: list[float]
    """Nats per encoder token that the LM alone needs for each sentence."""
    gain: list[float]
    """What reading it itself is worth to the LM, against the bridge: nats per token of the English reference."""


@dataclass(frozen=True)
class Threshold:
    """What was found."""

    value: float
    plain: dict[str, float]
    """Share of each language's sentences that the plain LM would read."""


def measure(
    bridged: BridgedGenerator,
    *,
    limit: int,
    progress: Callable[[str, int, int], None] = lambda language, done, total: None,
) -> dict[str, Measured]:
    """Measure English and the development languages on the first sentences of the sanity set."""
    plain, data = PlainGenerator(bridged.model, batch_size=bridged.batch_size), sanity_set()
    found = {}
    languages = (PIVOT, *DEVELOPMENT)
    for number, language in enumerate(languages):
        progress(language, number, len(languages))
        sources, references = data.sources[language][:limit], data.references(language)[:limit]
        examples = [
            Example(source=source, target=reference, instruction=REPEAT)
            for source, reference in zip(sources, references, strict=True)
        ]
        ours, theirs = plain.scores(examples), bridged.scores(examples)
        gain = [(a.log_likelihood - b.log_likelihood) / a.tokens for a, b in zip(ours, theirs, strict=True)]
        found[language] = Measured(effort(plain, sources), gain)
    progress("", len(languages), len(languages))
    return found


def threshold(found: dict[str, Measured]) -> Threshold:
    """Return the threshold under which prompts gain most in all, with nearly all of English under it.

    It lies half-way between the last sentence under it and the first above.
    """
    pairs = sorted(pair for part in found.values() for pair in zip(part.effort, part.gain, strict=True))
    efforts, gains = (np.array(column) for column in zip(*pairs, strict=True))
    english = float(np.quantile(found[PIVOT].effort, ENGLISH_KEPT, method="higher"))
    first = int(np.searchsorted(efforts, english, side="right"))  # at least so many are under it
    totals = np.cumsum(gains)
    last = first - 1 + int(np.argmax(totals[first - 1 :]))
    above = efforts[last + 1] if last + 1 < len(efforts) else 2 * efforts[last]
    value = round(float((efforts[last] + above) / 2), 3)
    return Threshold(value, {language: _share(part.effort, value) for language, part in found.items()})


def _share(efforts: Sequence[float], value: float) -> float:
    return round(float(np.mean([effort <= value for effort in efforts])), 4)
