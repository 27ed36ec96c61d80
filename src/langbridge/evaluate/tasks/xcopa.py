"""XCOPA: which of two sentences is the cause or the effect of a premise, by the log-likelihood of `A.` and `B.`.

The question is English, premise and choices are in the target language, and all of it goes through the encoder, as in
the LangBridge evaluation. The paper's system line is the named template `orca_choices`. Choices are made on `val`.
Folder: `<split>.<language>.jsonl`.
"""

from dataclasses import dataclass
from typing import ClassVar

from langbridge.errors import DataError
from langbridge.evaluate.sources import Record, files, hub, json_lines
from langbridge.evaluate.task import Grade, Output, Setup, Task, TaskExample
from langbridge.languages import LANGUAGES, PIVOT, our_code

CHOICES = ("A.", "B.")
FIELDS = ("premise", "choice1", "choice2", "question", "label")
HUB, HUB_ENGLISH = "cambridgeltl/xcopa", "gimmaru/super_glue-copa"
HUB_LANGUAGES = ("eng", "est", "hat", "ind", "ita", "quy", "swh", "tam", "tha", "tur", "vie", "cmn")


@dataclass(frozen=True, kw_only=True)
class Xcopa(Task):
    """Zero-shot, by likelihood."""

    setup: Setup
    name: ClassVar[str] = "xcopa"
    grades: ClassVar[tuple[str, ...]] = ("likelihood",)
    aligned: ClassVar[bool] = True

    def languages(self) -> list[str]:
        """Return the languages found; English only where the folder has it."""
        if self.setup.data is None:
            return sorted(HUB_LANGUAGES)
        paths = files(self.setup.data, f"{self.setup.split}.*.jsonl", f"{self.setup.split}.<language>.jsonl files")
        return sorted(our_code(path.name.split(".")[1]) for path in paths)

    def examples(self, language: str) -> list[TaskExample]:
        """Return a language's questions."""
        return [self._example(language, number, row) for number, row in enumerate(self._rows(language))]

    def grade(self, example: TaskExample, output: Output) -> dict[str, Grade]:
        """Take the likelier choice; the first where both are as likely."""
        likelihoods = [score.log_likelihood for score in output.scores]
        answer = str(likelihoods.index(max(likelihoods)))
        return {"likelihood": Grade(answer, answer == example.reference)}

    def _rows(self, language: str) -> list[Record]:
        short, split = LANGUAGES[language].short, self.setup.split
        if self.setup.data is not None:
            return json_lines(self.setup.data / f"{split}.{short}.jsonl", FIELDS)
        if language == PIVOT:
            return hub(HUB_ENGLISH, None, "validation")
        return hub(HUB, short, "validation" if split == "val" else split)

    def _example(self, language: str, number: int, row: Record) -> TaskExample:
        if row["question"] not in ("cause", "effect") or row["label"] not in (0, 1):
            shown = f"question {row['question']!r} and label {row['label']!r}"
            raise DataError(f"xcopa, {language}, item {number}: wanted cause or effect and 0 or 1, found {shown}.")
        prompt = (
            f"Which of the two options is most likely to be the {row['question']} of the premise?\n\n"
            f"Premise: {row['premise']}\nA. {row['choice1']}\nB. {row['choice2']}\n\nAnswer: "
        )
        return TaskExample(id=str(number), prompt=prompt, reference=str(row["label"]), choices=CHOICES)
