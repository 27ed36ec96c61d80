"""What is known of languages beside the data: resource classes, and which of them an encoder was pretrained on."""

import functools
import re
from typing import Any

import yaml

from langbridge.data.examples import assets

HIGH = 4
"""Lowest of the classes (0 to 5) that count as high-resource: MGSM's usual low-resource languages are 1 to 3."""


@functools.cache
def _tables() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((assets() / "resources.yaml").read_text(encoding="utf-8"))
    return found


def resource_class(language: str) -> int | None:
    """Return the class of Joshi et al., 5 = most resources; None where it is not known to us."""
    classes: dict[int, list[str]] = _tables()["joshi"]["classes"]
    return next((number for number, codes in classes.items() if language in codes), None)


def resource_source() -> str:
    """Return where the classes come from."""
    return str(_tables()["joshi"]["source"])


def corpus_size(language: str) -> float:
    """Return GiB of a language's text in CC-100, which XLM-R and its kin were pretrained on; 0 where there is none."""
    return float(_tables()["encoders"]["XLM-R"]["gib"].get(language, 0.0))


def pretraining(encoder: str) -> tuple[frozenset[str], str] | None:
    """Return (languages, source) of an encoder's pretraining, by its name; None where it is not known to us."""
    for table in _tables()["encoders"].values():
        if any(re.search(rf"(?<![a-z]){re.escape(name)}", encoder.lower()) for name in table["names"]):
            return frozenset(table["languages"]), str(table["source"])
    return None


def groups(languages: list[str], encoder: str) -> dict[str, list[str]]:
    """Return the groups of languages that averages are taken over, by name, empty ones left out."""
    seen = pretraining(encoder)
    classes = {language: resource_class(language) for language in languages}
    found = {
        "all": languages,
        "all but English": [language for language in languages if language != "eng"],
        "low-resource": [code for code, level in classes.items() if level is not None and level < HIGH],
        "high-resource": [code for code, level in classes.items() if level is not None and level >= HIGH],
        "unseen by the encoder": [] if seen is None else [code for code in languages if code not in seen[0]],
    }
    return {name: codes for name, codes in found.items() if codes}
