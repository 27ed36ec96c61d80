"""From verdicts to numbers: accuracies, averages and gaps, each with its interval, and comparisons with baselines."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langbridge.evaluate.journal import Record
from langbridge.evaluate.resources import groups
from langbridge.evaluate.run import Answered
from langbridge.evaluate.statistics import ROUNDS, Numbers, paired_p_value, wilson
from langbridge.evaluate.systems import BRIDGE, ORIGINAL
from langbridge.evaluate.task import Task
from langbridge.languages import PIVOT

SHOWN = 2
"""Right answers, and wrong ones, that a result keeps of each language for its readers."""
CUT = 400
"""Characters of a prompt or an answer that are kept for readers."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Verdicts:
    """1 = right, of one system by one rule: for each language the ids and (items,) verdicts."""

    ids: dict[str, list[str]]
    right: dict[str, Numbers]

    def mean(self, languages: Sequence[str]) -> float:
        """Return the unweighted mean over languages."""
        return float(np.mean([self.right[language].mean() for language in languages]))

    def means(self, languages: Sequence[str], draws: "Draws") -> Numbers:
        """Return the mean over languages in each bootstrap round: (rounds,)."""
        total = np.zeros(ROUNDS)
        for language in languages:
            total += self.right[language][draws.rows(self.ids[language])].mean(axis=1)
        return total / len(languages)

    def figure(self, languages: Sequence[str], draws: "Draws") -> Result:
        """Return the mean over languages with its interval: by bootstrap, or Wilson's where all verdicts agree."""
        if certain := self._agreed(languages):
            return _figure(*certain)
        return _figure(self.mean(languages), *np.percentile(self.means(languages, draws), [2.5, 97.5]))

    def gap(self, languages: Sequence[str], draws: "Draws") -> Result:
        """Return English minus the mean over languages; where all verdicts agree, by Newcombe's rule."""
        value = self.mean([PIVOT]) - self.mean(languages)
        ours, theirs = self._agreed([PIVOT]), self._agreed(languages)
        if ours and theirs:
            below = np.hypot(ours[0] - ours[1], theirs[2] - theirs[0])
            above = np.hypot(ours[2] - ours[0], theirs[0] - theirs[1])
            return _figure(value, value - below, value + above)
        rounds = self.means([PIVOT], draws) - self.means(languages, draws)
        return _figure(value, *np.percentile(rounds, [2.5, 97.5]))

    def _agreed(self, languages: Sequence[str]) -> tuple[float, float, float] | None:
        """Return (share, low, high) where all verdicts are the same."""
        values = np.concatenate([self.right[language] for language in languages])
        if values.min() != values.max():
            return None
        items = len({item for language in languages for item in self.ids[language]})
        return float(values[0]), *wilson(float(values[0]), items)


class Draws:
    """Bootstrap samples; languages that hold the same items (translations) are resampled together."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._kept: dict[tuple[str, ...], NDArray[np.int64]] = {}

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return resampled row numbers, (rounds, items): the same ones for the same ids."""
        key = tuple(ids)
        if key not in self._kept:
            rng = np.random.default_rng([self.seed, len(self._kept)])
            self._kept[key] = rng.integers(0, len(ids), (ROUNDS, len(ids)))
        return self._kept[key]


def summarise(task: Task, answered: dict[str, Answered], encoder: str) -> Result:
    """Return the result of all systems: per language, averaged over groups of languages, and gaps from English."""
    languages = list(answered[BRIDGE].records)
    draws = Draws()
    verdicts = {
        name: {rule: _verdicts(found, rule, answered[BRIDGE], aligned=task.aligned) for rule in task.grades}
        for name, found in answered.items()
    }
    rows = {
        language: {
            "examples": len(answered[BRIDGE].records[language]),
            "commonest": _commonest(answered[BRIDGE].records[language]),
            **_row(verdicts, [language], draws),
            **_notes(answered, language),
            "items": _items(task, answered, language),
        }
        for language in languages
    }
    averages = {
        name: {"languages": codes, **_row(verdicts, codes, draws)} for name, codes in groups(languages, encoder).items()
    }
    result: Result = {
        "task": task.name,
        "kind": "benchmark",
        "measure": task.measure,
        "rules": list(task.grades),
        "systems": list(answered),
        "settings": {name: found.task.settings() for name, found in answered.items() if found.task.settings()},
        "languages": rows,
        "averages": averages,
    }
    if PIVOT in languages and len(languages) > 1:
        result["transfer_gap"] = _gaps(verdicts[BRIDGE], [code for code in languages if code != PIVOT], draws)
    if parts := _parts(answered[BRIDGE].records, task.grades):
        result["parts"] = parts
    return result


def _verdicts(answered: Answered, rule: str, bridge: Answered, *, aligned: bool) -> Verdicts:
    """Return verdicts on the items that the bridge answered; those on the English original stand for each language."""
    ids, right = {}, {}
    for language, asked in bridge.records.items():
        own = answered.records.get(language, answered.records.get(PIVOT, []))
        verdict = {record["id"]: float(record["grades"][rule]["right"]) for record in own}
        right[language] = np.array([verdict[record["id"]] for record in asked])
        ids[language] = [record["id"] if aligned else f"{language} {record['id']}" for record in asked]
    return Verdicts(ids, right)


def _row(verdicts: dict[str, dict[str, Verdicts]], languages: Sequence[str], draws: Draws) -> Result:
    """Return accuracies of each system and rule over some languages, and p values of the bridge against each other."""
    row: Result = {"accuracy": {}, "p_value": {}}
    for name, by_rule in verdicts.items():
        row["accuracy"][name] = {rule: found.figure(languages, draws) for rule, found in by_rule.items()}
        if name != BRIDGE:
            row["p_value"][name] = {
                rule: round(_p_value(verdicts[BRIDGE][rule], found, languages), 4) for rule, found in by_rule.items()
            }
    return row


def _figure(value: float, low: float, high: float) -> Result:
    return {"value": round(value, 4), "ci95": [round(float(low), 4), round(float(high), 4)]}


def _p_value(ours: Verdicts, theirs: Verdicts, languages: Sequence[str]) -> float:
    """Return a paired permutation test's p value; verdicts on all translations of an item change sides together."""
    total: dict[str, float] = {}
    for language in languages:
        difference = (ours.right[language] - theirs.right[language]) / len(ours.right[language])
        for item, value in zip(ours.ids[language], difference, strict=True):
            total[item] = total.get(item, 0.0) + float(value)
    values = np.array(list(total.values()))
    return paired_p_value(values, np.zeros_like(values))


def _gaps(by_rule: dict[str, Verdicts], languages: Sequence[str], draws: Draws) -> Result:
    """Return English accuracy minus that of each language and of their mean, and their mean as a share of English."""
    found: Result = {}
    for rule, verdicts in by_rule.items():
        gaps = {language: verdicts.gap([language], draws) for language in languages}
        found[rule] = {"languages": gaps, "mean": verdicts.gap(languages, draws)}
        english, pivot = verdicts.means([PIVOT], draws), verdicts.mean([PIVOT])
        if pivot > 0 and (english > 0).all():
            share, shares = verdicts.mean(languages) / pivot, verdicts.means(languages, draws) / english
            found[rule]["share_of_english"] = _figure(share, *np.percentile(shares, [2.5, 97.5]))
    return found


def _parts(records: dict[str, list[Record]], rules: Sequence[str]) -> Result:
    """Return the bridge's accuracy in each part of the benchmark, in each language, without intervals: a breakdown."""
    found: Result = {}
    for language, own in records.items():
        for record in own:
            if "group" in record:
                found.setdefault(language, {}).setdefault(record["group"], []).append(record)
    return {
        language: {
            group: {"examples": len(part)}
            | {rule: round(sum(r["grades"][rule]["right"] for r in part) / len(part), 4) for rule in rules}
            for group, part in groups_found.items()
        }
        for language, groups_found in found.items()
    }


def _commonest(records: Sequence[Record]) -> float:
    """Return the share that one answer to all items of a part has right: what a system reaches that reads nothing."""
    parts: dict[str, Counter[str]] = {}
    for record in records:
        parts.setdefault(record.get("group", ""), Counter())[record["reference"]] += 1
    return round(sum(max(part.values()) for part in parts.values()) / len(records), 4)


def _notes(answered: dict[str, Answered], language: str) -> Result:
    """Count prompts that a system refused and answers that the limit of tokens cut off."""
    notes: Result = {"refused": {}, "cut_off": {}}
    for name, found in answered.items():
        own = found.records.get(language, found.records.get(PIVOT, []))
        notes["refused"][name] = sum("refused" in record for record in own)
        notes["cut_off"][name] = sum(record.get("complete") is False for record in own)
    return {key: counts for key, counts in notes.items() if any(counts.values())}


def _items(task: Task, answered: dict[str, Answered], language: str) -> list[Result]:
    """Return the first right and the first wrong answers of the bridge, with those of the other systems."""
    rule, kept, shown = task.grades[0], {True: 0, False: 0}, []
    others = {
        name: {record["id"]: record for record in found.records.get(language, [])}
        for name, found in answered.items()
        if name not in (BRIDGE, ORIGINAL)
    }
    for record in answered[BRIDGE].records[language]:
        right = bool(record["grades"][rule]["right"])
        if kept[right] == SHOWN:
            continue
        kept[right] += 1
        said = {BRIDGE: record} | {name: own[record["id"]] for name, own in others.items() if record["id"] in own}
        shown.append(
            {"id": record["id"], "prompt": record["prompt"][-CUT:], "reference": record["reference"]}
            | {name: _said(own, rule) for name, own in said.items()}
        )
    return shown


def _said(record: Record, rule: str) -> Result:
    text = str(record.get("output", record.get("refused", ""))).strip()
    short = text if len(text) <= CUT else f"{text[: CUT // 2]} ... {text[-CUT // 2 :]}"
    return {**record["grades"][rule], "text": short}
