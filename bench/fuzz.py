"""Malformed requests made from a server's own OpenAPI document: almost right, wrong, and not JSON at all."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

TEXTS = ["", " ", "who?", "a" * 3000, "\ud800", "\u0000", "مرحبا\u202e", "👩\u200d👧", "\n" * 50]
TEXTS += ["<|im_end|>", "</s>", "<|answer|>", "{{7*7}}"]
NUMBERS = [0, -1, 1, 2, 0.5, -0.0, 1e308, 2**31, 2**63, -(2**63), 10**30, float("nan"), float("inf")]
ODD: list[Callable[[random.Random], Any]] = [
    lambda r: r.choice(TEXTS),
    lambda r: r.choice(NUMBERS),
    lambda r: r.choice([None, True, False, [], {}, [[]], [None], {"": 0}]),
    lambda r: nested(r.choice([5, 300])),
    lambda r: [r.choice(TEXTS)] * r.choice([1, 20, 70]),
]
HEADERS = [
    {},
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/json; charset=utf-16"},
    {"Authorization": "Bearer \u00ff"},
    {"Content-Encoding": "gzip"},
    {"Accept": "nothing/at-all"},
]
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Attempt:
    """One request."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]


def attempts(document: dict[str, Any], count: int, *, seed: int = 0, names: list[str]) -> Iterator[Attempt]:
    """Yield requests to every path of an OpenAPI document, the same for the same seed.

    `names`: models that there are; without a right name most requests would go no further than that.
    """
    draw = random.Random(seed)
    operations = [(path, method) for path, methods in document["paths"].items() for method in methods]
    posts = [one for one in operations if one[1] == "post"]
    for _ in range(count):
        path, method = draw.choice(posts if draw.random() < 0.9 else operations)
        operation = document["paths"][path][method]
        address = path.replace("{model}", draw.choice([*names, "%00", "..", "a" * 300, "%ff"]))
        if method != "post":
            yield Attempt(draw.choice(["GET", "DELETE", "PUT"]), address, b"", {})
            continue
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        body = value(schema, document, draw)
        if isinstance(body, dict) and draw.random() < 0.9:
            body["model"] = draw.choice(names)
            body.pop("max_tokens", None)
            body |= {"max_tokens": draw.choice([1, 2, 3])} if "completions" in path else {}
        for _ in range(draw.choice([0, 1, 1, 2])):
            body = spoiled(body, draw)
        data = json.dumps(body).encode()
        if draw.random() < 0.1:
            data = broken(data, draw)
        yield Attempt("POST", address, data, draw.choice(HEADERS) if draw.random() < 0.1 else JSON)


def value(schema: dict[str, Any], document: dict[str, Any], draw: random.Random) -> Any:
    """Return a value that a schema allows, or nearly so."""
    if "$ref" in schema:
        return value(document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], document, draw)
    if "anyOf" in schema:
        return value(draw.choice(schema["anyOf"]), document, draw)
    if "const" in schema or "enum" in schema:
        return draw.choice(schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "object":
        required = schema.get("required", [])
        fields = schema.get("properties", {})
        return {name: value(f, document, draw) for name, f in fields.items() if name in required or draw.random() < 0.3}
    if kind == "array":
        return [value(schema.get("items", {}), document, draw) for _ in range(draw.choice([1, 1, 2, 3]))]
    if kind == "string":
        return draw.choice(["who?", "Mji mkuu wa Ufaransa ni upi?", *TEXTS])
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = min(schema.get("maximum", 4), low + 4)
        return draw.randint(int(low), int(high)) if kind == "integer" else draw.uniform(low, high)
    return {"boolean": draw.random() < 0.5, "null": None}.get(str(kind), "x")


def spoiled(body: Any, draw: random.Random) -> Any:
    """Return a body with one thing wrong, somewhere in it."""
    body = copy.deepcopy(body)
    if not isinstance(body, dict | list) or not body or draw.random() < 0.03:
        return draw.choice(ODD)(draw)
    keys = list(body) if isinstance(body, dict) else list(range(len(body)))
    key = draw.choice(keys)
    turn = draw.random()
    if turn < 0.2:
        del body[key]
    elif turn < 0.3 and isinstance(body, dict):
        body[draw.choice(["unknown", "", "__proto__", "a" * 500])] = draw.choice(ODD)(draw)
    elif turn < 0.6 and isinstance(body[key], dict | list):
        body[key] = spoiled(body[key], draw)
    else:
        body[key] = draw.choice(ODD)(draw)
    return body


def broken(data: bytes, draw: random.Random) -> bytes:
    """Return bytes that are no JSON, or hardly."""
    at = draw.randrange(len(data) + 1)
    return draw.choice(
        [data[:at], data[:at] + b"\xff\xfe" + data[at:], b"", b"null", b"[" * 2000, data + data, b"1" * 5000]
    )


def nested(depth: int) -> Any:
    """Return lists in lists."""
    found: Any = "deep"
    for _ in range(depth):
        found = [found]
    return found
