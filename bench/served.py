"""A server in a process of its own, and a client that costs little: for measurements on one machine."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Served:
    """A server that listens."""

    host: str
    port: int
    pid: int
    model: str

    @property
    def resident(self) -> int:
        """Bytes of the server's memory."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@contextlib.contextmanager
def serving(run: str, *options: str) -> Iterator[Served]:
    """Run `langbridge serve` while the block runs; its log goes nowhere once it listens."""
    command = [sys.executable, "-m", "langbridge", "serve", run, "--port", "0", "--name", "bench", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "listening on" in line:
                break
        else:
            raise SystemExit("the server did not start:\n" + "".join(seen))
        port = int(seen[-1].split("http://127.0.0.1:")[1].split(",")[0])
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        yield Served("127.0.0.1", port, process.pid, "bench")
        process.terminate()
        process.wait(timeout=60)
        drain.wait(timeout=10)
    finally:
        process.kill()
        process.wait()


@dataclass
class Answer:
    """What one request took, in seconds from its beginning."""

    first: float = 0.0
    """Until the first event."""
    total: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    texts: list[str] = field(default_factory=list)

    @property
    def each(self) -> float:
        """Seconds for each token behind the first."""
        return (self.total - self.first) / max(1, self.completion_tokens - 1)


async def streamed(served: Served, fields: dict[str, Any]) -> Answer:
    """Ask for a completion as a stream, and read it: each event is one line."""
    body = {"model": served.model, "stream": True, "stream_options": {"include_usage": True}, **fields}
    answer, began = Answer(), time.perf_counter()
    async with connection(served) as (reader, writer):
        writer.write(request(served, "POST", "/v1/completions", json.dumps(body).encode()))
        async for line in reader:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                if line.startswith(b"{"):
                    answer.error = line.decode()
                continue
            event = json.loads(line[6:])
            if "error" in event:
                answer.error = event["error"]["message"]
                break
            answer.first = answer.first or time.perf_counter() - began
            answer.texts += [choice["text"] for choice in event["choices"]]
            if event["usage"]:
                answer.prompt_tokens = event["usage"]["prompt_tokens"]
                answer.completion_tokens = event["usage"]["completion_tokens"]
        answer.total = time.perf_counter() - began
    if not answer.completion_tokens and not answer.error:
        answer.error = "the stream ended too early"
    return answer


async def asked(served: Served, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    """Ask for anything; return the status (0: no answer) and the rest of the answer."""
    async with connection(served) as (reader, writer):
        writer.write(request(served, method, path, body, headers))
        found = await reader.read()
    head = found.split(b"\r\n", 1)[0].split()
    return (int(head[1]) if len(head) > 1 else 0), found


@contextlib.asynccontextmanager
async def connection(served: Served) -> Any:
    """Connect while the block runs."""
    reader, writer = await asyncio.open_connection(served.host, served.port, limit=2**24)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def request(served: Served, method: str, path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """Return a request's bytes; the server is to close the connection behind its answer."""
    named = {"Content-Type": "application/json"} if headers is None else headers
    lines = [f"{method} {path} HTTP/1.1", f"Host: {served.host}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in named.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
