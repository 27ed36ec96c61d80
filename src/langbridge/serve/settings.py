"""What a server is told when it starts."""

import ipaddress
from dataclasses import dataclass

from langbridge.errors import ConfigError

LEAST_KEY = 16
"""Fewest characters of an API key."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where the server listens, who may ask, and how much."""

    name: str = "langbridge"
    """What requests call the model."""
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    """Any of these lets a request in; none: only this machine may ask."""
    most_completions: int = 256
    """Completions and scorings that are running or waiting; more are sent away with status 429."""
    most_new_tokens: int = 1024
    """Most tokens of a completion."""
    most_bytes: int = 262_144
    """Most bytes of a request."""
    timeout: float = 300.0
    """Seconds after which a request is given up."""
    drain: float = 30.0
    """Seconds that running requests are given when the server stops; then they are told that it did."""
    cache_bytes: int = 67_108_864
    """Memory for what the encoder made of texts."""
    log_prompts: bool = False
    """Whether logs hold what users wrote and were answered."""
    playground: bool = True

    def __post_init__(self) -> None:
        for field in ("most_completions", "most_new_tokens", "most_bytes", "timeout"):
            if getattr(self, field) <= 0:
                raise ConfigError(f"{field} must be positive, got {getattr(self, field)}.")
        if self.drain < 0 or self.cache_bytes < 0 or not 0 <= self.port <= 65535:
            raise ConfigError(
                "need drain >= 0, cache_bytes >= 0 and a port up to 65535, got "
                f"{self.drain}, {self.cache_bytes} and {self.port}."
            )
        if any(len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise ConfigError(f"an API key must have at least {LEAST_KEY} printable ASCII characters.")
        if not self.api_keys and not self.loopback:
            raise ConfigError(
                f"host {self.host} can be reached by others, and there is no API key: give one with --api-key-file or "
                "LANGBRIDGE_API_KEYS, or listen on 127.0.0.1."
            )
        if not self.name or ":" in self.name:
            raise ConfigError(f"the model's name must not be empty nor hold a colon, got {self.name!r}: use --name.")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name that others may know too
