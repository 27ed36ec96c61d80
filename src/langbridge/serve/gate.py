"""Who is let in: so many completions at a time, API keys, bodies of a bounded size."""

import contextlib
import hashlib
import hmac
import time
from collections.abc import Iterator, Sequence
from typing import Any

from langbridge.errors import LangBridgeError, PromptError

Scope = dict[str, Any]
OPEN = ("/", "/health", "/openapi.json")
"""Paths that need no key."""


class BusyError(LangBridgeError):
    """There is no room for a request now."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds."""


class StoppingError(LangBridgeError):
    """The server is stopping."""


class Gate:
    """Counts completions that are running or waiting."""

    def __init__(self, most: int) -> None:
        self.most, self.inside, self.stopping = most, 0, False
        self._pace = 1.0
        """Seconds that a request took lately."""

    @contextlib.contextmanager
    def enter(self, count: int) -> Iterator[None]:
        """Hold `count` places; raises BusyError where there are not so many, StoppingError when the server stops.

        PromptError: there never are so many.
        """
        if self.stopping:
            raise StoppingError("the server is stopping: ask again in a moment.")
        if count > self.most:
            raise PromptError(f"the request wants {count} completions at once; this server takes {self.most} in all.")
        if self.inside + count > self.most:
            seconds = max(1, min(60, round(self._pace)))
            raise BusyError(
                f"{self.inside} completions are running or waiting, and this server takes {self.most}: "
                f"ask again in {seconds} s.",
                seconds,
            )
        self.inside += count
        began = time.monotonic()
        try:
            yield
        finally:
            self.inside -= count
            self._pace += 0.1 * (time.monotonic() - began - self._pace)


class Keys:
    """API keys; kept as digests, so that every comparison takes equally long."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def admit(self, header: str) -> bool:
        """Tell whether an `Authorization` header holds one of the keys, or whether there are none."""
        scheme, _, given = header.partition(" ")
        digest = _digest(given.strip())
        # each key is compared, also behind a hit: how long it takes tells nothing
        hits = [hmac.compare_digest(digest, known) for known in self._digests]
        return not self._digests or (scheme.lower() == "bearer" and any(hits))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
