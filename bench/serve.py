"""Serving: throughput and latency of bridged and of plain prompts of equal LM length, in one run; soak; fuzzing.

    python bench/serve.py [--run embedded] [--clients 1,4,16,64] [--tokens 32] [--dtype bfloat16] [--json FILE]
    python bench/serve.py --soak 10       # minutes; is the server's memory flat?
    python bench/serve.py --fuzz 1000     # malformed requests; any answer with status 500 is a failure

The server is a process of its own; its client runs on the same machine and costs a little. Both kinds of prompts take
turns, so that other work on the machine meets both. No prompt comes twice: nothing that the encoder read is remembered.
"""

import argparse
import asyncio
import itertools
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fuzz import attempts
from served import Answer, Served, asked, quantile, serving, streamed

from langbridge.checkpoint import LangBridge
from langbridge.data.parallel import sanity_set
from langbridge.pretrained import quiet

KINDS = ("plain", "bridge")
ROUNDS = 2
"""Times that each kind takes its turn at each number of clients."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one kind of prompts took at one number of clients."""

    clients: int
    kind: str
    requests: int
    tokens_per_second: float
    first: dict[str, float]
    """Seconds until the first token: p50, p95, p99."""
    each: dict[str, float]
    """Seconds for each further token."""
    prompt_tokens: float
    """Mean LM positions."""


class Prompts:
    """Pairs of prompts that take equally many LM positions: a foreign one for the bridge, an English one for the LM."""

    def __init__(self, run: str, seed: int = 0) -> None:
        quiet()
        model = LangBridge.from_pretrained(run)
        self._collate, self._draw = model.collate, random.Random(seed)
        data = sanity_set()
        self._foreign = [text for texts in data.sources.values() for text in texts]
        self._english = [text.rstrip(".!?") for text in data.sources["eng"]]
        self._draw.shuffle(self._foreign)
        self._count = itertools.count()

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (plain, bridge) without end; where sentences run out, two are put together."""
        once = iter(self._foreign)
        while True:
            text = next(once, None) or " ".join(self._draw.sample(self._foreign, 2))
            wanted = len(self._collate.source_ids(text)) + 1  # a vector for each encoder token, and the boundary
            yield self._of_length(wanted), text

    def _of_length(self, wanted: int) -> str:
        """Return English text of so many LM tokens, begun with a number so that no two are alike."""
        text = f"{next(self._count)}"
        while True:
            longer = f"{text} {self._draw.choice(' '.join(self._draw.sample(self._english, 3)).split())}"
            length = len(self._collate.text_ids(longer))
            if length == wanted:
                return longer
            if length < wanted:
                text = longer
            elif len(self._collate.text_ids(text + " a")) > wanted:
                while len(self._collate.text_ids(text)) < wanted:
                    text += "."
                return text


async def load(
    served: Served, kind: str, prompts: Sequence[str], clients: int, tokens: int
) -> tuple[list[Answer], float]:
    """Let clients ask one prompt after another; return all answers and the seconds they took."""
    left, found = list(prompts), list[Answer]()

    async def client() -> None:
        while left:
            fields = {"prompt": left.pop(), "model": f"{served.model}:{kind}", "max_tokens": tokens}
            found.append(await streamed(served, {**fields, "temperature": 0, "ignore_eos": True}))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    if failed := [answer.error for answer in found if answer.error]:
        raise SystemExit(f"{len(failed)} of {len(found)} requests failed: {failed[0]}")
    return found, time.perf_counter() - began


async def measured(served: Served, options: argparse.Namespace) -> list[Row]:
    """Measure both kinds at each number of clients."""
    pairs, rows = Prompts(options.run).pairs(), list[Row]()
    warm = [next(pairs) for _ in range(4)]
    for number, kind in enumerate(KINDS):
        await load(served, kind, [pair[number] for pair in warm], 4, 8)
    for clients in options.clients:
        answers: dict[str, list[Answer]] = {kind: [] for kind in KINDS}
        seconds = dict.fromkeys(KINDS, 0.0)
        for _ in range(ROUNDS):
            some = [next(pairs) for _ in range(max(options.requests, 2 * clients))]
            for number, kind in enumerate(KINDS):
                found, took = await load(served, kind, [pair[number] for pair in some], clients, options.tokens)
                answers[kind] += found
                seconds[kind] += took
        rows += [row(clients, kind, answers[kind], seconds[kind]) for kind in KINDS]
        for one in rows[-2:]:
            show(one)
    return rows


def row(clients: int, kind: str, answers: Sequence[Answer], seconds: float) -> Row:
    """Return what answers took."""
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return Row(
        clients=clients,
        kind=kind,
        requests=len(answers),
        tokens_per_second=sum(answer.completion_tokens for answer in answers) / seconds,
        first={name: quantile([answer.first for answer in answers], share) for name, share in shares.items()},
        each={name: quantile([answer.each for answer in answers], share) for name, share in shares.items()},
        prompt_tokens=sum(answer.prompt_tokens for answer in answers) / len(answers),
    )


def show(one: Row) -> None:
    """Print a row of the table."""
    times = "".join(f"{1000 * value:9.0f}" for part in (one.first, one.each) for value in part.values())
    print(
        f"{one.clients:7}  {one.kind:7}{one.requests:9}{one.prompt_tokens:8.1f}{one.tokens_per_second:10.1f}{times}",
        flush=True,
    )


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Return the figures that are aimed at."""
    by = {(one.clients, one.kind): one for one in rows}
    found = {}
    for clients in dict.fromkeys(one.clients for one in rows):
        plain, bridge = by[clients, "plain"], by[clients, "bridge"]
        found[f"throughput, bridge / plain, {clients} clients"] = bridge.tokens_per_second / plain.tokens_per_second
        found[f"first token p50, bridge / plain, {clients} clients"] = bridge.first["p50"] / plain.first["p50"]
    if (1, "bridge") in by and (16, "bridge") in by:
        found["bridge, 16 clients / 1 client"] = by[16, "bridge"].tokens_per_second / by[1, "bridge"].tokens_per_second
    return found


async def soak(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    """Load the server for minutes, with streams that are cut off now and then; return its memory over time."""
    pairs, end = Prompts(options.run).pairs(), time.monotonic() + 60 * options.soak
    memory: list[float] = []
    done: Counter[str] = Counter()
    draw = random.Random(0)

    async def client() -> None:
        while time.monotonic() < end:
            plain, foreign = next(pairs)
            kind = draw.choice(KINDS)
            fields = {"prompt": plain if kind == "plain" else foreign, "model": f"{served.model}:{kind}"}
            asking = streamed(served, {**fields, "max_tokens": draw.choice([4, 16, 64, 128]), "temperature": 1.0})
            try:
                answer = await asyncio.wait_for(asking, draw.choice([1.0, 600.0, 600.0, 600.0]))
                done["failed" if answer.error else "answered"] += 1
            except TimeoutError:
                done["left"] += 1

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(served.resident / 1e6)
            await asyncio.sleep(5)

    await asyncio.gather(watch(), *(client() for _ in range(16)))
    quarter = max(1, len(memory) // 4)
    second, last = (quantile(part, 0.5) for part in (memory[quarter : 2 * quarter] or memory, memory[-quarter:]))
    print(f"{options.soak:g} minutes, 16 clients: {dict(done)}")
    shown = {"start": memory[0], "second quarter": second, "last quarter": last, "most": max(memory)}
    print("memory, MB: " + ", ".join(f"{name} {value:.0f}" for name, value in shown.items()))
    return {"memory_mb": memory, "done": dict(done), "growth": last / second - 1}


async def fuzz(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    """Send malformed requests; return how they were answered."""
    _, found = await asked(served, "GET", "/openapi.json", b"", {})
    document = json.loads(found.split(b"\r\n\r\n", 1)[1])
    names = [served.model, *(f"{served.model}:{reader}" for reader in ("bridge", "plain", "raw"))]
    statuses: Counter[int] = Counter()
    left = attempts(document, options.fuzz, seed=options.seed, names=names)
    failed: list[str] = []

    async def client() -> None:
        for one in left:
            status, answer = await asked(served, one.method, one.path, one.body, one.headers)
            statuses[status] += 1
            if status in (0, 500, 502) or b"Traceback" in answer or b"internal_error" in answer:
                failed.append(f"{status} {one.method} {one.path} {one.body[:300]!r} {one.headers}")

    await asyncio.gather(*(client() for _ in range(8)))
    well = await streamed(served, {"prompt": "who?", "max_tokens": 4, "temperature": 0})
    print(f"{sum(statuses.values())} malformed requests: {dict(sorted(statuses.items()))}")
    print(f"failures: {len(failed)}; a right request afterwards: {well.error or 'answered'}")
    for line in failed[:20]:
        print(line)
    return {"statuses": dict(statuses), "failures": failed}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", default="embedded")
    parser.add_argument("--engine", default="transformers")
    parser.add_argument(
        "--engine-set", action="append", default=[], help="NAME=VALUE for vLLM, as langbridge serve has it."
    )
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 for both models; default: the run's.")
    parser.add_argument("--clients", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=12, help="Least requests of a kind in a round.")
    parser.add_argument("--tokens", type=int, default=32, help="New tokens of each answer.")
    parser.add_argument("--soak", type=float, help="Load for so many minutes instead, and watch memory.")
    parser.add_argument("--fuzz", type=int, help="Send so many malformed requests instead.")
    parser.add_argument("--seed", type=int, default=0, help="Of --fuzz.")
    parser.add_argument("--json", type=Path, help="Write everything that was measured here.")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *given: sys.exit(143))  # the server is not left behind
    chosen = [part for given in options.engine_set for part in ("--engine-set", given)]
    dtype = ["--dtype", options.dtype] if options.dtype else []
    with serving(options.run, "--engine", options.engine, *chosen, *dtype) as served:
        if options.fuzz:
            found = asyncio.run(fuzz(served, options))
        elif options.soak:
            found = asyncio.run(soak(served, options))
        else:
            heads = "".join(f"{name:>9}" for name in ("TTFT p50", "p95", "p99", "token p50", "p95", "p99"))
            print(f"clients  prompts requests  LM len  tokens/s{heads}   (ms)")
            rows = asyncio.run(measured(served, options))
            found = {"rows": [asdict(one) for one in rows], "ratios": ratios(rows)}
            for name, value in found["ratios"].items():
                print(f"{name}: {value:.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if options.fuzz and found["failures"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
