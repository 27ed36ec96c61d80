"""Study `freezing`: should the encoder learn too? (LangBridge, appendix D.1: only behind LMs without fine-tuning.)"""

import json
from collections.abc import Sequence
from typing import ClassVar

from langbridge.analyse.grid import Grid
from langbridge.data.examples import SHIPPED, read_examples
from langbridge.files import write_text

LABELLED = ("objective.kind=supervised",)
UNLABELLED = (
    "objective.kind=prefix_lm",
    "objective.shortest=8",
    "objective.longest=48",
    "objective.continuation=32",
    "data.answers=null",
    "data.shuffle_words=0",
    "data.gloss=0",
    "data.plain_case=0",
    "data.cut_words=0",
    "prompt.template=none",
)


class Freezing(Grid):
    """Frozen and trained encoder, labelled pairs behind the chat template and unlabelled text without one."""

    name: ClassVar[str] = "freezing"
    question: ClassVar[str] = "Does transfer suffer when the encoder learns too?"
    base: ClassVar[str] = "supervised frozen"
    settings: ClassVar[dict[str, tuple[str, ...]]] = {
        f"{name} {policy}": (*fields, f"policy.encoder={policy}", *rates)
        for name, fields in (("supervised", LABELLED), ("prefix_lm", UNLABELLED))
        for policy, rates in (("frozen", ()), ("trained", ("policy.encoder_rate=2e-5",)))
    }
    about: ClassVar[str] = (
        "Encoder frozen or trained (rate 2e-5, weight decay 0.1), on labelled pairs inside the chat template and, as "
        "for a pretrained LM, on unlabelled text cut in two without a template."
    )
    limits: ClassVar[str] = (
        "The LM is an instruct LM in all four; `prefix_lm` only treats it as a base LM. Its transfer is measured "
        "without a template, so that the two objectives are not to be compared with each other but with their twin. "
        "The unlabelled text is the English set's own prompts and answers, in short pieces."
    )

    def fields(self, name: str) -> Sequence[str]:
        """Write the unlabelled text where it is needed."""
        if not name.startswith("prefix_lm"):
            return self.settings[name]
        path = self.setting.work / "texts.jsonl"
        if not path.is_file():
            texts = [f"{example.source} {example.target}" for example in read_examples(SHIPPED)]
            joined = [" ".join(texts[start : start + 4]) for start in range(0, len(texts), 4)]
            write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in joined))
        return [*self.settings[name], f"data.train={path}"]
