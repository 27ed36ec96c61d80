"""The encoder's queue: who comes together is read together."""

import asyncio

import pytest

from conftest import build
from langbridge.serve import encoding
from langbridge.serve.encoding import EncoderQueue


def test_texts_that_come_together_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a turn with several texts, one that comes a moment later does not wait for another turn."""
    monkeypatch.setattr(encoding, "GATHERING", 0.3)
    read: list[int] = []

    async def ask() -> None:
        queue = EncoderQueue(build(), cache_bytes=0)
        encoded = queue._encoded
        queue._encoded = lambda rows: (read.append(len(rows)), encoded(rows))[1]  # type: ignore[method-assign]
        held = asyncio.create_task(queue.run(lambda: asyncio.run(asyncio.sleep(0.05))))  # until two texts wait
        await asyncio.sleep(0)
        first = [asyncio.create_task(queue.encode(text)) for text in ("one", "two")]
        await asyncio.gather(held, *first)
        early = asyncio.create_task(queue.encode("three"))
        await asyncio.sleep(0.02)
        await asyncio.gather(early, queue.encode("four"))
        await queue.close()

    asyncio.run(ask())
    assert read == [2, 2]
