"""MGSM: 250 grade-school problems in eleven languages, answered by generation and graded by the last number.

`mgsm`: zero-shot, `{question word} {question}` in the target language, inside the run's own template (the paper's
setting for instruction-tuned LMs). `mgsm_8shot`: eight questions with English chains of thought in front (the paper's
setting for pretrained LMs). Folder: `mgsm_<language>.tsv`, and for 8-shot `mgsm_<language>_train.tsv`, question TAB
chain of thought; where it is missing, eight English problems of `gsm8k/train.jsonl` beside the folder stand in.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from langbridge.errors import DataError
from langbridge.evaluate import numbers
from langbridge.evaluate.sources import files, hub, json_lines, tsv
from langbridge.evaluate.task import Grade, Output, Setup, Task, TaskExample
from langbridge.generate import Sampling
from langbridge.languages import LANGUAGES, PIVOT, our_code

HUB = "juletxara/mgsm"
QUESTION = {
    "ben": "প্রশ্ন:",
    "cmn": "问题:",
    "deu": "Frage:",
    "eng": "Question:",
    "fra": "Question :",
    "jpn": "問題:",
    "rus": "Задача:",
    "spa": "Pregunta:",
    "swh": "Swali:",
    "tel": "ప్రశ్న:",
    "tha": "โจทย์:",
}
"""The word that opens a question."""
STOPS = ("[END]", "</s>", "<|im_end|>")
SHOTS, SEED = 8, 42
OPENS = re.compile(r"^\s*(Step-by-Step Answer|Answer)\s*:\s*", re.IGNORECASE)
"""What published exemplars put in front of a chain of thought."""
CALCULATION = re.compile(r"<<.*?>>")
Pairs = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Mgsm(Task):
    """Zero-shot."""

    setup: Setup
    name: ClassVar[str] = "mgsm"
    grades: ClassVar[tuple[str, ...]] = numbers.RULES
    aligned: ClassVar[bool] = True

    def languages(self) -> list[str]:
        """Return the languages found."""
        if self.setup.data is None:
            return sorted(QUESTION)
        paths = files(self.setup.data, "mgsm_??.tsv", "mgsm_<language>.tsv files")
        return sorted(code for path in paths if (code := our_code(path.stem.removeprefix("mgsm_"))) in QUESTION)

    def examples(self, language: str) -> list[TaskExample]:
        """Return a language's problems."""
        return [
            TaskExample(id=str(row), prompt=self.prompt(language, question), reference=answer)
            for row, (question, answer) in enumerate(self._problems(language))
        ]

    def prompt(self, language: str, question: str) -> str:
        """Return what is asked."""
        return f"{QUESTION[language]} {question}"

    def sampling(self, language: str) -> Sampling:
        """Return the paper's decoding."""
        return Sampling(max_new_tokens=1024, stop=(QUESTION[language], *STOPS))

    def grade(self, example: TaskExample, output: Output) -> dict[str, Grade]:
        """Compare the number."""
        return numbers.grade(output.text, example.reference)

    def _problems(self, language: str) -> Pairs:
        short = LANGUAGES[language].short
        if self.setup.data is None:
            return [(row["question"], str(row["answer_number"])) for row in hub(HUB, short, "test")]
        path = self.setup.data / f"mgsm_{short}.tsv"
        rows = [(row["question"], row["answer"]) for row in tsv(path, ("question", "answer"))]
        for number, (_, answer) in enumerate(rows, start=1):
            if numbers.number(answer) is None:
                raise DataError(f"{path}, line {number}: wanted a number as the answer, found {answer!r}.")
        return rows


@dataclass(frozen=True, kw_only=True)
class Mgsm8Shot(Mgsm):
    """Eight exemplars with English chains of thought in front of each question."""

    name: ClassVar[str] = "mgsm_8shot"

    def prompt(self, language: str, question: str) -> str:
        """Return exemplars and question; the exemplars' order is that of one seed."""
        pairs = self._exemplars(language)
        order = np.random.default_rng(SEED).permutation(len(pairs))[:SHOTS]
        shown = [f"{QUESTION[language]} {pairs[i][0]}\nStep-by-Step Answer: {pairs[i][1]}[END]" for i in order]
        return "\n\n".join([*shown, f"{QUESTION[language]} {question}\nStep-by-Step Answer:"])

    def settings(self) -> dict[str, Any]:
        """Tell where the exemplars come from."""
        return {"exemplars": "hub" if self.setup.data is None else self._english[0]}

    def _exemplars(self, language: str) -> Pairs:
        """Return questions in the language with English answers, or English pairs where there are none."""
        _, english = self._english
        if self.setup.data is None:
            questions = [row["question"] for row in hub(HUB, LANGUAGES[language].short, "train")]
        else:
            own = self.setup.data / f"mgsm_{LANGUAGES[language].short}_train.tsv"
            if not own.is_file():
                return english
            questions = [row["question"] for row in tsv(own, ("question", "answer"))]
        bare = [question.removeprefix(QUESTION[language]).strip() for question in questions]
        if len(bare) != len(english):
            raise DataError(f"{len(bare)} exemplars in {language}, but {len(english)} in English: they must match.")
        return [(question, answer) for question, (_, answer) in zip(bare, english, strict=True)]

    @cached_property
    def _english(self) -> tuple[str, Pairs]:
        """Where English exemplars come from, and what they are."""
        folder = self.setup.data
        if folder is None:
            rows = [(row["question"], row["answer"]) for row in hub(HUB, "en", "train")]
            return "hub", [_bare(*row) for row in rows]
        own, other = folder / "mgsm_en_train.tsv", _training_problems(folder)
        if own.is_file():
            return own.name, [_bare(row["question"], row["answer"]) for row in tsv(own, ("question", "answer"))]
        if other is None:
            raise DataError(
                f"{folder} has no mgsm_en_train.tsv with eight solved problems, nor is there a gsm8k/train.jsonl "
                "beside it: mgsm_8shot needs one of them."
            )
        rows = [(row["question"], row["answer"]) for row in json_lines(other, ("question", "answer"))[:SHOTS]]
        return f"English problems of {other.parent.name}/{other.name}", [_bare(*row) for row in rows]


def _training_problems(folder: Path) -> Path | None:
    found = [path for name in ("train.jsonl", "train.jsonl.gz") if (path := folder.parent / "gsm8k" / name).is_file()]
    return found[0] if found else None


def _bare(question: str, answer: str) -> tuple[str, str]:
    """Return an exemplar without the words around it, its result announced in words."""
    solved = CALCULATION.sub("", OPENS.sub("", answer)).strip()
    steps, marked, result = solved.partition("####")
    told = f"{steps.strip()} The answer is {result.strip()}." if marked else solved
    return question.removeprefix(QUESTION[PIVOT]).strip(), " ".join(told.split())
