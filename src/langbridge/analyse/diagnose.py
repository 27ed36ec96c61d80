"""Why does this run, or this language of it, do badly? Signs in the order of the path: text, encoder, bridge, LM."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from langbridge.analyse.language_signs import language_signs, overview
from langbridge.analyse.run_signs import facts_signs, run_signs
from langbridge.analyse.verdict import Finding, judged
from langbridge.data.parallel import sanity_set
from langbridge.errors import DataError
from langbridge.evaluate.result import Result, read_results
from langbridge.generate import BridgedGenerator
from langbridge.languages import PIVOT, any_code, code_of, name_of

GUESSED = {"bbh": 0.371, "sib200": 51 / 204, "xcopa": 0.5}
"""Accuracy of always giving the commonest right answer on the whole test split, where a task has choices; choosing at
random is never better there. A result that was recorded with its own share (`commonest`) is held against that."""
Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Sentences of the language in question; `language` is empty when the run as a whole is."""

    language: str = ""
    texts: tuple[str, ...] = ()
    english: tuple[str, ...] = ()
    """Their translations, where they are known."""
    limit: int = 24

    @classmethod
    def read(cls, language: str | None, text: Path | None, english: Path | None, limit: int) -> "Lines":
        """Read sentences from files, or those of the sanity set; raises DataError.

        `language`: its code; None: the name of the file `text` is one, and without it the whole run is looked at.
        """
        if english is not None and text is None:
            raise DataError("--english holds translations of --text: name that file too.")
        if text is None:
            if language is None:
                return cls(limit=limit)
            known = sanity_set()
            code = _sanity_code(language)
            return cls(
                language=code,
                texts=tuple(known.sources[code][:limit]),
                english=tuple(known.references(code)[:limit]),
                limit=limit,
            )
        texts = _lines(text)
        translations = _lines(english) if english is not None else []
        if translations and len(texts) != len(translations):
            raise DataError(f"{text} has {len(texts)} lines and {english} {len(translations)}; they must match.")
        return cls(
            language=any_code(language) if language else _named_by(text),
            texts=tuple(texts[:limit]),
            english=tuple(translations[:limit]),
            limit=limit,
        )


def examine(
    generator: BridgedGenerator, run: str, lines: Lines, results: Sequence[Path], *, progress: Note = lambda what: None
) -> list[Finding]:
    """Look at the run in English, then at a language, or at all of the sanity set, then at recorded results.

    Raises DataError where `results` hold nothing of the language.
    """
    read = read_results(results)
    recorded = [finding for result in read for finding in near_random(result, run, lines.language)]
    if lines.language and results and not recorded:
        known = sorted({language for result in read for language in result["languages"]})
        raise DataError(
            f"--results hold nothing of {lines.language}, only of {' '.join(known)}: evaluate it, or leave them out."
        )
    progress("looking at the run in English")
    findings = run_signs(generator, run, sanity_set().sources[PIVOT][: lines.limit])
    findings += facts_signs(generator)
    if lines.language:
        progress(f"looking at {name_of(lines.language)}")
        findings += language_signs(generator, lines.language, lines.texts, lines.english)
    else:
        findings += overview(generator, lines.limit, progress)
    return findings + recorded


def near_random(result: Result, run: str, asked: str = "") -> list[Finding]:
    """Return a finding for each language of a recorded result: does its interval reach down to guessing?

    `asked`: only that language. `run` is what the advice names.
    """
    findings = []
    for name, row in result["languages"].items():
        language = any_code(name)
        if asked and language != asked:
            continue
        sign, value, low, floor = _recorded(result, row)
        findings.append(
            judged(
                sign=f"recorded {sign}",
                about=name,
                figure=value,
                wanted=f"interval above guessing ({floor:.2f})",
                bad=low <= floor,
                trouble="scores are near random",
                advice=_next(run, language, asked),
            )
        )
    return findings


def _recorded(result: Result, row: Result) -> tuple[str, float, float, float]:
    """Return (sign, value, low end of its interval, what guessing reaches) of a language's row."""
    task = result["task"]
    if task == "transfer":
        return "transfer ratio", row["transfer_ratio"], row["ci95"][0], 0.0
    if task == "facts":
        return task, row["bridged"], row["ci95"][0], 0.0
    figure = row["accuracy"]["bridge"][result["rules"][0]]
    floor = row.get("commonest", GUESSED[task]) if task in GUESSED else 0.0
    return task, figure["value"], figure["ci95"][0], floor


def _next(run: str, language: str, asked: str) -> str:
    """Return what to look at next: a command that works, or signs that are already there."""
    if asked:
        return "See whether the signs above are well."
    if language == PIVOT:
        return "See whether the signs of the run are well."
    command = f"langbridge diagnose {shlex.quote(run)} --language {language}"
    if language in sanity_set().sources:
        return f"Ask what else is wrong: `{command}`."
    return f"Ask what else is wrong, with sentences of it in a file, one a line: `{command} --text {language}.txt`."


def _sanity_code(language: str) -> str:
    code, known = any_code(language), sorted(code for code in sanity_set().sources if code != PIVOT)
    try:
        return code_of(code, known)
    except DataError as error:
        raise DataError(
            f"the sanity set has no {language}: give its sentences with --text FILE, one a line, and their English "
            f"with --english FILE where you have it. It has {' '.join(known)}."
        ) from error


def _named_by(text: Path) -> str:
    try:
        return any_code(text.stem)
    except DataError as error:
        raise DataError(f"{text} does not name its language: give --language. {error}") from error


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    if empty := [number for number, line in enumerate(lines, start=1) if not line]:
        raise DataError(f"{path}, line {empty[0]}: empty; wanted a sentence on each line.")
    if len(lines) < 4:
        raise DataError(f"{path} has {len(lines)} lines; at least 4 sentences are needed, better 20.")
    return lines
