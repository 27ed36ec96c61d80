"""Objective `distill`: the LM answers the English prompts as text; the bridge learns to make it answer the same.

In the run folder: `answers.jsonl`, what the LM said, and `teacher.safetensors`, how likely it found what it said.
Both are kept, so that a resumed run goes on with them.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from langbridge.checkpoint import LangBridge
from langbridge.data import Collator, Example
from langbridge.errors import DataError
from langbridge.files import replacing, write_text
from langbridge.generate import PlainGenerator, Sampling
from langbridge.model import Batch
from langbridge.model.distillation import Distillation
from langbridge.train.dataset import ToBatch

ANSWERS, TEACHER = "answers.jsonl", "teacher.safetensors"
CHUNK = 256
"""Prompts that are answered between two writes."""

Progress = Callable[[int, int], None]
Prompt = tuple[str, str]
"""(instruction, source)"""


def answered(
    model: LangBridge, prompts: Sequence[Example], out: Path, *, progress: Progress = lambda done, total: None
) -> list[Example]:
    """Return the prompts with the LM's own greedy answers, kept in `out`; those that it leaves empty drop out.

    Raises DataError when nothing is left.
    """
    path, longest = out / ANSWERS, model.recipe.data.longest_target
    known = _read(path, {"lm": model.recipe.language_model.name, "template": model.template.text, "longest": longest})
    generator = PlainGenerator(model)
    wanted = list({_key(prompt): prompt for prompt in prompts if _key(prompt) not in known}.values())
    for start in range(0, len(wanted), CHUNK):
        progress(start, len(wanted))
        part = wanted[start : start + CHUNK]
        said = generator.answers(part, Sampling(max_new_tokens=longest))
        with path.open("a", encoding="utf-8") as file:
            for prompt, answer in zip(part, said, strict=True):
                known[_key(prompt)] = (answer.text, answer.complete)
                said_to = {"instruction": prompt.instruction, "source": prompt.source}
                record = {**said_to, "target": answer.text, "complete": answer.complete}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    progress(len(wanted), len(wanted))
    examples = [
        replace(prompt, target=text, complete=complete, text=prompt.source)
        for prompt, (text, complete) in ((prompt, known[_key(prompt)]) for prompt in prompts)
        if text.strip()
    ]
    if not examples:
        raise DataError(f"the LM left all {len(prompts)} prompts without an answer: is the prompt template right?")
    return examples


class Taught:
    """The LM's most likely tokens at each token of its answers, read from disk as they are needed."""

    def __init__(self, path: Path, examples: Sequence[Example], collate: Collator) -> None:
        self.collate = collate
        self.starts: dict[Prompt, int] = {}
        total = 0
        for example in examples:
            if _key(example) not in self.starts:
                self.starts[_key(example)] = total
                total += _length(example, collate)
        opened: Callable[..., Any] = safetensors.safe_open  # which is not typed
        self.file = opened(path, framework="pt")
        self.ids, self.logs = self.file.get_slice("ids"), self.file.get_slice("logs")

    def of(self, example: Example) -> tuple[Tensor, Tensor]:
        """Return token ids (target, k) and log-probabilities (target, k) for an example's target."""
        start = self.starts[_key(example)]
        rows = slice(start, start + _length(example, self.collate))
        return self.ids[rows].long(), self.logs[rows].float()


class ToTaught(ToBatch):
    """Collate function: examples -> a batch with what the LM found likely."""

    def __init__(self, collate: Collator, taught: Taught) -> None:
        super().__init__(collate)
        self.taught = taught

    def __call__(self, examples: list[Example]) -> dict[str, Tensor]:
        """Return the fields of a Batch."""
        batch = self.collate(examples)
        found = [self.taught.of(example) for example in examples]
        shape = (*batch.target_ids.shape, found[0][0].shape[1])
        ids, logs = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        for row, (top, likely) in enumerate(found):
            ids[row, -len(top) :], logs[row, -len(top) :] = top, likely  # targets are padded on the left
        return self.fields(Batch(**batch.parts() | {"teacher_ids": ids, "teacher_logs": logs}))


@torch.no_grad()
def teach(
    model: LangBridge,
    examples: Sequence[Example],
    path: Path,
    *,
    batch_size: int = 16,
    progress: Progress = lambda done, total: None,
) -> Taught:
    """Let the LM read prompts and its own answers once, and keep its most likely tokens in `path`, unless they are."""
    assert model.distillation is not None
    collate = model.collate
    each = list({_key(example): example for example in examples}.values())
    made_by = _made_by(model.distillation, each)
    if not _is_of(path, made_by):
        order = sorted(range(len(each)), key=lambda i: len(each[i].text) + len(each[i].target))
        parts: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(each)
        for start in range(0, len(order), batch_size):
            progress(start, len(order))
            rows = order[start : start + batch_size]
            batch = collate([each[i] for i in rows])
            found = model.teach(batch.to(model.language_model.device), model.distillation)
            lengths = batch.target_mask.sum(dim=1).tolist()
            split = zip(torch.split(found.ids.cpu(), lengths), torch.split(found.logs.cpu(), lengths), strict=True)
            for i, (ids, logs) in zip(rows, split, strict=True):
                parts[i] = (ids.int(), logs.half())
        progress(len(order), len(order))
        with replacing(path) as temporary:
            whole = {"ids": torch.cat([ids for ids, _ in parts]), "logs": torch.cat([logs for _, logs in parts])}
            safetensors.torch.save_file(whole, temporary, {"made_by": made_by})
    return Taught(path, examples, collate)


def _key(example: Example) -> Prompt:
    return example.instruction, example.text or example.source


def _length(example: Example, collate: Collator) -> int:
    return len(collate.target_ids(example.target, end=example.complete))


def _made_by(settings: Distillation, examples: Sequence[Example]) -> str:
    """Return a key of everything that decides what the LM is found to say."""
    answers = [(*_key(example), example.target, example.complete) for example in examples]
    return hashlib.sha256(json.dumps([asdict(settings), answers]).encode()).hexdigest()


def _is_of(path: Path, made_by: str) -> bool:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return bool((file.metadata() or {}).get("made_by") == made_by)
    except (OSError, safetensors.SafetensorError):
        return False


def _read(path: Path, made_by: dict[str, Any]) -> dict[Prompt, tuple[str, bool]]:
    """Read finished answers back, a line that was cut off left out; start anew for another LM, template or length."""
    header = json.dumps(made_by, ensure_ascii=False)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if lines[:1] != [header]:
        write_text(path, header + "\n")
        return {}
    found = {}
    whole = [line for line in lines[1:] if line.endswith("}")]
    if len(whole) < len(lines) - 1:
        write_text(path, "\n".join([header, *whole]) + "\n")
    for line in whole:
        record = json.loads(line)
        found[record["instruction"], record["source"]] = (record["target"], record["complete"])
    return found
