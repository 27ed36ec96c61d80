"""Text in, text out: the LM behind a bridge, and the plain LM alone, behind one protocol."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, TextIteratorStreamer

from langbridge.checkpoint import LangBridge
from langbridge.data.collate import pad
from langbridge.data.examples import Example
from langbridge.errors import PromptError
from langbridge.model import Embeddings

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to continue a prompt."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    """The output is cut in front of the first of these."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise PromptError(
                "need max_new_tokens >= 1, temperature >= 0, 0 < top_p <= 1 and top_k >= 0, got "
                f"{self.max_new_tokens}, {self.temperature}, {self.top_p} and {self.top_k}."
            )
        if "" in self.stop:
            raise PromptError("a stop string is empty.")


@dataclass(frozen=True)
class Answer:
    """What an LM said."""

    text: str
    """All of it, blanks and stop strings included."""
    complete: bool
    """Whether the LM ended it, rather than the limit of new tokens."""


@dataclass(frozen=True)
class Score:
    """Log-likelihood of one target."""

    log_likelihood: float
    """Summed over tokens, nats."""
    tokens: int
    greedy: bool = False
    """Whether each token is the one that the LM finds likeliest there, so that greedy decoding would say the same."""


class TextGenerator(Protocol):
    """What evaluation and serving need to know of a model."""

    def generate(self, prompts: Sequence[str], sampling: Sampling = ..., *, instruction: str = ...) -> list[str]:
        """Return one completion for each prompt, in order."""
        ...

    def scores(self, examples: Sequence[Example]) -> list[Score]:
        """Return the log-likelihood of each example's target given its source."""
        ...


@dataclass(frozen=True)
class Heard:
    """One soft-prompt vector and the LM tokens nearest to it."""

    encoder_token: str
    nearest: tuple[tuple[str, float], ...]
    """(LM token, cosine), nearest first."""


class BridgedGenerator:
    """The frozen LM answering what the encoder read."""

    def __init__(self, model: LangBridge, *, batch_size: int = 16) -> None:
        self.model = model.eval()
        self.batch_size = batch_size
        self.tokenizer = model.lm_tokenizer
        self.collate = model.collate

    @property
    def device(self) -> torch.device:
        """Where the LM lives."""
        return self.model.language_model.device

    def generate(
        self,
        prompts: Sequence[str],
        sampling: Sampling | None = None,
        *,
        instruction: str = "",
        progress: Progress = lambda done, total: None,
    ) -> list[str]:
        """Return one completion for each prompt, in order; raises PromptError for empty and over-long prompts."""
        sampling = sampling or Sampling()
        examples = [Example(source=prompt, instruction=instruction) for prompt in prompts]
        return [cut(answer.text, sampling.stop) for answer in self.answers(examples, sampling, progress=progress)]

    def answers(
        self,
        examples: Sequence[Example],
        sampling: Sampling,
        *,
        progress: Progress = lambda done, total: None,
    ) -> list[Answer]:
        """Return the whole answer to each example's source and instruction, in order."""
        closing = torch.tensor(end_ids(self.model), dtype=torch.int64, device=self.device)
        outputs = [Answer("", False)] * len(examples)
        done = 0
        for rows in self._by_length(examples):
            torch.manual_seed(sampling.seed)
            new = self._extend([examples[i] for i in rows], sampling)
            for i, ids in zip(rows, new, strict=True):
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                outputs[i] = Answer(text, bool(torch.isin(ids, closing).any()))
            progress(done := done + len(rows), len(examples))
        return outputs

    def stream(self, prompt: str, sampling: Sampling | None = None) -> Iterator[str]:
        """Yield pieces of one completion as they come; stop strings end it but may still be seen."""
        sampling = sampling or Sampling()
        torch.manual_seed(sampling.seed)
        self.collate.source_ids(prompt)  # complain here, not in the thread
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failures: list[BaseException] = []

        def run() -> None:
            try:
                self._extend([Example(source=prompt)], sampling, streamer=streamer)
            except BaseException as error:
                failures.append(error)
                streamer.end()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield from streamer
        thread.join()
        if failures:
            raise failures[0]

    @torch.inference_mode()
    def scores(self, examples: Sequence[Example], *, progress: Progress = lambda done, total: None) -> list[Score]:
        """Return the log-likelihood of each example's target given its source and instruction, in order."""
        groups: dict[tuple[str, str], list[int]] = {}  # targets of one prompt are scored together: it is read once
        for i, example in enumerate(examples):
            groups.setdefault((example.source, example.instruction), []).append(i)
        rows = list(groups.values())
        scores = [Score(0.0, 0)] * len(examples)
        done = 0
        for batch in self._by_length([examples[row[0]] for row in rows]):
            picked = [rows[i] for i in batch]
            targets = [
                self._targets([examples[row[turn]].target if turn < len(row) else "" for row in picked])
                for turn in range(max(map(len, picked)))
            ]
            prompt = self._prompt([examples[row[0]] for row in picked])
            found = self.model.language_model.scored(prompt, targets)
            for turn, ((values, likeliest), (_, mask)) in enumerate(zip(found, targets, strict=True)):
                fields = (values.sum(1).tolist(), mask.sum(1).tolist(), likeliest.all(1).tolist())
                for row, *score in zip(picked, *fields, strict=True):
                    if turn < len(row):
                        scores[row[turn]] = Score(*score)
            progress(done := done + sum(map(len, picked)), len(examples))
        return scores

    def score(self, prompt: str, choices: Sequence[str]) -> list[float]:
        """Return the summed log-likelihood of each choice given the prompt, nats."""
        if not choices or not all(choices):
            raise PromptError("score needs at least one choice, and none may be empty.")
        examples = [Example(source=prompt, target=choice) for choice in choices]
        return [score.log_likelihood for score in self.scores(examples)]

    @torch.inference_mode()
    def soft_prompt(self, prompt: str) -> Tensor:
        """Return what the LM gets in place of word embeddings: (source + 1, lm_dim)."""
        batch = self.collate([Example(source=prompt)])
        return self.model.soft_prompt(batch.encoder_ids.to(self.device), batch.encoder_mask.to(self.device)).vectors[0]

    def soft_prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
        """Return how many LM positions the soft prompt of each prompt takes."""
        _, mask = pad([self.collate.source_ids(prompt) for prompt in prompts], 0, left=False)
        lengths: list[int] = self.model.bridge.lengths(mask).tolist()
        return lengths

    @torch.inference_mode()
    def explain(self, prompt: str, nearest: int = 3) -> list[Heard]:
        """Return the LM tokens nearest (cosine) to each soft-prompt vector: what the LM is told."""
        vectors = torch.nn.functional.normalize(self.soft_prompt(prompt).float(), dim=-1)
        words = torch.nn.functional.normalize(self.model.language_model.vectors.float(), dim=-1)
        top = (vectors @ words.T).topk(nearest, dim=-1)
        names = self.model.encoder_tokenizer.convert_ids_to_tokens(self.collate.source_ids(prompt))
        return [
            Heard(name, tuple((self.tokenizer.decode([i]), round(c, 3)) for i, c in zip(ids, cosines, strict=True)))
            for name, ids, cosines in zip(
                [*names, "(boundary)"], top.indices.tolist(), top.values.tolist(), strict=True
            )
        ]

    @property
    def _fill(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def _targets(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = [self.collate.target_ids(text, end=False) if text else [] for text in texts]
        ids, mask = pad(rows, self._fill, left=False)
        return ids.to(self.device), mask.to(self.device)

    def _prompt(self, examples: Sequence[Example]) -> Embeddings:
        batch = self.collate([Example(source=e.source, instruction=e.instruction) for e in examples])
        return self.model.prompt(batch.to(self.device))

    @torch.inference_mode()
    def _extend(self, examples: Sequence[Example], sampling: Sampling, **arguments: Any) -> Tensor:
        prompt = self._prompt(examples)
        check_length(prompt.mask.shape[1], sampling.max_new_tokens, self.model.language_model.longest)
        if sampling.stop:
            arguments["stopping_criteria"] = [StopAtText(self.tokenizer, sampling.stop)]
        return self.model.language_model.extend(prompt, self._config(sampling), **arguments)

    def _config(self, sampling: Sampling) -> GenerationConfig:
        how: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
            how["top_k"] = sampling.top_k
        ends = end_ids(self.model) or None
        return GenerationConfig(
            max_new_tokens=sampling.max_new_tokens, pad_token_id=self._fill, eos_token_id=ends, **how
        )

    def _by_length(self, examples: Sequence[Example]) -> Iterator[list[int]]:
        """Yield row numbers in batches of similar length, so that little is padding."""
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].source) + len(examples[i].target))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


class StopAtText(StoppingCriteria):
    """Ends a row once its new text holds a stop string; works for every tokenizer, as it looks at text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops

    def __call__(self, input_ids: Tensor, scores: Tensor, **arguments: Any) -> Tensor:
        """Tell which rows are done: (batch,), bool."""
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        done = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(done, device=input_ids.device)


class PlainGenerator(BridgedGenerator):
    """The LM alone, reading the text itself in the same template: the baseline; adapters are off."""

    def scores(self, examples: Sequence[Example], *, progress: Progress = lambda done, total: None) -> list[Score]:
        """Return the log-likelihood of each example's target given its text and instruction, in order."""
        with self.model.language_model.alone():
            return super().scores(examples, progress=progress)

    def _extend(self, examples: Sequence[Example], sampling: Sampling, **arguments: Any) -> Tensor:
        with self.model.language_model.alone():
            return super()._extend(examples, sampling, **arguments)

    def _prompt(self, examples: Sequence[Example]) -> Embeddings:
        rows = []
        for example in examples:
            if not example.source.strip():
                raise PromptError("the prompt is empty: give some text.")
            template = self.model.template.with_instruction(example.instruction)
            text = self.collate.text_ids(example.source)
            rows.append([*template.before_ids(self.tokenizer), *text, *template.after_ids(self.tokenizer)])
        ids, mask = pad(rows, self._fill)
        return self.model.language_model.embed(ids.to(self.device), mask.to(self.device))


def end_ids(model: LangBridge) -> list[int]:
    """Return the LM tokens that end an answer: those of its generation config, or its tokenizer's."""
    own = model.language_model.model.generation_config
    ends = own.eos_token_id if own is not None and own.eos_token_id is not None else model.lm_tokenizer.eos_token_id
    if ends is None:
        return []
    return list(ends) if isinstance(ends, list | tuple) else [int(ends)]


def check_length(length: int, new: int, longest: int | None) -> None:
    """Raise PromptError where `length` positions and `new` tokens are more than `longest`."""
    if longest is not None and length + new > longest:
        raise PromptError(
            f"the prompt takes {length} LM positions; with {new} new tokens that is more than the LM's {longest}. "
            "Shorten the prompt or lower max_new_tokens."
        )


def cut(text: str, stops: Sequence[str]) -> str:
    """Return the text in front of the first stop string, without blanks at its ends."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))].strip()
