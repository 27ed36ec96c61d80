"""Many clients at once, some of which leave, and a server that is restarted in the midst of it."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from langbridge.checkpoint import LangBridge
from langbridge.data import Example
from langbridge.generate import BridgedGenerator, Sampling

CLIENTS = 200
TOKENS = 24


@dataclass
class Process:
    """`langbridge serve` as its user starts it; what it logs is kept."""

    run: Path
    port: int = 0
    log: list[str] = field(default_factory=list)
    number: int | None = None
    """Of the process that runs."""

    async def start(self) -> None:
        options = ["--port", str(self.port), "--name", "tiny", "--most-completions", "160", "--log-prompts"]
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "langbridge", "serve", str(self.run), *options),
            stderr=subprocess.PIPE,
            limit=2**24,
        )
        self.number = self.process.pid
        assert self.process.stderr is not None
        while "listening" not in (line := (await self.process.stderr.readline()).decode()):
            assert line, self.log
            self.log.append(line)
        self.port = int(line.split("http://127.0.0.1:")[1].split(",")[0])
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(line.decode())

    def kill(self) -> None:
        """Leave nothing behind where a test failed in the midst of it."""
        if self.number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.number, signal.SIGKILL)

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = await self.process.wait()
        self.number = None
        await self.reading
        return code


class Client:
    """Asks until it has its answer; a leaving one asks once and goes."""

    def __init__(self, number: int, server: Process) -> None:
        self.number, self.server = number, server
        self.leaves, self.streams = number % 4 == 0, number % 2 == 1
        self.prompt = f"client {number}"
        self.answers: list[str] = []
        self.cut_off = 0
        self.refusals: Counter[str] = Counter()

    async def ask(self) -> None:
        while not self.answers:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port, limit=2**24)
            except OSError:  # nobody listens: the server is being restarted
                await asyncio.sleep(0.05)
                continue
            try:
                writer.write(self._request())
                await writer.drain()
                if self.leaves:
                    if self.streams:
                        await reader.read(200)
                    writer.transport.abort()
                    return
                self._take((await reader.read()).decode())
            except ConnectionError:
                self.cut_off += 1
            finally:
                writer.close()
            await asyncio.sleep(0.1)

    def _request(self) -> bytes:
        fields = {"model": "tiny", "prompt": self.prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        body = json.dumps({**fields, "stream": self.streams}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close"
        return f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + body

    def _take(self, found: str) -> None:
        """Note an answer, or why there is none; an answer that was begun must end in one or the other."""
        if not found:
            self.cut_off += 1  # the server stopped before it took the connection
            return
        head, _, body = found.partition("\r\n\r\n")
        status = head.split()[1]
        if status != "200":
            self.refusals[status] += 1
            assert json.loads(body)["error"]["message"]
        elif not self.streams:
            self.answers.append(json.loads(body)["choices"][0]["text"])
        else:
            data = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
            if data[-1] == "[DONE]":
                choices = [choice for one in data[:-1] for choice in json.loads(one)["choices"]]
                assert choices[-1]["finish_reason"] == "length"
                self.answers.append("".join(choice["text"] for choice in choices))
            else:
                assert "error" in json.loads(data[-1]), "a stream ended without an end"
                self.refusals["in the midst"] += 1


def test_no_request_is_lost_or_answered_twice(run: Path) -> None:
    server = Process(run)
    clients = [Client(number, server) for number in range(CLIENTS)]

    async def everybody() -> list[int]:
        await server.start()
        asking = asyncio.gather(*(client.ask() for client in clients))
        while sum(len(client.answers) for client in clients) < 30:
            await asyncio.sleep(0.1)
        codes = [await server.stop()]
        await server.start()
        await asking
        return [*codes, await server.stop()]

    try:
        assert asyncio.run(everybody()) == [0, 0]
    finally:
        server.kill()
    stay = [client for client in clients if not client.leaves]
    assert all(len(client.answers) == 1 for client in stay)
    generator = BridgedGenerator(LangBridge.from_pretrained(run).eval())
    for client in stay[::15]:
        wanted = generator.answers([Example(source=client.prompt)], Sampling(max_new_tokens=TOKENS))[0]
        assert wanted.complete or client.answers == [wanted.text]
    ended = [json.loads(line) for line in server.log if '"event": "request"' in line]
    assert len({one["id"] for one in ended}) == len(ended)
    answered = Counter(one["prompts"][0] for one in ended if one["outcome"] == "ok")
    for client in stay:
        assert answered[client.prompt] == 1, "the server counts an answer that its client never got, or got twice"
    outcomes = Counter(one["outcome"] for one in ended)
    assert outcomes["cancelled"] > 0
    assert outcomes["failed"] == outcomes["timeout"] == outcomes["refused"] == 0
    assert sum(client.refusals["429"] for client in stay) == outcomes["busy"] - sum(
        one["outcome"] == "busy" and int(one["prompts"][0].split()[1]) % 4 == 0 for one in ended
    )


def test_a_server_that_is_told_to_stop_while_it_starts_stops(run: Path) -> None:
    """A signal between the first line and uvicorn's own handlers used to be lost: the server ran for ever."""

    async def briefly() -> int:
        server = Process(run)
        await server.start()
        return await server.stop()

    assert [asyncio.run(briefly()) for _ in range(3)] == [0, 0, 0]
