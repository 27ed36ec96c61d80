"""Parallel text: sentences in many languages with their English references. Three layouts, one shape."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from langbridge.data.examples import assets
from langbridge.errors import DataError
from langbridge.languages import PIVOT, code_of


@dataclass(frozen=True)
class Parallel:
    """Sentences by language; the English references of a language are aligned with its sentences."""

    name: str
    sources: dict[str, list[str]]
    english: dict[str, list[str]]

    def references(self, language: str) -> list[str]:
        """Return the English references of a language's sentences."""
        return self.english[language]

    def choose(self, languages: Sequence[str] = (), limit: int | None = None) -> "Parallel":
        """Keep some languages (all when none is named) and their first `limit` sentences; raises DataError."""
        if limit is not None and limit < 2:
            raise DataError(f"--limit {limit}: the mismatch control needs at least 2 sentences.")
        known = [language for language in self.sources if language != PIVOT]
        chosen = [code_of(language, known) for language in languages if language not in (PIVOT, "en")] or known
        return Parallel(
            self.name,
            {language: self.sources[language][:limit] for language in chosen},
            {language: self.english[language][:limit] for language in chosen},
        )

    def pivot_sample(self, limit: int | None) -> list[str]:
        """Return different English references, taken in turn from all languages: the sources of English itself."""
        size = limit or max(map(len, self.english.values()))
        columns = [self.english[language] for language in self.english]
        in_turn = (column[i] for i in range(size) for column in columns if i < len(column))
        return list(dict.fromkeys(in_turn))[:size]


@cache
def sanity_set() -> Parallel:
    """Return the package's own small set (a sanity set, not a benchmark), English included."""
    folder = assets() / "sanity" / "sentences"
    sources = {path.stem: _lines(path) for path in sorted(folder.glob("*.txt"))}
    return Parallel("sanity", sources, dict.fromkeys(sources, sources[PIVOT]))


def read_parallel(folder: Path | None) -> Parallel:
    """Read parallel text; None is the package's sanity set.

    Layouts: `<l>-eng.<l>` beside `<l>-eng.eng`, line-aligned; or `<l>_<Script>/test.tsv` with the columns `index_id`
    and `text`, aligned by `index_id`. Raises DataError when neither is found or lines do not match.
    """
    if folder is None:
        return sanity_set()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of parallel text.")
    aligned = sorted(folder.glob(f"*-{PIVOT}.{PIVOT}"))
    indexed = sorted(folder.glob("*_*/test.tsv"))
    if aligned:
        return _line_aligned(folder, aligned)
    if indexed:
        return _by_index(folder, indexed)
    raise DataError(f"{folder} holds neither <l>-{PIVOT}.{PIVOT} files nor <l>_<Script>/test.tsv files.")


def _line_aligned(folder: Path, references: Sequence[Path]) -> Parallel:
    sources, english = {}, {}
    for reference in references:
        language = reference.name.split("-")[0]
        source = folder / f"{language}-{PIVOT}.{language}"
        sources[language], english[language] = _lines(source), _lines(reference)
        if len(sources[language]) != len(english[language]):
            counts = f"{len(sources[language])} and {len(english[language])}"
            raise DataError(f"{source} and {reference} have {counts} lines; they must match line by line.")
    return Parallel(folder.name, sources, english)


def _by_index(folder: Path, files: Sequence[Path]) -> Parallel:
    texts = {}
    names = [path.parent.name for path in files]
    for path, name in zip(files, names, strict=True):
        code, _, _ = name.partition("_")
        alone = sum(other.startswith(code + "_") for other in names) == 1
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        if not rows or not {"index_id", "text"} <= set(rows[0]):
            raise DataError(f"{path}: wanted tab-separated columns index_id and text.")
        texts[code if alone else name] = {row["index_id"]: row["text"] for row in rows}
    if PIVOT not in texts:
        raise DataError(f"{folder} has no English ({PIVOT}_Latn/test.tsv) to compare with.")
    pivot = texts.pop(PIVOT)
    shared = {language: [i for i in rows if i in pivot] for language, rows in texts.items()}
    return Parallel(
        folder.name,
        {language: [texts[language][i] for i in ids] for language, ids in shared.items()},
        {language: [pivot[i] for i in ids] for language, ids in shared.items()},
    )


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    if empty := [number for number, line in enumerate(lines, start=1) if not line.strip()]:
        raise DataError(f"{path}, line {empty[0]}: empty; parallel text needs a sentence on each line.")
    return lines
