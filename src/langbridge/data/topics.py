"""SIB-200 as training data: English sentences and their topics; the wording that training and the task share."""

import csv
import json
from pathlib import Path

from langbridge.data.examples import SHIPPED, Example, read_examples
from langbridge.errors import DataError
from langbridge.files import write_text

TOPICS = ("entertainment", "geography", "health", "politics", "science/technology", "sports", "travel")
INSTRUCTION = "Name the topic of the sentence: "
"""English text of the LM in front of the sentence."""
ENGLISH = "eng_Latn"
COLUMNS = ("index_id", "category", "text")


def read_topics(path: Path) -> list[dict[str, str]]:
    """Read rows with index_id, category and text; raises DataError with the line."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise DataError(f"{path}: wanted tab-separated columns {', '.join(COLUMNS)}.")
    for number, row in enumerate(rows, start=2):
        if row["category"] not in TOPICS or not (row["text"] or "").strip() or not row["index_id"].isdigit():
            raise DataError(f"{path}, line {number}: wanted a number, one of {', '.join(TOPICS)}, and a sentence.")
    return rows


def training_examples(path: Path) -> list[Example]:
    """Return (sentence, topic) pairs of an English file, `.../eng_Latn/train.tsv`.

    Raises DataError for every other language and every other split: the bridge learns from English alone, and what
    it is tested or tuned on it must not have seen.
    """
    if path.parent.name != ENGLISH or path.name != "train.tsv":
        raise DataError(
            f"{path.parent.name}/{path.name} is no training data: wanted {ENGLISH}/train.tsv, as the bridge learns "
            "from English alone and is tested on the other splits."
        )
    return [Example(source=row["text"], target=row["category"], instruction=INSTRUCTION) for row in read_topics(path)]


def write_training_file(folder: Path, out: Path, *, mix: int = 0) -> int:
    """Write the English training split of a SIB-200 folder as JSON lines; returns the number of records.

    `folder`: the data set, or its English folder. `mix`: first so many records of the package's own English set are
    written too, so that the bridge goes on carrying whole sentences. Raises DataError.
    """
    inner = folder / ENGLISH
    examples = training_examples((inner if inner.is_dir() else folder) / "train.tsv")
    examples += read_examples(SHIPPED)[:mix]
    records = [{"source": e.source, "target": e.target, "instruction": e.instruction} for e in examples]
    write_text(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return len(examples)
