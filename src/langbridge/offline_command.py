"""`langbridge generate` from files to files. Imports late, as `cli` does."""

import dataclasses
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langbridge.errors import ConfigError

if TYPE_CHECKING:
    from langbridge.generate import Sampling
    from langbridge.offline.answerer import Answerer
    from langbridge.offline.run import Progress

Shard = Annotated[str, typer.Option(help="i/n: answer the i-th share of n, from 0; one for each machine.")]
PartLines = Annotated[int, typer.Option(help="Lines of a part, which is moved into place when all are answered.")]
BadLines = Annotated[str, typer.Option(help="Lines that are no prompts: refuse, or skip and report them.")]
SHOWN = 20
"""Bad lines that are told on stderr; all of them are in the .bad files."""
EVERY = 30.0
"""Seconds between two lines on progress, where stderr is no terminal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answering:
    """What is to answer, and how."""

    run: str
    sampling: "Sampling"
    plain: bool = False
    routing: str | None = None
    rows: int = 16
    """Prompts at a time."""
    dtype: str | None = None
    engine: str = "transformers"
    engine_set: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offline(Answering):
    """What `generate` is asked to do with files."""

    input: Path
    output: Path
    shard: str = "0/1"
    part_lines: int = 1000
    bad_lines: str = "refuse"


def generate_files(asked: Offline) -> None:
    """Answer files of prompts, from where an interrupted run stopped."""
    from langbridge.checkpoint import WEIGHTS, run_folder
    from langbridge.offline.run import Work, answer_files
    from langbridge.pretrained import quiet

    quiet()
    weights = hashlib.sha256((run_folder(asked.run) / WEIGHTS).read_bytes()).hexdigest()
    reader = "plain" if asked.plain else asked.routing or "as the run says"
    shard = shard_of(asked.shard)
    work = Work(
        input=asked.input.expanduser(),
        output=asked.output.expanduser(),
        merge=to_file(asked.input, asked.output, shard[1]),
        sampling=asked.sampling,
        made_by={"weights": weights, "reader": reader, "dtype": asked.dtype, "engine": asked.engine.split(":")[0]},
        part_lines=asked.part_lines,
        shard=shard,
        on_bad=asked.bad_lines,
        at_a_time=2 * asked.rows,
    )
    with Display(shard[1]) as display:
        done = answer_files(work, lambda: make_answerer(asked), display.move, display.report)
    bad = f", {done.bad:,} bad ones skipped (see the .bad files)" if done.bad else ""
    typer.echo(f"{done.lines:,} lines answered{bad}: {work.output}", err=True)


def make_answerer(asked: Answering) -> "Answerer":
    """Load the model and start its engine."""
    from langbridge.engine.choose import load_engine
    from langbridge.offline.answerer import Answerer

    model, engine = load_engine(
        asked.engine, asked.run, most_rows=asked.rows, dtype=asked.dtype, arguments=asked.engine_set
    )
    routing = dataclasses.replace(model.recipe.routing, kind=asked.routing or model.recipe.routing.kind)
    reader = "plain" if asked.plain else "bridge" if routing.kind == "off" else None
    return Answerer(model, engine, dataclasses.replace(routing, kind="off") if asked.plain else routing, reader=reader)


def to_file(given: Path, output: Path, shards: int) -> bool:
    """Tell whether answers go into one file, or into a folder of parts."""
    if output.name.endswith(".gz"):
        raise ConfigError(f"--output {output}: answers are not packed; name a .jsonl file or a folder.")
    return given.is_file() and shards == 1 and bool(output.suffix) and not output.is_dir()


def shard_of(text: str) -> tuple[int, int]:
    """Read i/n; raises ConfigError."""
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise ConfigError(f"--shard {text}: wanted i/n with 0 <= i < n, such as 0/4, 1/4, 2/4 and 3/4.")
    return int(first), int(second)


class Display:
    """Progress on stderr: a bar in a terminal, else a line now and then."""

    def __init__(self, shards: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bar

        self._shards, self._told, self._bad = shards, time.monotonic(), 0
        console = Console(stderr=True)
        self._terminal = console.is_terminal
        columns = (TextColumn("answering"), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=console, disable=not self._terminal)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.stop()

    def move(self, progress: "Progress") -> None:
        """Show how far it is."""
        now = time.monotonic()
        if now - self._told < (0.2 if self._terminal else EVERY):
            return
        self._told = now
        text = described(progress, self._shards)
        if self._terminal:
            self._bar.update(self._task, completed=progress.position, total=progress.total, description=text)
        else:
            print(f"{progress.position / max(1, progress.total):.1%} read, {text}", file=sys.stderr, flush=True)

    def report(self, complaint: str) -> None:
        """Tell of a bad line."""
        self._bad += 1
        if self._bad <= SHOWN:
            self._bar.console.print(f"skipped: {complaint}", markup=False, highlight=False, soft_wrap=True)
        if self._bad == SHOWN:
            self._bar.console.print("further bad lines are only in the .bad files", markup=False)


def described(progress: "Progress", shards: int) -> str:
    """Return speed and remaining time in words."""
    left = progress.remaining(shards)
    when = "" if left is None else f", {int(left) // 3600}:{int(left) // 60 % 60:02}:{int(left) % 60:02} left"
    return f"{progress.lines:,} lines, {progress.rate:.1f}/s{when}"
