"""The encoder for many requests at once: one thread, batches of what waits, and a memory of texts it has read."""

import asyncio
import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from langbridge.checkpoint import LangBridge
from langbridge.data.collate import pad
from langbridge.errors import EngineError, LangBridgeError

MOST_TEXTS = 32
"""Texts that the encoder reads at a time."""
MOST_TOKENS = 4096
"""Encoder tokens that it reads at a time, padding included; a single longer text is read too."""
GATHERING = 0.003
"""Seconds for which texts are gathered, where they have been coming together."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Encoded:
    """What the encoder and the bridge made of a text."""

    soft: Tensor
    """(prompt, lm_dim): what the LM gets."""
    pooled: Tensor
    """(encoder_dim,), fp32: mean of the encoder states, of length one."""
    tokens: int
    """Encoder tokens of the text."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.soft.nbytes + self.pooled.nbytes


@dataclass(frozen=True)
class Waiting:
    """Somebody who waits for a text, or for a piece of other work in the encoder's thread."""

    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[Any]"
    text: str | None
    work: Callable[[], Any] | None = None

    def settle(self, how: str, what: Any) -> None:
        """Hand over, from the thread."""

        def tell() -> None:
            if not self.answer.done():
                getattr(self.answer, how)(what)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(tell)


class EncoderQueue:
    """Reads texts; each text once, as long as it is remembered (`cache_bytes`)."""

    def __init__(self, model: LangBridge, *, cache_bytes: int) -> None:
        self._model, self._collate, self._most = model, model.collate, cache_bytes
        self._known: OrderedDict[str, Encoded] = OrderedDict()
        self._size = 0
        self.hits = self.misses = 0
        self._waiting: list[Waiting] = []
        self._closing = False
        self._latest = (0, 0)  # requests of the last two turns
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="langbridge-encoder", daemon=True)
        self._thread.start()

    async def encode(self, text: str) -> Encoded:
        """Return what becomes of a text; raises PromptError where it is empty or too long."""
        found: Encoded = await self._asked(text, None)
        return found

    async def run(self, work: Callable[[], Result]) -> Result:
        """Do other work in the encoder's thread, which owns the encoder's tokenizer."""
        found: Result = await self._asked(None, work)
        return found

    async def close(self) -> None:
        """Stop; whoever waits gets an EngineError."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    async def _asked(self, text: str | None, work: Callable[[], Any] | None) -> Any:
        loop = asyncio.get_running_loop()
        waiting = Waiting(loop, loop.create_future(), text, work)
        with self._wake:
            if self._closing:
                raise EngineError("the server is stopping.")
            self._waiting.append(waiting)
            self._wake.notify()
        return await waiting.answer

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closing)
                if max(self._latest) > 1:  # who answers several at once soon hears from several at once
                    self._wake.wait_for(lambda: self._closing, timeout=GATHERING)
                new, self._waiting = self._waiting, []
                self._latest = (self._latest[1], len(new))
                if self._closing:
                    break
            self._turn([one for one in new if not one.answer.cancelled()])
        for one in new:
            one.settle("set_exception", EngineError("the server is stopping."))

    def _turn(self, new: Sequence[Waiting]) -> None:
        texts: dict[str, list[Waiting]] = {}
        for one in new:
            if one.text is not None:
                texts.setdefault(one.text, []).append(one)
            else:
                assert one.work is not None
                _settled(one.work, [one])
        rows: list[tuple[str, list[int]]] = []
        for text, waiting in texts.items():
            if text in self._known:
                self.hits += len(waiting)
                self._known.move_to_end(text)
                for one in waiting:
                    one.settle("set_result", self._known[text])
            else:
                self.misses += 1
                self.hits += len(waiting) - 1
                ids = _settled(functools.partial(self._collate.source_ids, text), waiting, silent=True)
                rows += [(text, ids)] if ids is not None else []
        for batch in batches(rows):
            found = _settled(
                functools.partial(self._encoded, [ids for _, ids in batch]),
                [one for text, _ in batch for one in texts[text]],
                silent=True,
            )
            for (text, _), encoded in zip(batch, found or [], strict=False):
                self._remember(text, encoded)
                for one in texts[text]:
                    one.settle("set_result", encoded)

    @torch.inference_mode()
    def _encoded(self, rows: Sequence[list[int]]) -> list[Encoded]:
        model = self._model
        ids, mask = pad(rows, model.encoder_tokenizer.pad_token_id, left=False)
        states = model.encoder(ids, mask)  # (batch, source, encoder_dim)
        mask = mask.to(states.device)
        soft = model.soft_prompt(ids, mask, states)
        content = mask[..., None].to(states.dtype)
        pooled = torch.nn.functional.normalize(((states * content).sum(1) / content.sum(1)).float(), dim=-1).cpu()
        return [
            Encoded(vectors[kept.bool()].clone(), mean.clone(), len(row))  # a clone lets go of the batch
            for vectors, kept, mean, row in zip(soft.vectors, soft.mask, pooled, rows, strict=True)
        ]

    def _remember(self, text: str, encoded: Encoded) -> None:
        self._known[text] = encoded
        self._size += encoded.size
        while self._size > self._most:
            self._size -= self._known.popitem(last=False)[1].size


def batches(rows: Sequence[tuple[str, list[int]]]) -> list[list[tuple[str, list[int]]]]:
    """Put texts of similar length together."""
    found: list[list[tuple[str, list[int]]]] = []
    for row in sorted(rows, key=lambda row: len(row[1])):
        full = not found or len(found[-1]) >= MOST_TEXTS or (len(found[-1]) + 1) * len(row[1]) > MOST_TOKENS
        if full:
            found.append([])
        found[-1].append(row)
    return found


def _settled(work: Callable[[], Result], waiting: Sequence[Waiting], *, silent: bool = False) -> Result | None:
    """Do some work; tell those who wait for it what came of it, or (`silent`) only what went wrong."""
    try:
        found = work()
    except LangBridgeError as error:
        for one in waiting:
            one.settle("set_exception", error)
        return None
    except Exception as error:
        for one in waiting:
            one.settle("set_exception", EngineError(f"the encoder broke down ({type(error).__name__})."))
        return None
    for one in () if silent else waiting:
        one.settle("set_result", found)
    return found
