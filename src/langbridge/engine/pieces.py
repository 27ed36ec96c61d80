"""Tokens that another engine says -> pieces, as every engine gives them; whoever waits hears of a closing."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from langbridge.engine.protocol import Piece, Request, Token
from langbridge.engine.text import TextPieces
from langbridge.errors import EngineError

Result = TypeVar("Result")


class Asked:
    """The requests that an engine works on; closing tells all of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> None:
        self._tokenizer, self._ends = tokenizer, ends
        self._queues: set[asyncio.Queue[Piece | Exception]] = set()
        self._scorings: set[asyncio.Future[Any]] = set()
        self.completions = 0
        """Completions and scorings that are not at their end."""
        self.tokens = 0
        """New tokens since the start."""
        self.closed = False

    async def pieces(
        self, request: Request, say: Callable[[Request, int], AsyncGenerator[Token]]
    ) -> AsyncGenerator[Piece]:
        """Yield the pieces of a request's completions, each of which `say` gives the tokens of."""
        self._check()
        queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        pumps = [asyncio.create_task(self._pump(request, index, say, queue)) for index in range(request.n)]
        self._queues.add(queue)
        self.completions += request.n
        left = request.n
        try:
            while left:
                piece = await queue.get()
                if isinstance(piece, Exception):
                    raise piece
                left -= piece.finish is not None
                yield piece
        finally:
            self._queues.discard(queue)
            self.completions -= request.n
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def scoring(self, work: Awaitable[Result]) -> Result:
        """Await some other work of the engine."""
        if self.closed and asyncio.iscoroutine(work):
            work.close()
        self._check()
        task = asyncio.ensure_future(work)
        self._scorings.add(task)
        self.completions += 1
        try:
            return await task
        except asyncio.CancelledError:
            if self.closed:
                raise EngineError("the engine was closed before this request was finished.") from None
            task.cancel()
            raise
        finally:
            self._scorings.discard(task)
            self.completions -= 1

    def close(self) -> None:
        """Tell everybody that the engine is closed."""
        self.closed = True
        for queue in self._queues:
            queue.put_nowait(EngineError("the engine was closed before this request was finished."))
        for task in self._scorings:
            task.cancel()

    def _check(self) -> None:
        if self.closed:
            raise EngineError("the engine is closed.")

    async def _pump(
        self,
        request: Request,
        index: int,
        say: Callable[[Request, int], AsyncGenerator[Token]],
        queue: "asyncio.Queue[Piece | Exception]",
    ) -> None:
        try:
            async with aclosing(say(request, index)) as tokens, aclosing(self._read(request, index, tokens)) as pieces:
                async for piece in pieces:
                    self.tokens += 1
                    queue.put_nowait(piece)
        except Exception as error:
            queue.put_nowait(error)

    async def _read(self, request: Request, index: int, tokens: AsyncGenerator[Token]) -> AsyncGenerator[Piece]:
        text, count = TextPieces(self._tokenizer, request.sampling.stop), 0
        async for token in tokens:
            count += 1
            ended = token.id in self._ends and not request.past_end
            new = "" if ended else text.add(token.id)
            if ended or text.stopped:
                yield Piece(index, token, new + text.end(), "stop")
                return
            if count >= request.sampling.max_new_tokens:
                yield Piece(index, token, new + text.end(), "length")
                return
            yield Piece(index, token, new)
        raise EngineError("the engine ended an answer before its end.")
