"""What the server tells of itself: Prometheus metrics, and one line of JSON for each request, without its text."""

import json
import logging
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
log = logging.getLogger("langbridge.serve")


@dataclass
class Record:
    """One request, from the moment it was let in."""

    path: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = field(default_factory=time.monotonic)
    outcome: str = "failed"
    """ok, cancelled (the client left), timeout, refused (the client's mistake), busy, stopped or failed."""
    reader: str = ""
    encoder_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prepared: float | None = None
    """Seconds until the prompt was ready for the LM."""
    first: float | None = None
    """Seconds until the first token."""
    texts: tuple[str, ...] = ()
    """Prompts; logged only where the server was told to."""
    answers: dict[int, str] = field(default_factory=dict)

    def answered(self, number: int, text: str) -> None:
        """Note what was answered."""
        self.answers[number] = self.answers.get(number, "") + text

    @property
    def seconds(self) -> float:
        """Time since the request came."""
        return time.monotonic() - self.began

    def timings(self) -> dict[str, float]:
        """Return seconds, as answers tell them."""
        found = {"prepared": self.prepared, "first_token": self.first, "total": self.seconds}
        return {name: round(value, 4) for name, value in found.items() if value is not None}


class Telemetry:
    """Counts and logs."""

    def __init__(self, *, log_prompts: bool) -> None:
        self.log_prompts = log_prompts
        self.registry = CollectorRegistry()
        make: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("langbridge_requests", "Requests, by how they ended.", ["path", "outcome"], **make)
        self._seconds = Histogram("langbridge_request_seconds", "Whole requests.", ["path"], buckets=SECONDS, **make)
        self._first = Histogram("langbridge_first_token_seconds", "First tokens.", ["path"], buckets=SECONDS, **make)
        self._tokens = Counter("langbridge_tokens", "Tokens read and written.", ["kind"], **make)

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Show a value that is asked for whenever metrics are."""
        Gauge(name, about, registry=self.registry).set_function(value)

    def ended(self, record: Record) -> None:
        """Count and log a request that is over."""
        self._requests.labels(record.path, record.outcome).inc()
        self._seconds.labels(record.path).observe(record.seconds)
        if record.first is not None:
            self._first.labels(record.path).observe(record.first)
        for kind in ("encoder", "prompt", "completion"):
            self._tokens.labels(kind).inc(getattr(record, f"{kind}_tokens"))
        line: dict[str, Any] = {
            "event": "request",
            "id": record.id,
            "path": record.path,
            "outcome": record.outcome,
            "reader": record.reader,
            "encoder_tokens": record.encoder_tokens,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            **record.timings(),
        }
        if self.log_prompts:
            line |= {"prompts": record.texts, "answers": [text for _, text in sorted(record.answers.items())]}
        log.info(json.dumps(line))

    def page(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """One JSON object on each line, whatever is logged."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; errors have their trace in it, which no client sees."""
        text = record.getMessage()
        line: dict[str, Any] = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname}
        line |= json.loads(text) if record.name == log.name and text.startswith("{") else {"event": text}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr() -> None:
    """Send the server's log lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("langbridge", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
