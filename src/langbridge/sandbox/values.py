"""Values as text between a program and its judge: plain data only, so that no object of the program's own gets through.

Lists, tuples, sets and dictionaries stay what they are; subclasses become the plain kind. A range, an iterator or an
object of any other type is `Strange`, which equals nothing.
"""

import json
from typing import Any

_PLAIN = (bool, int, float, str, type(None))
_KINDS: dict[str, Any] = {"tuple": tuple, "list": list, "set": set, "frozenset": frozenset}


class Strange:
    """A value that cannot be carried over; equal to nothing."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<a value of type {self.kind}>"


def pack(value: Any) -> str:
    """Return a value as one line of text."""
    return json.dumps(_packed(value))


def unpack(text: str) -> Any:
    """Return the value that `pack` wrote; raises ValueError or RecursionError for anything else."""
    return _unpacked(json.loads(text))


def _packed(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain(value)
    for name, kind in _KINDS.items():
        if isinstance(value, kind):
            return {name: [_packed(part) for part in value]}
    if isinstance(value, dict):
        return {"dict": [[_packed(key), _packed(part)] for key, part in value.items()]}
    if isinstance(value, bytes):
        return {"bytes": value.decode("latin-1")}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return {"strange": type(value).__name__[:100]}


def _unpacked(found: Any) -> Any:
    if isinstance(found, _PLAIN):
        return found
    if not isinstance(found, dict) or len(found) != 1:
        raise ValueError("wanted an object of one field")
    name, content = next(iter(found.items()))
    try:
        if name in _KINDS:
            return _KINDS[name](_unpacked(part) for part in content)
        if name == "dict":
            return {_unpacked(key): _unpacked(part) for key, part in content}
        if name == "bytes":
            return content.encode("latin-1")
        if name == "complex":
            return complex(*content)
        if name == "strange":
            return Strange(str(content))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"wrong content of {name!r}: {error}") from error
    raise ValueError(f"unknown kind {name!r}")
