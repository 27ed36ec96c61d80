"""English training pairs without any data set: an instruct LM writes short prompts and answers them.

The LM is given only the opening of a user turn. Three kinds of record come out, all English:
a question or request with the LM's own (greedy, first-sentence) answer; the same question to be repeated; a plain
sentence to be repeated. Knows nothing of encoders and bridges.
"""

import hashlib
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from langbridge.errors import ConfigError, DataError
from langbridge.files import replacing, write_text
from langbridge.identify import identify
from langbridge.prompt import REPEAT, PromptTemplate

SHORTEST, LONGEST = 3, 18  # words of a prompt
LONGEST_ANSWER = 32  # tokens
PATIENCE = 12  # batches without one new record


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """What to write and how."""

    n: int = 12_000
    """Records wanted, about half of them sentences to repeat, a quarter questions to answer, a quarter to repeat."""
    seed: int = 0
    batch_size: int = 96
    temperature: float = 0.9
    top_k: int = 100

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch_size < 1 or self.top_k < 1 or self.temperature <= 0:
            raise ConfigError(f"synthesize: n, batch size, top-k and temperature must be positive, got {self}")


@dataclass(frozen=True)
class Openers:
    """Openings of a user turn, from `assets/openers.yaml` or the user's own file of the same shape."""

    questions: list[str]
    sentences: list[str]
    words: list[str]
    sentence_list: str
    question_list: str

    @classmethod
    def read(cls, path: Path | None = None) -> "Openers":
        """Read openers; raises DataError when the file is missing or not of this shape."""
        source = path or resources.files("langbridge") / "assets" / "openers.yaml"
        try:
            fields = yaml.safe_load(source.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"{source} cannot be read as openers: {error}") from error
        if not isinstance(fields, dict) or set(fields) != set(cls.__annotations__):
            raise DataError(f"{source}: wanted the fields {', '.join(cls.__annotations__)}")
        for name in ("questions", "sentences"):
            if not isinstance(fields[name], list) or not fields[name]:
                raise DataError(f"{source}: {name} must be a list of openings")
        if not all(isinstance(fields[name], str) for name in ("words", "sentence_list", "question_list")):
            raise DataError(f"{source}: words, sentence_list and question_list must be text")
        return cls(**{**fields, "words": fields["words"].split() or [""]})

    def draw(self, kind: str, rng: random.Random) -> str:
        """Draw one opening; `{word}` in it is filled with a random everyday word."""
        opener = rng.choice(self.questions if kind == "question" else self.sentences)
        return opener.replace("{word}", rng.choice(self.words))


def synthesize(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    settings: Synthesis,
    out: Path,
    *,
    exclude: frozenset[str] = frozenset(),
    openers: Openers | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write `settings.n` records to `out` (JSON lines) and return their number.

    Work in progress lies in `<out>.partial`; an interrupted run started again continues from it and gives the same
    records as an uninterrupted one. `exclude`: normalised texts (test sentences) that must not be written.
    """
    writer = _Writer(model, tokenizer, template, settings, openers or Openers.read())
    partial = out.with_name(out.name + ".partial")
    records, first_batch = _resume(partial, writer.fingerprint())
    seen = {*exclude, *(normalised(record["source"]) for record in records)}
    partial.parent.mkdir(parents=True, exist_ok=True)
    barren = 0
    with partial.open("a", encoding="utf-8") as file:
        for batch in itertools.count(first_batch):
            progress(len(records), settings.n)
            if len(records) >= settings.n:
                break
            new = list(writer.batch(batch, seen))
            records += new
            barren = 0 if new else barren + 1
            if barren >= PATIENCE:
                raise DataError(
                    f"{PATIENCE} batches in a row gave nothing new ({len(records)} records so far, kept in {partial}): "
                    "ask for fewer, raise the temperature, or give more openers. Is this an instruct LM?"
                )
            file.writelines(json.dumps(record | {"batch": batch}, ensure_ascii=False) + "\n" for record in new)
            file.flush()
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records[: settings.n]:
            file.write(json.dumps({k: v for k, v in record.items() if k != "batch"}, ensure_ascii=False) + "\n")
    partial.unlink()
    return min(len(records), settings.n)


def _resume(partial: Path, fingerprint: dict[str, Any]) -> tuple[list[dict[str, str]], int]:
    """Read finished batches back; the last one may be incomplete and is made again."""
    header = json.dumps({"settings": fingerprint}) + "\n"
    if not partial.exists():
        partial.parent.mkdir(parents=True, exist_ok=True)
        write_text(partial, header)
        return [], 0
    lines = partial.read_text(encoding="utf-8").splitlines(keepends=True)
    if not lines or lines[0] != header:
        raise DataError(f"{partial} was begun with other settings: delete it, or use the settings in its first line.")
    whole = [json.loads(line) for line in lines[1:] if line.endswith("\n")]
    last = max((record["batch"] for record in whole), default=0)
    kept = [record for record in whole if record["batch"] < last]
    with replacing(partial) as temporary:
        temporary.write_text(header + "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), encoding="utf-8")
    return kept, last


class _Writer:
    """Lets the LM continue openings and keeps what is good."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        settings: Synthesis,
        openers: Openers,
    ) -> None:
        self.model, self.tokenizer, self.settings, self.openers = model.eval(), tokenizer, settings, openers
        self.template = template
        usual = tokenizer("").input_ids  # what the tokenizer puts in front of every text
        begins = usual[:1] == [tokenizer.bos_token_id] and not template.before.startswith(str(tokenizer.bos_token))
        self.before = (str(tokenizer.bos_token) if begins else "") + template.before
        self.after = template.after
        self.end = template.after.split("\n")[0] or "\n\n"  # where the LM's writing of a prompt is over

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that decides what is written, but for `n`: more records may be asked for later."""
        openers = json.dumps(asdict(self.openers)).encode()
        return {
            **{name: value for name, value in asdict(self.settings).items() if name != "n"},
            "lm": str(self.model.config.name_or_path),
            "template": self.template.text,
            "openers": hashlib.sha256(openers).hexdigest()[:16],
        }

    def batch(self, number: int, seen: set[str]) -> Iterator[dict[str, str]]:
        """Yield the good records of batch `number`, which depends on nothing but seed, number and `seen`."""
        rng = random.Random(f"{self.settings.seed}-{number}")
        torch.manual_seed(rng.randrange(2**31))
        kind = "question" if number % 3 else "sentence"  # one batch of sentences gives as many as two of questions
        starts, openings = [], []
        for _ in range(self.settings.batch_size):
            opener = self.openers.draw(kind, rng)
            listed = kind == "sentence" or rng.random() < 0.5
            head = (self.openers.sentence_list if kind == "sentence" else self.openers.question_list) if listed else ""
            starts.append(opener)
            openings.append(self.before + head + opener)
        written = self._continue(openings, tokens=56 if kind == "sentence" else 36, sample=True)
        texts = [start + text for start, text in zip(starts, written, strict=True)]
        kept = [prompt for text in texts for prompt in self._prompts(text, kind) if self._is_new(prompt, seen)]
        if kind == "sentence":
            yield from ({"source": text, "target": text, "instruction": REPEAT} for text in kept)
            return
        answers: list[str] = []
        for start in range(0, len(kept), self.settings.batch_size):
            asked = [self.before + text + self.after for text in kept[start : start + self.settings.batch_size]]
            answers += self._continue(asked, tokens=LONGEST_ANSWER, sample=False)
        for text, answer in zip(kept, answers, strict=True):
            yield {"source": text, "target": text, "instruction": REPEAT}
            if is_good(sentence := first_sentence(answer), self._is_english, shortest=1, longest=30):
                yield {"source": text, "target": sentence}

    def _prompts(self, text: str, kind: str) -> Iterator[str]:
        lines = [line.strip() for line in text.split(self.end)[0].split("\n")]
        for line in lines:
            complete = line.endswith("?") if kind == "question" else line.endswith((".", "!", "?"))
            if complete and is_good(line, self._is_english, SHORTEST, LONGEST) and first_sentence(line) == line:
                yield line

    def _is_new(self, text: str, seen: set[str]) -> bool:
        key = normalised(text)
        if key in seen:
            return False
        seen.add(key)
        return True

    def _is_english(self, text: str) -> bool:
        guess = identify(text)
        return guess.language == "en" or guess.probability < 0.8  # short text is often unsure; sure and foreign is out

    @torch.inference_mode()
    def _continue(self, texts: list[str], *, tokens: int, sample: bool) -> list[str]:
        encoded = self.tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        ).to(self.model.device)
        stops = [self.tokenizer.eos_token_id, *self.tokenizer(self.end, add_special_tokens=False).input_ids[:1]]
        how = {"temperature": self.settings.temperature, "top_k": self.settings.top_k} if sample else {}
        config = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=sample,
            eos_token_id=sorted({stop for stop in stops if stop is not None}),
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            **how,
        )
        output = self.model.generate(**encoded, generation_config=config)
        new = output[:, encoded.input_ids.shape[1] :]
        return list(self.tokenizer.batch_decode(new, skip_special_tokens=True))


def normalised(text: str) -> str:
    """Return lower-case letters and digits only: the key under which two prompts count as the same."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def first_sentence(text: str) -> str:
    """Return the text up to its first full sentence end, or nothing when it has none."""
    match = re.match(r"\s*(.+?[.!?])(?=\s|$)(?<!\b[A-Z]\.)(?<!Mr\.)(?<!Dr\.)(?<!Mrs\.)(?<!Ms\.)(?<!St\.)", text)
    return match.group(1) if match else ""


def is_good(text: str, is_english: Callable[[str], bool], shortest: int, longest: int) -> bool:
    """Tell whether a line is short plain English without loops, markup, lists or code."""
    words = normalised(text).split()
    if not shortest <= len(words) <= longest or not (text[0].isupper() or text[0].isdigit()):
        return False
    if re.search(r"[^\x20-\x7e’]|[\\|<>{}\[\]*_#=~`@:;()/]|\.\.|SmolLM|language model|sentence|phrase", text):
        return False
    pairs = list(itertools.pairwise(words))
    loops = len(pairs) - len(set(pairs)) > 1 or any(a == b for a, b in pairs)
    return not loops and is_english(text)
