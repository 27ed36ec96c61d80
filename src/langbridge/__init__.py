"""LangBridge: a frozen English language model that understands the languages of a multilingual encoder.

import langbridge

model = langbridge.load("embedded")
model.generate(["რომელია საფრანგეთის დედაქალაქი?"])
"""

import importlib
from typing import Any

_PLACES = {
    "BridgedGenerator": "langbridge.generate",
    "LangBridge": "langbridge.checkpoint",
    "LangBridgeError": "langbridge.errors",
    "PlainGenerator": "langbridge.generate",
    "Recipe": "langbridge.config",
    "Sampling": "langbridge.generate",
    "load": "langbridge.routing",
}

__all__ = [  # noqa: RUF022 - the order of the README
    "load",
    "BridgedGenerator",
    "LangBridge",
    "LangBridgeError",
    "PlainGenerator",
    "Recipe",
    "Sampling",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `langbridge --help` need not load torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'langbridge' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
