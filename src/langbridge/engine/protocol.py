"""What runs the frozen LM, behind one small protocol. Knows tokens and vectors; nothing of encoders, routes or HTTP.

A prompt is a row of parts, in order: LM token ids, and soft prompts as vectors. An engine may join them into vectors,
or hand ids and vectors on as they are.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from langbridge.errors import PromptError
from langbridge.generate import Sampling

Part = tuple[int, ...] | Tensor
"""LM token ids, or vectors (length, lm_dim) in the LM's input space; vectors are on the CPU or on the LM's device."""
GREEDY = Sampling()
MOST_LIKELY = 20
"""Most alternatives that are told for one token."""
MOST_COMPLETIONS = 16
"""Most completions of one prompt."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to go on from it."""

    parts: tuple[Part, ...]
    sampling: Sampling = GREEDY
    """Its `stop` strings end a completion and are never part of it."""
    n: int = 1
    """Completions, independent of one another; with temperature 0 they are equal."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told beside each token; None: no log-probabilities at all."""
    alone: bool = False
    """Whether low-rank adapters of the LM are switched off: the LM as it was pretrained."""
    past_end: bool = False
    """Go on behind the LM's end token until `max_new_tokens`: for measurements."""

    def __post_init__(self) -> None:
        _check(self.parts, self.logprobs)
        if not 1 <= self.n <= MOST_COMPLETIONS:
            raise PromptError(f"n must be 1 to {MOST_COMPLETIONS}, got {self.n}.")

    @property
    def length(self) -> int:
        """LM positions of the prompt."""
        return sum(map(len, self.parts))


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """A prompt and the tokens whose log-likelihood behind it is asked for."""

    parts: tuple[Part, ...]
    target: tuple[int, ...]
    """LM token ids."""
    logprobs: int = 0
    """How many of the likeliest tokens are told beside each."""
    alone: bool = False
    """As in `Request`."""

    def __post_init__(self) -> None:
        _check(self.parts, self.logprobs)
        if not self.target:
            raise PromptError("there is no token to score.")

    @property
    def length(self) -> int:
        """LM positions of prompt and target."""
        return sum(map(len, self.parts)) + len(self.target)


@dataclass(frozen=True)
class Token:
    """One LM token and how likely it was."""

    id: int
    logprob: float
    """Nats, of the LM's own distribution: temperature, top_p and top_k do not count."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """(id, logprob), likeliest first."""


@dataclass(frozen=True)
class Piece:
    """What one step adds to one completion."""

    index: int
    """Which of the `n` completions."""
    token: Token
    """`logprob` is nan where the request did not ask for it."""
    text: str = ""
    """Text that is now certain: whole characters, nothing that may become a stop string. It can lag behind."""
    finish: str | None = None
    """Why this was the completion's last piece: `stop` (end token or stop string) or `length`; None: it goes on."""


class Engine(Protocol):
    """Runs the frozen LM for many requests at once. Its methods are called from one event loop."""

    @property
    def longest(self) -> int | None:
        """Most LM positions of prompt and completion together, where there is a limit."""
        ...

    def generate(self, request: Request) -> AsyncGenerator[Piece]:
        """Yield the pieces of all completions as they come; each of them ends with one piece that has a `finish`.

        Closing the generator (`aclose`, or cancelling the task that reads it) cancels the request and frees its rows.
        Raises PromptError at the first step for a prompt that is too long; EngineError where the engine is closed or
        broke down, also in the midst of an answer.
        """
        ...

    async def score(self, scoring: Scoring) -> list[Token]:
        """Return the target's tokens with their log-likelihoods; raises as `generate` does."""
        ...

    def load(self) -> "Load":
        """Return what the engine has to do now."""
        ...

    async def close(self) -> None:
        """Stop; requests that are still running raise EngineError. May be called twice."""
        ...


@dataclass(frozen=True)
class Load:
    """What an engine has to do."""

    running: int
    """Completions that get a token in each step."""
    waiting: int
    """Completions and scorings that were not begun."""
    tokens: int
    """New tokens since the start."""


def _check(parts: tuple[Part, ...], logprobs: int | None) -> None:
    if not sum(map(len, parts)):
        raise PromptError("the prompt is empty: give some text.")
    if logprobs is not None and not 0 <= logprobs <= MOST_LIKELY:
        raise PromptError(f"logprobs must be 0 to {MOST_LIKELY}, got {logprobs}.")
