"""The frame of a study: cells that are kept as they are finished, and one page that says what they show.

A study is one file of this folder: a class that inherits from `Study`, and a line in `studies.py`. Its folder holds
`result.json` (set-up, cells, versions), the figures (PNG and SVG) and `README.md`, the page. An interrupted study goes
on with the first cell that is missing; several processes share the cells of one folder between them.
"""

import dataclasses
import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from langbridge.analyse.figures import Figure, save
from langbridge.checkpoint import SHIPPED, WEIGHTS, run_folder, versions
from langbridge.data.parallel import Parallel, read_parallel
from langbridge.errors import DataError
from langbridge.files import write_text

RESULT, PAGE = "result.json", "README.md"
MEASURES = ("transfer", "facts", "tasks")
Cell = dict[str, Any]
Progress = Callable[[str, int, int], None]
"""Called with (name of the cell, done, total)."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a study is run: what its command line says."""

    out: Path
    """Folder of the result."""
    work: Path
    """Folder of what is only needed meanwhile: states, trainings. Each set-up has a folder of its own in it."""
    run: str = SHIPPED
    """Run folder that is looked at, where a study trains nothing."""
    data: Path | None = None
    """Folder of data sets, or of parallel text; None: the package's sanity set."""
    recipe: Path | None = None
    """Recipe that trainings begin with, where a study trains."""
    languages: tuple[str, ...] = ()
    """Test languages of a training grid; empty: all of the parallel text but the development languages."""
    sentences: int | None = None
    """First so many sentences of each language; None: the study's own choice."""
    steps: int | None = None
    """Training steps of a cell; None: the study's own choice."""
    seeds: tuple[int, ...] = (1, 2, 3)
    only: tuple[str, ...] = ()
    """Settings of a training grid, by name or by the beginning of their names; empty: all."""
    overrides: tuple[str, ...] = ()
    """Fields of the recipe, as a.b=c."""
    dtype: str | None = None
    quick: bool = False
    """A small part of everything: does it run?"""
    measure: tuple[str, ...] = MEASURES
    """What a training grid measures of its bridges: transfer always, facts and benchmarks (tasks)."""
    command: str = ""
    """How it was called, for the page."""

    def parallel(self) -> Parallel:
        """Return the parallel text: `tatoeba` in a folder of data sets, the folder itself, or the sanity set."""
        inner = self.data / "tatoeba" if self.data is not None else None
        return read_parallel(inner if inner is not None and inner.is_dir() else self.data)


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a study says; Markdown, but for the figures."""

    method: str
    result: str
    interval: str
    """What the intervals are, and over what."""
    limits: str
    figures: Mapping[str, tuple[Figure, str]] = field(default_factory=dict)
    """(figure, caption) by file name."""


class Study(ABC):
    """Inherit from this: name, question, cells, measure and page."""

    name: ClassVar[str]
    question: ClassVar[str]
    uses: ClassVar[frozenset[str]] = frozenset({"run", "dtype"})
    """Fields of `Setting` that not every study uses, and that this one does."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @abstractmethod
    def cells(self) -> list[str]:
        """Return the names of all cells in the order in which they are measured."""

    @abstractmethod
    def measure(self, cell: str) -> Cell:
        """Return what one cell holds, as JSON takes it."""

    @abstractmethod
    def page(self, cells: Mapping[str, Cell]) -> Page:
        """Return the page; `cells` may lack some while the study is under way."""

    def ready(self, cells: Mapping[str, Cell]) -> bool:
        """Tell whether there is enough for a page: usually all of it."""
        return set(self.cells()) <= set(cells)

    def setup(self) -> dict[str, Any]:
        """Return what decides the cells: another set-up needs another folder."""
        return {**self.basis(), "quick": self.setting.quick, "sentences": self.setting.sentences}

    def basis(self) -> dict[str, Any]:
        """Return what the cells are measured on: by default the run's weights and the data."""
        weights = hashlib.sha256((run_folder(self.setting.run) / WEIGHTS).read_bytes()).hexdigest()[:16]
        return {"run": run_name(self.setting), "weights": weights, "data": data_name(self.setting), "dtype": self.dtype}

    @property
    def dtype(self) -> str:
        """Type that the frozen models compute in."""
        return self.setting.dtype or "float32"


def data_name(setting: Setting) -> str:
    """Return what the data is called in a record: no path of this machine."""
    return "sanity" if setting.data is None else setting.data.name


def run_name(setting: Setting) -> str:
    """Return what the run is called in a record: no path of this machine."""
    return Path(setting.run).name


def shown_path(path: Path) -> str:
    """Return a path as a record has it: from the folder of the call, or the name alone of what lies outside."""
    whole, here = path.expanduser().absolute(), Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else whole.name


def shown_field(field: str) -> str:
    """Return a field of the recipe, as a.b=c, as a record has it."""
    name, _, value = field.partition("=")
    return f"{name}={shown_path(Path(value))}" if Path(value).is_absolute() else field


def fields_set(setting: Setting) -> dict[str, Any]:
    """Return for the set-up what was set of the recipe; a digest tells paths apart that are shown alike."""
    fields, shown = list(setting.overrides), [shown_field(field) for field in setting.overrides]
    digest = hashlib.sha256("\n".join(fields).encode()).hexdigest()[:16]
    return {"set": shown} if shown == fields else {"set": shown, "paths": digest}


def conduct(study: Study, progress: Progress = lambda text, done, total: None) -> Path:
    """Measure the cells that are missing, keep each at once, and return the page.

    A cell that another process is at is left to it. Raises DataError when the folder holds the study with another
    set-up.
    """
    study.setting = dataclasses.replace(study.setting, work=_own_work(study))
    names, claims = study.cells(), study.setting.work / "claims"
    claims.mkdir(parents=True, exist_ok=True)
    cells = _opened(study)["cells"]
    for done, name in enumerate(names):
        progress(name, done, len(names))
        claim = FileLock(claims / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock")
        try:
            with claim.acquire(timeout=0):
                cells = _opened(study)["cells"]
                if name not in cells:
                    began = time.monotonic()
                    found = study.measure(name)
                    cells = _keep(study, name, {**found, "minutes": round((time.monotonic() - began) / 60, 2)})
        except Timeout:
            continue
    progress("page", len(names), len(names))
    with _held(study):
        kept = _opened(study)
        if not study.ready(kept["cells"]):
            missing = ", ".join(name for name in names if name not in kept["cells"])
            raise DataError(f"{study.setting.out}: no page yet, as another process is still at {missing}.")
        return write_page(study, kept)


def _own_work(study: Study) -> Path:
    """Return the folder of this set-up in the work folder: states and trainings there do not say what made them."""
    setup = json.dumps([study.name, study.setup()], sort_keys=True)
    own, work = hashlib.sha256(setup.encode()).hexdigest()[:12], study.setting.work
    return work if work.name == own else work / own  # it may have been conducted before


def _held(study: Study) -> FileLock:
    return FileLock(study.setting.work / "claims" / "result.lock")


def _keep(study: Study, name: str, cell: Cell) -> Mapping[str, Cell]:
    """Add a cell to what this and other processes have kept, and return all of them."""
    with _held(study):
        kept = _opened(study)
        kept["cells"][name] = cell
        kept["versions"] = versions()
        write_text(study.setting.out / RESULT, json.dumps(kept, ensure_ascii=False) + "\n")
        if study.ready(kept["cells"]):
            write_page(study, kept)
    cells: Mapping[str, Cell] = kept["cells"]
    return cells


def _opened(study: Study) -> dict[str, Any]:
    path, setup = study.setting.out / RESULT, json.loads(json.dumps(study.setup()))
    if not path.is_file():
        return {"study": study.name, "setup": setup, "cells": {}}
    kept = read_study(path)
    if kept["study"] != study.name or kept["setup"] != setup:
        differ = [name for name in {*setup, *kept["setup"]} if setup.get(name) != kept["setup"].get(name)]
        raise DataError(
            f"{path} holds study {kept['study']!r} of another set-up ({', '.join(sorted(differ)) or 'name'} differ): "
            "choose another --out, or delete it."
        )
    return kept


def read_study(path: Path) -> dict[str, Any]:
    """Read the result of a study; raises DataError when the file is something else."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as the result of a study: {error}") from error
    if not isinstance(kept, dict) or not {"study", "setup", "cells"} <= set(kept):
        raise DataError(f"{path} is not the result of a study.")
    return kept


def write_page(study: Study, kept: dict[str, Any]) -> Path:
    """Write figures and page, and return the page's path."""
    out, names = study.setting.out, study.cells()
    cells = {name: kept["cells"][name] for name in [*names, *kept["cells"]] if name in kept["cells"]}
    page = study.page(cells)
    pictures = []
    for name, (figure, caption) in page.figures.items():
        save(figure, out / name)
        pictures.append(f"![{caption}]({name}.svg)\n\n*{caption}*\n")
    missing = [name for name in names if name not in cells]
    note = f"\n**Under way: {len(missing)} of {len(names)} cells are missing.**\n" if missing else ""
    made = ", ".join(f"{name} {version}" for name, version in kept.get("versions", {}).items())
    minutes = sum(cell.get("minutes", 0) for cell in cells.values())
    quick = " Quick mode: a trial of the code, not a result." if study.setting.quick else ""
    text = (
        f"# {study.name}\n\n{study.question}\n{note}\n## Method\n\n{page.method}\n\n## Result\n\n{page.result}\n\n"
        + "\n".join(pictures)
        + f"\n## Interval\n\n{page.interval}\n\n## Limits\n\n{page.limits}\n\n## How it was made\n\n"
        f"`{study.setting.command}`; set-up {_shown(kept['setup'])}; {made}; {minutes:.1f} minutes.{quick} "
        f"Data: `{RESULT}`.\n"
    )
    write_text(out / PAGE, text)
    return out / PAGE


def _shown(setup: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in setup.items() if value not in (None, [], False))
