"""One request from the gate to its last token: prepare, score what is echoed, continue, account for it exactly once."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from langbridge.checkpoint import LangBridge
from langbridge.config import RoutingConfig
from langbridge.engine import Engine, Piece, Request, Scoring, Token
from langbridge.errors import EngineError, LangBridgeError, PromptError
from langbridge.generate import Sampling, check_length
from langbridge.serve.conversation import Conversations
from langbridge.serve.encoding import EncoderQueue
from langbridge.serve.gate import BusyError, Gate, StoppingError
from langbridge.serve.prompts import READERS, Prepared, Prompts
from langbridge.serve.settings import ServeSettings
from langbridge.serve.telemetry import Record, Telemetry

DEFAULT_TOKENS = 512
"""Most new tokens of a chat that does not say."""


class LateError(LangBridgeError):
    """A request took longer than the server allows."""


class UnknownModelError(LangBridgeError):
    """The server has no model of that name."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a request wants of the LM, whatever its path."""

    path: str
    prepare: Callable[[], Awaitable[Sequence[Prepared]]]
    texts: tuple[str, ...]
    """The prompts as they were given, for logs that hold them."""
    temperature: float
    top_p: float
    top_k: int
    stop: tuple[str, ...]
    seed: int | None
    n: int
    logprobs: int | None
    most: int | None
    """New tokens of each completion; None: as many as there is room for, up to a default."""
    echo: bool = False
    past_end: bool = False

    @property
    def completions(self) -> int:
        """How many answers it wants."""
        return len(self.texts) * self.n

    def request(self, prepared: Prepared, most: int, seed: int) -> Request:
        """Return what the engine is asked."""
        sampling = Sampling(
            max_new_tokens=most,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop,
            seed=seed,
        )
        return Request(
            parts=prepared.parts,
            sampling=sampling,
            n=self.n,
            logprobs=self.logprobs,
            alone=prepared.alone,
            past_end=self.past_end,
        )


EchoTokens = Sequence[tuple[int, Token | None]]
"""LM tokens of a prompt, and how likely they were where that is known."""


@dataclass(frozen=True)
class Begun:
    """The prompts are ready; nothing was said yet."""

    prepared: Sequence[Prepared]
    echoes: Sequence[EchoTokens]
    """Of each prompt, where `echo` and log-probabilities were asked for."""
    record: Record


@dataclass(frozen=True)
class Said:
    """A piece of an answer."""

    prompt: int
    piece: Piece


class Service:
    """A model, its engine and its encoder, and whoever may ask them."""

    def __init__(self, model: LangBridge, engine: Engine, settings: ServeSettings, routing: RoutingConfig) -> None:
        self.model, self.engine, self.settings = model, engine, settings
        self.encoder = EncoderQueue(model, cache_bytes=settings.cache_bytes)
        self.prompts = Prompts(model, self.encoder, engine, routing)
        self.conversations = Conversations(self.prompts.tokenizer, model.template)
        self.gate = Gate(settings.most_completions)
        self.telemetry = Telemetry(log_prompts=settings.log_prompts)
        gauge = self.telemetry.gauge
        gauge("langbridge_inside", "Completions running or waiting.", lambda: self.gate.inside)
        gauge("langbridge_running", "Completions that get a token in each step.", lambda: engine.load().running)
        gauge("langbridge_encoder_hits", "Texts that were remembered.", lambda: self.encoder.hits)
        gauge("langbridge_encoder_misses", "Texts that the encoder read.", lambda: self.encoder.misses)

    def reader(self, model: str) -> str | None:
        """Return who is to read a request's prompts, None: whom the route says; raises UnknownModelError."""
        name, colon, reader = model.partition(":")
        if name != self.settings.name or (colon and reader not in READERS):
            known = ", ".join([self.settings.name, *(f"{self.settings.name}:{reader}" for reader in READERS)])
            raise UnknownModelError(f"there is no model {model[:80]!r}; this server has {known}.")
        return reader or None

    async def answers(self, ask: Ask) -> AsyncGenerator[Begun | Said]:
        """Yield `Begun`, then pieces until each completion has its `finish`.

        Closing the generator frees everything. Raises LangBridgeError: PromptError for what is wrong with the request,
        BusyError, LateError, StoppingError and EngineError for what is not.
        """
        record = Record(ask.path, texts=ask.texts)
        deadline = time.monotonic() + self.settings.timeout
        try:
            with self.gate.enter(ask.completions):
                async with self._until(deadline):
                    begun = await self._begin(ask, record)
                yield begun
                async with aclosing(self._said(ask, begun, deadline)) as pieces:
                    async for said in pieces:
                        record.first = record.first if record.first is not None else record.seconds
                        record.completion_tokens += 1
                        record.answered(said.prompt * ask.n + said.piece.index, said.piece.text)
                        yield said
            record.outcome = "ok"
        except (GeneratorExit, asyncio.CancelledError):
            record.outcome = "cancelled"
            raise
        except LangBridgeError as error:
            record.outcome = outcome(error)
            raise
        finally:
            self.telemetry.ended(record)

    async def encode(self, path: str, work: Callable[[], Awaitable[int]]) -> int:
        """Do work that needs the encoder alone, through the same gate and with the same account.

        Returns what the work does: encoder tokens.
        """
        record = Record(path)
        try:
            with self.gate.enter(1):
                async with self._until(time.monotonic() + self.settings.timeout):
                    record.encoder_tokens = await work()
            record.outcome = "ok"
            return record.encoder_tokens
        except asyncio.CancelledError:
            record.outcome = "cancelled"
            raise
        except LangBridgeError as error:
            record.outcome = outcome(error)
            raise
        finally:
            self.telemetry.ended(record)

    async def stop(self) -> None:
        """End the engine: whoever still waits is told so."""
        self.gate.stopping = True
        await self.engine.close()
        await self.encoder.close()

    @contextlib.asynccontextmanager
    async def _until(self, deadline: float) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                yield
        except TimeoutError as error:
            raise LateError(f"the request took longer than {self.settings.timeout:g} s and was given up.") from error

    async def _begin(self, ask: Ask, record: Record) -> Begun:
        prepared = await ask.prepare()
        record.reader = ",".join(dict.fromkeys(one.reader for one in prepared))
        record.encoder_tokens = sum(one.encoder_tokens for one in prepared)
        record.prompt_tokens = sum(one.length for one in prepared)
        for one in prepared:
            check_length(one.length, self._most(ask, one), self.engine.longest)
        echoes: list[EchoTokens] = []
        if ask.echo and ask.logprobs is not None:
            echoes = list(await asyncio.gather(*(self._echo(one, ask.logprobs) for one in prepared)))
        record.prepared = record.seconds
        return Begun(prepared, echoes, record)

    def _most(self, ask: Ask, prepared: Prepared) -> int:
        limit = self.settings.most_new_tokens
        if ask.most is not None:
            if ask.most > limit:
                raise PromptError(f"max_tokens is {ask.most}, more than the {limit} that this server gives.")
            return ask.most
        longest = self.engine.longest
        room = limit if longest is None else longest - prepared.length
        return max(1, min(DEFAULT_TOKENS, limit, room))

    async def _echo(self, prepared: Prepared, logprobs: int) -> EchoTokens:
        echo = prepared.echo
        assert echo is not None
        found: list[tuple[int, Token | None]] = [(token, None) for token in echo.silent]
        if echo.target:
            scoring = Scoring(parts=echo.context, target=echo.target, logprobs=logprobs, alone=prepared.alone)
            check_length(scoring.length, 0, self.engine.longest)
            scored = await self.engine.score(scoring)
            del scored[slice(*echo.form)]
            found += [(token.id, token) for token in scored]
        elif prepared.encoder_tokens:
            raise PromptError(
                "echo with logprobs: the encoder reads this prompt, so that the LM has no tokens of it to score. Put "
                "<|answer|> in front of what is to be scored, or ask for NAME:plain or NAME:raw."
            )
        return found

    async def _said(self, ask: Ask, begun: Begun, deadline: float) -> AsyncGenerator[Said]:
        """Yield the pieces of all prompts as they come."""
        if ask.most == 0:
            return
        seed = secrets.randbits(62) if ask.seed is None else ask.seed
        requests = [ask.request(one, self._most(ask, one), seed) for one in begun.prepared]
        queue: asyncio.Queue[Said | Exception] = asyncio.Queue()
        pumps = [asyncio.create_task(self._pump(i, request, queue)) for i, request in enumerate(requests)]
        left = ask.n * len(requests)
        try:
            while left:
                async with self._until(deadline):
                    said = await queue.get()
                if isinstance(said, Exception):
                    raise said
                left -= said.piece.finish is not None
                yield said
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, prompt: int, request: Request, queue: "asyncio.Queue[Said | Exception]") -> None:
        try:
            async with aclosing(self.engine.generate(request)) as pieces:
                async for piece in pieces:
                    queue.put_nowait(Said(prompt, piece))
        except Exception as error:
            queue.put_nowait(error)


def outcome(error: LangBridgeError) -> str:
    """Return how a request ended that ended with an error."""
    kinds = {BusyError: "busy", StoppingError: "stopped", LateError: "timeout", EngineError: "failed"}
    return kinds.get(type(error), "refused")
