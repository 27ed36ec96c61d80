"""Study `data`: which English teaches the bridge best?"""

import importlib.util
import json
from collections.abc import Sequence
from typing import Any, ClassVar

from langbridge.analyse.grid import Grid
from langbridge.analyse.p3 import PLACE, read_p3
from langbridge.files import write_text

PLAIN = ("data.shuffle_words=0", "data.gloss=0", "data.plain_case=0", "data.cut_words=0", "data.validation=48")
OWN = ("data.answers=null", *PLAIN)
LONGEST = 400
"""Characters of a source from outside: the embedded models learn in short steps."""
RECORDS = 6000
GYM = (
    "basic_arithmetic",
    "chain_sum",
    "gsm_symbolic",
    "leg_counting",
    "letter_counting",
    "number_sorting",
    "products",
    "propositional_logic",
    "spell_backward",
    "word_sorting",
)
"""Generators of short English problems."""


class TrainingData(Grid):
    """The same number of steps on different English."""

    name: ClassVar[str] = "data"
    question: ClassVar[str] = "Which English data teaches the bridge best?"
    base: ClassVar[str] = "sentences"
    settings: ClassVar[dict[str, tuple[str, ...]]] = {
        "sentences": ("data.answers=0", *PLAIN),
        "prompts": ("data.answers=1", *PLAIN),
        "mixed": ("data.answers=0.3", *PLAIN),
        "mixed and varied": ("data.answers=0.3",),
        "p3": OWN,
        "problems": OWN,
        "distilled": ("data.answers=0.3", *PLAIN, "objective.kind=distill", "objective.divergence=1"),
        "distilled without KL": ("data.answers=0.3", *PLAIN, "objective.kind=distill", "objective.divergence=0"),
    }
    facts: ClassVar[bool] = True
    tasks: ClassVar[bool] = True
    about: ClassVar[str] = (
        "Sentences to repeat, prompts with answers (both written by the embedded LM), three in ten of the second, the "
        "same with words moved, lost, cut and without capitals, P3 (instructions of many tasks), generated "
        "reasoning problems with right answers, and the LM's own answers to what it reads as text, with the divergence "
        "from its logits or without."
    )
    limits: ClassVar[str] = (
        f"P3 and problems: the first {RECORDS} with at most {LONGEST} characters. `sentences` is trained on what "
        "transfer measures, repeating; facts and benchmarks are the fairer judges of the others."
    )

    def lacking(self) -> dict[str, str]:
        """Return what settings from outside need and do not have."""
        found = super().lacking()
        if self.setting.data is None or not (self.setting.data / PLACE).is_file():
            found["p3"] = f"--data with {PLACE}"
        if importlib.util.find_spec("reasoning_gym") is None:
            found["problems"] = "`pip install reasoning-gym`"
        return found

    def fields(self, name: str) -> Sequence[str]:
        """Write the records of a setting from outside."""
        if name not in ("p3", "problems"):
            return self.settings[name]
        path = self.setting.work / f"{name}.jsonl"
        if not path.is_file():
            records = short(read_p3(self.setting.data)) if name == "p3" and self.setting.data else problems()
            write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        return [*self.settings[name], f"data.train={path}"]


def problems() -> list[dict[str, str]]:
    """Return generated problems of all kinds in turn, with their answers."""
    import reasoning_gym

    each = RECORDS // len(GYM)
    sets = [reasoning_gym.create_dataset(name, size=each, seed=1) for name in GYM]
    in_turn = [part[i] for i in range(each) for part in sets]
    return short([{"source": item["question"], "target": str(item["answer"])} for item in in_turn])


def short(records: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return source and target of records that are neither empty nor long."""
    found = [
        {"source": record["source"], "target": record["target"]}
        for record in records
        if 0 < len(record["source"].strip()) <= LONGEST and 0 < len(record["target"].strip()) <= LONGEST
    ]
    return found[:RECORDS]
