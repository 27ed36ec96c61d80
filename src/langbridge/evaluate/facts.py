"""Task `facts`: share of short factual questions answered right, by the bridge and by the plain LM.

An answer is right when its first 24 tokens contain an accepted answer as whole words. Accepted answers are English
and, for the plain LM's sake, the same name in other languages that write it with Latin letters.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from langbridge.data.examples import assets
from langbridge.errors import DataError
from langbridge.evaluate.rows import Rows
from langbridge.evaluate.statistics import mean_interval, paired_p_value
from langbridge.generate import Sampling, TextGenerator
from langbridge.languages import PIVOT, code_of, script_of

SAMPLING = Sampling(max_new_tokens=24)


def read_facts(languages: Sequence[str] = (), limit: int | None = None) -> tuple[dict[str, list[str]], list[list[str]]]:
    """Return (questions by language, English first; accepted answers); raises DataError for an unknown language."""
    folder = assets() / "sanity" / "facts"
    known = sorted(path.stem for path in folder.glob("*.txt"))
    if limit is not None and limit < 1:
        raise DataError(f"--limit {limit}: at least one question is needed.")
    chosen = [code_of(language, known) for language in languages] or known
    questions = {
        language: (folder / f"{language}.txt").read_text(encoding="utf-8").splitlines()[:limit]
        for language in dict.fromkeys([PIVOT, *chosen])
    }
    accepted: list[list[str]] = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    return questions, accepted[:limit]


def is_right(output: str, accepted: Sequence[str]) -> bool:
    """Grade one output."""
    return any(re.search(rf"(?<!\w){re.escape(answer.lower())}(?!\w)", output.lower()) for answer in accepted)


def evaluate_facts(
    bridged: TextGenerator,
    plain: TextGenerator,
    languages: Sequence[str] = (),
    *,
    limit: int | None = None,
    rows: Rows | None = None,
    progress: Callable[[str, int, int], None] = lambda language, done, total: None,
) -> dict[str, Any]:
    """Return the task's result: accuracy of both per language, intervals, p value, and every question with answers."""
    questions, accepted = read_facts(languages, limit)
    rows = Rows() if rows is None else rows
    for number, (language, asked) in enumerate(questions.items()):
        progress(language, number, len(questions))
        if language in rows:
            continue
        outputs = {"bridged": bridged.generate(asked, SAMPLING), "plain": plain.generate(asked, SAMPLING)}
        right = {
            name: np.array([float(is_right(o, a)) for o, a in zip(answers, accepted, strict=True)])
            for name, answers in outputs.items()
        }
        rows[language] = {
            "questions": len(asked),
            "bridged": round(float(right["bridged"].mean()), 4),
            "ci95": mean_interval(right["bridged"]),
            "plain": round(float(right["plain"].mean()), 4),
            "plain_ci95": mean_interval(right["plain"]),
            "p_value": round(paired_p_value(right["bridged"], right["plain"]), 4),
            "items": [
                {"question": q, "bridged": b, "bridged_right": bool(br), "plain": p, "plain_right": bool(pr)}
                for q, b, br, p, pr in zip(
                    asked, outputs["bridged"], right["bridged"], outputs["plain"], right["plain"], strict=True
                )
            ],
        }
    progress("", len(questions), len(questions))
    return {"task": "facts", "data": "sanity", "languages": dict(rows), **_summary(rows)}


def _summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    others = {language: row for language, row in rows.items() if language != PIVOT}
    foreign = {language: row for language, row in others.items() if script_of(language) != "Latn"}

    def mean(part: dict[str, dict[str, Any]], name: str) -> float | None:
        return round(float(np.mean([row[name] for row in part.values()])), 4) if part else None

    return {
        "plain_english": rows[PIVOT]["plain"],
        "macro_average": {"bridged": mean(others, "bridged"), "plain": mean(others, "plain")},
        "other_scripts": {"bridged": mean(foreign, "bridged"), "plain": mean(foreign, "plain")},
    }
