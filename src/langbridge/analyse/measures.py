"""What a grid measures of each of its bridges."""

from pathlib import Path

from langbridge.data.parallel import Parallel
from langbridge.evaluate.facts import SAMPLING, is_right, read_facts
from langbridge.evaluate.run import Request, answer
from langbridge.evaluate.systems import BRIDGE, System
from langbridge.evaluate.tasks import open_task
from langbridge.generate import BridgedGenerator
from langbridge.languages import DEVELOPMENT, PIVOT
from langbridge.transfer import compare

FACT_LANGUAGES = (PIVOT, *DEVELOPMENT, "fra", "rus", "hin", "jpn", "tur", "ell", "heb", "tha")
ITEMS = 60
"""Items of each language of a benchmark."""
COMMONEST = {"sib200": 0.30, "xcopa": 0.55}
"""Share of the commonest right answer among them: what needs no reading. The items are the same in all languages."""
TASK_LANGUAGES = 12
Transfer = dict[str, float]
"""Figure by language."""


def transfer_measures(generator: BridgedGenerator, text: Parallel, count: int) -> tuple[Transfer, Transfer]:
    """Return (transfer ratio, loss in nats per token) by language; English has a loss only.

    A ratio also rises where English itself gets worse: the losses, of the same references, tell that apart.
    """
    pivot_texts = text.pivot_sample(count)
    pivot = compare(generator, pivot_texts, pivot_texts)
    ratios, nll = {}, {PIVOT: round(pivot.nll, 4)}
    for language, sources in text.sources.items():
        found = compare(generator, sources[:count], text.references(language)[:count])
        ratios[language], nll[language] = round(found.gain / pivot.gain, 4), round(found.nll, 4)
    return ratios, nll


def facts_accuracy(generator: BridgedGenerator, *, quick: bool) -> dict[str, float]:
    """Return the share of the sanity set's questions answered right, by language."""
    chosen = FACT_LANGUAGES[:2] if quick else FACT_LANGUAGES
    questions, accepted = read_facts(chosen, 3 if quick else None)
    found = {}
    for language, asked in questions.items():
        outputs = generator.generate(asked, SAMPLING)
        right = [is_right(output, answers) for output, answers in zip(outputs, accepted, strict=True)]
        found[language] = round(sum(right) / len(right), 4)
    return {language: share for language, share in found.items() if language != PIVOT}


def task_accuracy(generator: BridgedGenerator, task: str, data: Path, work: Path, *, quick: bool) -> dict[str, float]:
    """Return the accuracy on a benchmark by language, by its headline rule, on its first items."""
    opened = open_task(task, data)
    known = [language for language in opened.languages() if language != PIVOT]
    spread = known[:: max(1, len(known) // TASK_LANGUAGES)]
    request = Request(languages=tuple(spread[:2] if quick else spread), limit=3 if quick else ITEMS)
    work.mkdir(parents=True, exist_ok=True)
    folder = work / task
    for left in folder.glob("*") if folder.is_dir() else ():
        left.unlink()  # answers of another cell
    found = answer(opened, System(BRIDGE, generator), request, folder, {"study": "grid"})
    rule = opened.grades[0]
    return {
        language: round(sum(bool(record["grades"][rule]["right"]) for record in records) / len(records), 4)
        for language, records in found.records.items()
    }
