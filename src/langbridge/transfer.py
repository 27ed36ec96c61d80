"""The measure behind everything: what a sentence in another language is worth to the LM, in nats.

Used while training (validation) and by the task `transfer`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from langbridge.data import Example
from langbridge.generate import TextGenerator
from langbridge.prompt import REPEAT

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Per-sentence sums of one language; (sentences,) each."""

    matched: Numbers
    """Negative log-likelihood of each reference given its own source, nats, summed over tokens."""
    shifted: Numbers
    """The same given another sentence's source."""
    tokens: Numbers

    @property
    def nll(self) -> float:
        """Mean per token, nats."""
        return float(self.matched.sum() / self.tokens.sum())

    @property
    def mismatch(self) -> float:
        """Mean per token given the wrong source, nats."""
        return float(self.shifted.sum() / self.tokens.sum())

    @property
    def gain(self) -> float:
        """What the right source is worth: mismatch - nll, nats per token."""
        return self.mismatch - self.nll

    def at(self, rows: NDArray[np.int64]) -> "Comparison":
        """Return the comparison on some sentences only."""
        return Comparison(self.matched[rows], self.shifted[rows], self.tokens[rows])


def compare(generator: TextGenerator, sources: Sequence[str], references: Sequence[str]) -> Comparison:
    """Score every reference given its own source and given the next sentence's."""
    shifted = [*sources[1:], sources[0]]
    scores = generator.scores(
        [
            Example(source=source, target=reference, instruction=REPEAT)
            for part in (sources, shifted)
            for source, reference in zip(part, references, strict=True)
        ]
    )
    nll = np.array([-score.log_likelihood for score in scores]).reshape(2, -1)
    tokens = np.array([float(score.tokens) for score in scores[: len(sources)]])
    return Comparison(nll[0], nll[1], tokens)
