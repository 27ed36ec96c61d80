"""P3, English instructions of many tasks: read from a folder of data sets, and the paraphrases among them."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

PLACE = Path("p3") / "train.jsonl.gz"
"""In a folder of data sets."""
REWRITTEN = re.compile(r"(?:Paraphrase|Generate a sentence)[^:]*: (?P<left>.+)")
"""The target is the paraphrase."""
JUDGED = re.compile(r"Sentence 1: (?P<left>.+)\nSentence 2: (?P<right>.+)\nQuestion: .*")
"""The target says whether they mean the same."""


def read_p3(data: Path) -> list[dict[str, Any]]:
    """Return all records of a folder of data sets: task, source, target."""
    with gzip.open(data / PLACE, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def paraphrases(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return pairs of English sentences that mean the same, as the records of PAWS and MRPC say; each pair once."""
    found: dict[tuple[str, str], None] = {}
    for record in records:
        if not record["task"].startswith(("paws_", "glue_mrpc_")):
            continue
        source, target = record["source"].strip(), record["target"].strip()
        if rewritten := REWRITTEN.fullmatch(source):
            found[rewritten["left"].strip(), target] = None
        elif (judged := JUDGED.fullmatch(source)) and target.lower() == "yes":
            found[judged["left"].strip(), judged["right"].strip()] = None
    return list(found)
