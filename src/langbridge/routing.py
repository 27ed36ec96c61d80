"""Routing: the plain LM reads what it knows, the bridge the rest; one generator that chooses for each prompt."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeVar

import torch

from langbridge.checkpoint import LangBridge
from langbridge.config import RoutingConfig
from langbridge.data.collate import pad
from langbridge.data.examples import Example
from langbridge.errors import ConfigError
from langbridge.generate import Answer, BridgedGenerator, PlainGenerator, Progress, Sampling, Score
from langbridge.identify import known as identifiable
from langbridge.identify import probability_of

PLAIN, BRIDGE = "plain", "bridge"
REMEMBERED = 10_000
"""Prompts whose route is kept."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Route:
    """Who reads a prompt, and why."""

    to: str
    """`plain` or `bridge`."""
    by: str
    """`by_language` or `by_likelihood`."""
    measure: float
    """Probability that it is in one of the LM's languages, or nats per encoder token that the LM needs for it."""
    threshold: float

    def record(self) -> dict[str, Any]:
        """Return the route as it stands in output records."""
        return {**dataclasses.asdict(self), "measure": round(self.measure, 4)}


class Router:
    """Decides from a prompt's measure who reads it; raises ConfigError for settings that cannot decide."""

    def __init__(self, config: RoutingConfig) -> None:
        if config.kind == "off":
            raise ConfigError("routing.kind is off: there is nothing to choose from.")
        if config.kind == "by_likelihood" and config.likelihood is None:
            raise ConfigError(
                "routing.kind is by_likelihood, but routing.likelihood is not known for this run: find it with "
                "`langbridge calibrate RUN`, or set it."
            )
        if unknown := [code for code in config.languages if code not in identifiable()]:
            raise ConfigError(f"routing.languages has {unknown[0]!r}, which py3langid does not know.")
        self.config = config
        self.by_language = config.kind == "by_language"
        self.threshold = config.probability if self.by_language else config.likelihood or 0.0
        """What a prompt's measure is held against."""

    def probability(self, text: str) -> float:
        """Return the measure of `by_language`."""
        return probability_of(text, self.config.languages)

    def route(self, measure: float) -> Route:
        """Return who reads a prompt of this measure."""
        ours = measure >= self.threshold if self.by_language else measure <= self.threshold
        return Route(PLAIN if ours else BRIDGE, self.config.kind, measure, self.threshold)


class RoutedGenerator(BridgedGenerator):
    """Answers each prompt through the bridge or from the plain LM, whichever its route says."""

    def __init__(self, model: LangBridge, config: RoutingConfig, *, batch_size: int = 16) -> None:
        super().__init__(model, batch_size=batch_size)
        self.config = config
        self.router = Router(config)
        self.threshold = self.router.threshold
        self.plain = PlainGenerator(model, batch_size=batch_size)
        self._routes: dict[str, Route] = {}

    def share(self, prompts: Sequence[str]) -> float:
        """Return the share of prompts that the plain LM reads."""
        return round(sum(route.to == PLAIN for route in self.routes(prompts)) / max(1, len(prompts)), 4)

    def routes(self, prompts: Sequence[str]) -> list[Route]:
        """Return the route of each prompt, in order."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._routes]
        if len(self._routes) + len(new) > REMEMBERED:
            self._routes.clear()
            new = list(dict.fromkeys(prompts))
        router = self.router
        measures = [router.probability(prompt) for prompt in new] if router.by_language else effort(self.plain, new)
        self._routes |= {prompt: router.route(measure) for prompt, measure in zip(new, measures, strict=True)}
        return [self._routes[prompt] for prompt in prompts]

    def answers(
        self, examples: Sequence[Example], sampling: Sampling, *, progress: Progress = lambda done, total: None
    ) -> list[Answer]:
        """Return the whole answer to each example's source and instruction, in order."""
        return self._shared(
            examples,
            lambda part, moved: self.plain.answers(part, sampling, progress=moved),
            lambda part, moved: super(RoutedGenerator, self).answers(part, sampling, progress=moved),
            progress,
        )

    def scores(self, examples: Sequence[Example], *, progress: Progress = lambda done, total: None) -> list[Score]:
        """Return the log-likelihood of each example's target given its source and instruction, in order."""
        return self._shared(
            examples,
            lambda part, moved: self.plain.scores(part, progress=moved),
            lambda part, moved: super(RoutedGenerator, self).scores(part, progress=moved),
            progress,
        )

    def stream(self, prompt: str, sampling: Sampling | None = None) -> Iterator[str]:
        """Yield pieces of one completion as they come."""
        self.collate.source_ids(prompt)  # complain first
        if self.routes([prompt])[0].to == PLAIN:
            yield from self.plain.stream(prompt, sampling)
        else:
            yield from super().stream(prompt, sampling)

    def _shared(
        self,
        examples: Sequence[Example],
        plain: Callable[[list[Example], Progress], list[Item]],
        bridged: Callable[[list[Example], Progress], list[Item]],
        progress: Progress,
    ) -> list[Item]:
        """Give each example to the one who reads it, and put the results back in order."""
        for example in examples:
            self.collate.source_ids(example.source)  # a prompt that the bridge would refuse is refused
        to = [route.to for route in self.routes([example.source for example in examples])]
        found: dict[int, Item] = {}
        for name, read in ((PLAIN, plain), (BRIDGE, bridged)):
            rows = [i for i in range(len(examples)) if to[i] == name]
            moved = functools.partial(_moved, progress, len(found), len(examples))
            found |= dict(zip(rows, read([examples[i] for i in rows], moved), strict=True))
        return [found[i] for i in range(len(examples))]


def _moved(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


@torch.inference_mode()
def effort(plain: PlainGenerator, texts: Sequence[str]) -> list[float]:
    """Return how many nats the LM alone needs for each text, for each token that the multilingual encoder makes of it.

    The encoder cuts all its languages into about equally many tokens for the same content, so that the figure means the
    same in every script; per byte or per LM token, a script that the LM cuts into bytes would look easy.
    """
    model, tokenizer = plain.model, plain.tokenizer
    before = effort_opening(model)
    found = [0.0] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with model.language_model.alone():
        for start in range(0, len(order), plain.batch_size):
            rows = order[start : start + plain.batch_size]
            ids, mask = pad([plain.collate.text_ids(texts[i]) for i in rows], tokenizer.pad_token_id, left=False)
            opening = torch.tensor([before] * len(rows), device=plain.device)
            prompt = model.language_model.embed(opening, torch.ones_like(opening))
            (logs,) = model.language_model.log_likelihoods(prompt, [(ids.to(plain.device), mask.to(plain.device))])
            for i, total in zip(rows, logs.sum(dim=1).tolist(), strict=True):
                pieces = model.encoder_tokenizer(texts[i], add_special_tokens=False, verbose=False).input_ids
                found[i] = -total / max(1, len(pieces))
    return found


def effort_opening(model: LangBridge) -> list[int]:
    """Return the LM tokens in front of a text whose effort is measured: those of the template, or at least one."""
    tokenizer = model.lm_tokenizer
    return model.template.before_ids(tokenizer) or [tokenizer.bos_token_id or tokenizer.eos_token_id or 0]


def load(
    run: str | PathLike[str],
    *,
    plain: bool = False,
    routing: str | None = None,
    batch_size: int = 16,
    dtype: str | None = None,
) -> BridgedGenerator:
    """Load a run folder, a hub id or `embedded`, ready to generate and score; on a GPU where there is one.

    `routing`: off, by_language or by_likelihood; None: what the run's recipe says. `plain`: the LM alone. `dtype`
    (float32, bfloat16, float16, auto) replaces the run's own for both frozen models.
    """
    model = LangBridge.from_pretrained(run, dtype=dtype)
    if torch.cuda.is_available():
        model = model.to("cuda")
    if plain:
        return PlainGenerator(model, batch_size=batch_size)
    config = dataclasses.replace(model.recipe.routing, kind=routing or model.recipe.routing.kind)
    if config.kind == "off":
        return BridgedGenerator(model, batch_size=batch_size)
    return RoutedGenerator(model, config, batch_size=batch_size)
