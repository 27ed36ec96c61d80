"""The engines by name."""

from collections.abc import Callable

from langbridge.checkpoint import LangBridge
from langbridge.engine.protocol import Engine
from langbridge.engine.transformers import TransformersEngine
from langbridge.errors import ConfigError

ENGINES: dict[str, Callable[[LangBridge, int], Engine]] = {
    "transformers": lambda model, most_rows: TransformersEngine(model, most_rows=most_rows),
}


def make_engine(name: str, model: LangBridge, *, most_rows: int) -> Engine:
    """Return a running engine; raises ConfigError for what `check_engine` refuses."""
    check_engine(name, most_rows=most_rows)
    return ENGINES[name](model, most_rows)


def check_engine(name: str, *, most_rows: int) -> None:
    """Raise ConfigError for an unknown name, and for no rows."""
    if name not in ENGINES:
        raise ConfigError(f"no engine named {name!r}; known: {', '.join(ENGINES)}.")
    if most_rows < 1:
        raise ConfigError(f"an engine needs at least one row, got {most_rows}.")
