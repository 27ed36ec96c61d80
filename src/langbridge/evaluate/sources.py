"""Records of benchmark data: tab-separated files, JSON, and hub data sets. Knows no task."""

import csv
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langbridge.data.bad import HARMLESS, Bad
from langbridge.data.tables import records
from langbridge.errors import DataError

Record = dict[str, Any]
CONVERTED = "refs/convert/parquet"
"""Branch on which the hub keeps a copy of data sets whose own form is a script, which nobody runs any more."""


def json_lines(path: Path, fields: Sequence[str]) -> list[Record]:
    """Read JSON lines, each with all of `fields`; raises DataError with the line."""
    found = []
    for record, where, _ in records(str(path)):
        if isinstance(record, Bad):
            if record.kind in HARMLESS:
                continue
            raise DataError(f"{where}: {record.why}.")
        if missing := [field for field in fields if field not in record]:
            raise DataError(f"{where}: wanted an object with {', '.join(fields)}; {missing[0]} is missing.")
        found.append(record)
    return _some(found, path)


def json_value(path: Path) -> Any:
    """Read one JSON value; raises DataError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.") from error


def tsv(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Read tab-separated lines; `columns`: their names, where the first line does not hold them. Raises DataError."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, columns, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as tab-separated text: {error}.") from error
    for number, row in enumerate(rows, start=1 if columns else 2):
        if None in row or None in row.values():
            raise DataError(f"{path}, line {number}: wanted {len(columns or rows[0])} columns, found more or fewer.")
    return _some(rows, path)


def needed(rows: list[dict[str, str]], columns: Sequence[str], path: Path) -> list[dict[str, str]]:
    """Return rows that have all of `columns`; raises DataError."""
    if missing := [column for column in columns if column not in rows[0]]:
        raise DataError(f"{path}: wanted the columns {', '.join(columns)}; {missing[0]} is missing.")
    return rows


def hub(identity: str, config: str | None, split: str) -> list[Record]:
    """Read one split of a hub data set (or of a folder laid out as one); raises DataError."""
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"reading {identity} from the hub needs `pip install 'langbridge-lm[data]'`; or name a folder with --data."
        )
    from datasets import load_dataset

    failures: list[Exception] = []
    for revision in (None, CONVERTED):
        try:
            return [dict(row) for row in load_dataset(identity, config, split=split, revision=revision)]
        except Exception as error:  # the library raises many kinds; each means: not to be had
            failures.append(error)
    name = f"{identity} ({config}, {split})"
    raise DataError(
        f"{name} is not to be had from the hub, nor in the local cache ({type(failures[0]).__name__}: "
        f"{str(failures[0]).splitlines()[0][:120]}): is this machine online? Or name a folder with --data."
    ) from failures[0]


def files(folder: Path, pattern: str, wanted: str) -> list[Path]:
    """Return the files of a folder that match; raises DataError when there is none."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise DataError(f"{folder} holds no {wanted}.")
    return found


def _some(rows: list[Any], path: Path) -> list[Any]:
    if not rows:
        raise DataError(f"{path} holds no record.")
    return rows
