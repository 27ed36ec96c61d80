"""Finished rows of an evaluation, kept on disk after each language, so that an interrupted one goes on."""

import hashlib
import json
from pathlib import Path
from typing import Any

from langbridge.checkpoint import WEIGHTS, run_folder
from langbridge.files import write_text


class Rows(dict[str, dict[str, Any]]):
    """Rows by language; with a path, each new row is saved in `<path>.partial` at once.

    A partial file is only used again when `made_by` (weights, task, data, limits) is the same.
    """

    def __init__(self, path: Path | None = None, made_by: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.partial = path.with_name(path.name + ".partial") if path else None
        self.made_by = made_by or {}
        if self.partial is not None and self.partial.is_file():
            try:
                found = json.loads(self.partial.read_text(encoding="utf-8"))
            except ValueError:
                return
            if found.get("made_by") == self.made_by:
                super().update(found["rows"])

    def __setitem__(self, language: str, row: dict[str, Any]) -> None:
        super().__setitem__(language, row)
        if self.partial is not None:
            write_text(self.partial, json.dumps({"made_by": self.made_by, "rows": self}, ensure_ascii=False))

    def close(self) -> None:
        """Remove the partial file, once the result is written."""
        if self.partial is not None:
            self.partial.unlink(missing_ok=True)


def fingerprint(run: str, texts: object, **settings: Any) -> dict[str, Any]:
    """Return what decides the rows of an evaluation: weights, data and settings."""
    weights = hashlib.sha256((run_folder(run) / WEIGHTS).read_bytes()).hexdigest()
    data = hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode()).hexdigest()
    return {"weights": weights, "data": data, **settings}
