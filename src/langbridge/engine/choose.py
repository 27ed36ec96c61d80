"""The engines by name, and what each needs of a run."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
import yaml

from langbridge.checkpoint import LangBridge
from langbridge.engine.protocol import Engine
from langbridge.engine.transformers import TransformersEngine
from langbridge.engine.vllm import VllmEngine
from langbridge.engine.vllm_remote import RemoteVllmEngine
from langbridge.errors import ConfigError

NAMES = ("transformers", "vllm")


def load_engine(
    name: str, run: str | PathLike[str], *, most_rows: int, dtype: str | None = None, arguments: Sequence[str] = ()
) -> tuple[LangBridge, Engine]:
    """Load a run and start the engine of that name, or a client of the vLLM at that URL.

    For vLLM the run's LM is loaded without its layers: vLLM has them. `arguments` are NAME=VALUE of the engine itself.
    Raises ConfigError for an unknown name or argument.
    """
    if most_rows < 1:
        raise ConfigError(f"an engine needs at least one row, got {most_rows}.")
    given = parsed(arguments)
    if name.startswith(("http://", "https://")):
        front = LangBridge.front(run, dtype=dtype).eval()
        return front, RemoteVllmEngine(front, name, most_rows=most_rows, **given)
    if name == "vllm":
        front = LangBridge.front(run, dtype=dtype).eval()
        return front, VllmEngine(front, most_rows=most_rows, arguments=given)
    if name != "transformers":
        raise ConfigError(f"no engine named {name!r}; known: {', '.join(NAMES)}, and the URL of a vLLM.")
    if unknown := set(given) - {"positions"}:
        raise ConfigError(f"the transformers engine has no argument {unknown.pop()!r}; it has positions.")
    model = LangBridge.from_pretrained(run, dtype=dtype).eval()
    if torch.cuda.is_available():
        model = model.to("cuda")
    return model, TransformersEngine(model, most_rows=most_rows, **given)


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE, values as YAML; raises ConfigError."""
    found = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--engine-set {argument}: wanted NAME=VALUE.")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--engine-set {argument}: the value is not YAML.") from error
    return found
