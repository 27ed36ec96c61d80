"""Task `transfer`: how much of a sentence in another language reaches the LM, measured on its English reference.

    transfer ratio of L = (mismatch_L - nll_L) / (mismatch_en - nll_en)

nll: mean negative log-likelihood per token of the English reference given the sentence in L, under the instruction to
repeat it. mismatch: the same with the sources shifted by one. 0 = nothing came through; 1 = as much as from English.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sacrebleu
from numpy.typing import NDArray

from langbridge.data.parallel import Parallel
from langbridge.evaluate.rows import Rows
from langbridge.evaluate.statistics import interval
from langbridge.generate import Sampling, TextGenerator
from langbridge.languages import PIVOT
from langbridge.prompt import REPEAT
from langbridge.transfer import Comparison, compare


def evaluate_transfer(
    generator: TextGenerator,
    data: Parallel,
    *,
    limit: int | None = None,
    render: int | None = None,
    rows: Rows | None = None,
    plain: TextGenerator | None = None,
    progress: Callable[[str, int, int], None] = lambda language, done, total: None,
) -> dict[str, Any]:
    """Return the task's result: per language nll, mismatch, transfer ratio with its 95% interval, and chrF.

    `render`: sentences per language whose greedy English rendering is compared by chrF (None: all, 0: none).
    `rows`: languages that are done already, and where to keep the others. `plain`: the LM alone, given the same text,
    is put beside, in the same unit: a share of what English is worth through the bridge.
    """
    rows = Rows() if rows is None else rows
    pivot_sentences = data.pivot_sample(limit)
    languages = list(data.sources)
    progress(PIVOT, 0, len(languages) + 1)
    pivot = compare(generator, pivot_sentences, pivot_sentences)
    for number, language in enumerate(languages, start=1):
        progress(language, number, len(languages) + 1)
        sources, references = data.sources[language], data.references(language)
        if language not in rows:
            rows[language] = {
                "sentences": len(sources),
                **_measured(generator, sources, references, pivot),
                **rendering(generator, sources[:render], references[:render]),
            }
        if plain is not None and "plain" not in rows[language]:
            rows[language] = {**rows[language], "plain": _measured(plain, sources, references, pivot)}
    progress("", len(languages) + 1, len(languages) + 1)
    ratios = [row["transfer_ratio"] for row in rows.values()]
    return {
        "task": "transfer",
        "data": data.name,
        "pivot": {
            "language": PIVOT,
            "sentences": len(pivot_sentences),
            "nll": round(pivot.nll, 4),
            "mismatch": round(pivot.mismatch, 4),
        },
        "languages": {language: rows[language] for language in languages},
        "median_transfer_ratio": round(float(np.median(ratios)), 4),
        "macro_average": {
            name: round(float(np.mean([row[name] for row in rows.values()])), 4)
            for name in ("nll", "mismatch", "transfer_ratio", "chrf")
            if all(name in row for row in rows.values())
        },
    }


def _measured(
    generator: TextGenerator, sources: Sequence[str], references: Sequence[str], pivot: Comparison
) -> dict[str, Any]:
    found = compare(generator, sources, references)
    return {
        "nll": round(found.nll, 4),
        "mismatch": round(found.mismatch, 4),
        "transfer_ratio": round(found.gain / pivot.gain, 4),
        "ci95": ratio_interval(found, pivot),
    }


def rendering(generator: TextGenerator, sources: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Return the chrF (0 to 100) of the greedy English renderings, and the first three of them."""
    if not sources:
        return {}
    outputs = generator.generate(sources, Sampling(max_new_tokens=48, stop=("\n",)), instruction=REPEAT)
    shown = [{"source": s, "output": o, "reference": r} for s, o, r in zip(sources, outputs, references, strict=True)]
    return {"chrf": round(sacrebleu.corpus_chrf(outputs, [list(references)]).score, 2), "examples": shown[:3]}


def ratio_interval(found: Comparison, pivot: Comparison) -> list[float]:
    """Return the bootstrap 95% interval of the transfer ratio over sentences, English ones resampled too."""
    rng = np.random.default_rng(1)
    size = len(pivot.tokens)

    def ratio(rows: NDArray[np.int64]) -> float:
        return found.at(rows).gain / pivot.at(rng.integers(0, size, size)).gain

    return interval(ratio, len(found.tokens))
