"""Requests on their way between the event loop that asked and the thread that answers."""

import asyncio
import contextlib
from typing import Any

import torch
from torch import Tensor

from langbridge.engine.protocol import Part, Piece, Request, Scoring, Token
from langbridge.model import Embeddings
from langbridge.model.language_model import LanguageModel


class Job:
    """A request; the thread gives pieces, the loop takes them."""

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.request, self.loop = request, loop
        self.cancelled = False
        """Set by the loop, read by the thread between two steps."""
        self._pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    async def next(self) -> Piece:
        """Return the next piece, or raise what went wrong."""
        piece = await self._pieces.get()
        if isinstance(piece, Exception):
            raise piece
        return piece

    def give(self, piece: Piece) -> None:
        """Hand over a piece, from the thread."""
        self._tell(piece)

    def fail(self, error: Exception) -> None:
        """Hand over what went wrong, from the thread."""
        self._tell(error)

    def _tell(self, piece: Piece | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._pieces.put_nowait, piece)


class ScoringJob:
    """A scoring; the thread gives the answer."""

    def __init__(self, scoring: Scoring, loop: asyncio.AbstractEventLoop) -> None:
        self.scoring, self.loop = scoring, loop
        self.cancelled = False
        self.answer: asyncio.Future[list[Token]] = loop.create_future()

    def run(self, lm: LanguageModel) -> None:
        """Score, in the thread."""
        scoring = self.scoring
        vectors = joined(lm, scoring.parts)
        mask = vectors.new_ones(1, len(vectors)).long()
        ids = mask.new_tensor([scoring.target])
        prompt = Embeddings(vectors[None], mask)
        said, tokens, logs = lm.choices(prompt, ids, ids.new_ones(ids.shape), scoring.logprobs)
        rows = zip(scoring.target, said.tolist(), tokens.tolist(), logs.tolist(), strict=True)
        self._tell("set_result", [Token(i, value, tuple(zip(t, v, strict=True))) for i, value, t, v in rows])

    def fail(self, error: Exception) -> None:
        """Hand over what went wrong, from the thread."""
        self._tell("set_exception", error)

    def _tell(self, how: str, what: Any) -> None:
        def settle() -> None:
            if not self.answer.done():
                getattr(self.answer, how)(what)

        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(settle)


def joined(lm: LanguageModel, parts: tuple[Part, ...]) -> Tensor:
    """Return parts as the LM reads them: (length, lm_dim)."""
    found = []
    for part in parts:
        if isinstance(part, Tensor):
            found.append(part.to(lm.device, lm.dtype))
        elif part:
            ids = torch.tensor([part])
            found.append(lm.embed(ids, torch.ones_like(ids)).vectors[0])
    return torch.cat(found)
