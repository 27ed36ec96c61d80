"""Prompts -> answers for whoever has many: the encoder and an engine, side by side. Knows no files."""

import asyncio
import hashlib
import threading
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from langbridge.checkpoint import LangBridge
from langbridge.config import RoutingConfig
from langbridge.engine import Engine, Request
from langbridge.generate import Sampling, cut
from langbridge.serve.conversation import single
from langbridge.serve.encoding import EncoderQueue
from langbridge.serve.prompts import Prompts

CACHE = 16 * 2**20
"""Bytes of soft prompts that are remembered: prompts seldom come twice."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Answered:
    """The answer to a prompt, and who read the prompt where there was a choice."""

    completion: str
    route: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """Return what is added to the prompt's record."""
        return {"completion": self.completion} | ({} if self.route is None else {"route": self.route})


class Answerer:
    """Answers prompts, as many at a time as the engine has rows; all of it on one event loop.

    `reader`: bridge or plain; None: whom the routing says.
    """

    def __init__(self, model: LangBridge, engine: Engine, routing: RoutingConfig, *, reader: str | None) -> None:
        self._model, self._engine, self._reader = model, engine, reader
        self._encoder = EncoderQueue(model, cache_bytes=CACHE)
        self._prompts = Prompts(model, self._encoder, engine, routing)

    async def answer(self, prompt: str, sampling: Sampling) -> Answered:
        """Return the answer to a prompt; raises PromptError where it cannot be read, EngineError for breakdowns."""
        prepared = await self._prompts.prepare(single(self._model.template, prompt), self._reader)
        request = Request(parts=prepared.parts, sampling=sampling, alone=prepared.alone)
        async with aclosing(self._engine.generate(request)) as pieces:
            text = "".join([piece.text async for piece in pieces])
        return Answered(cut(text, sampling.stop), prepared.routes[-1].record() if prepared.routes else None)

    async def close(self) -> None:
        """Stop."""
        await self._engine.close()
        await self._encoder.close()


class BlockingAnswerer:
    """An `Answerer` for callers without an event loop: it has one of its own, in a thread."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="langbridge-answers", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def answers(self, prompts: Sequence[str], samplings: Sequence[Sampling]) -> list[Answered | Exception]:
        """Return the answer to each prompt, or why there is none, in order."""

        async def ask() -> list[Answered | BaseException]:
            asked = [self._answerer.answer(*one) for one in zip(prompts, samplings, strict=True)]
            return await asyncio.gather(*asked, return_exceptions=True)

        found = self._run(ask())
        if broken := [one for one in found if isinstance(one, BaseException) and not isinstance(one, Exception)]:
            raise broken[0]
        return [one for one in found if isinstance(one, Answered | Exception)]

    def close(self) -> None:
        """Stop."""
        if not self._loop.is_closed():
            self._run(self._answerer.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def sampling_of(sampling: Sampling, *place: object) -> Sampling:
    """Return the sampling of one line: a seed of its own, the same on every machine and after every restart."""
    if sampling.temperature == 0:
        return sampling
    name = "\n".join(map(str, (sampling.seed, *place))).encode()
    return replace(sampling, seed=int.from_bytes(hashlib.blake2b(name, digest_size=7).digest()))
