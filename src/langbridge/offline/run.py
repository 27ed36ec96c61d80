"""Answer files of prompts: part by part, where an interrupted run stopped, on one machine or on several."""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from langbridge.errors import ConfigError, DataError, EngineError, PromptError
from langbridge.files import write_text
from langbridge.generate import Sampling
from langbridge.offline.answerer import Answerer, sampling_of
from langbridge.offline.lines import Line, Prompt, Source, prompt_of, read, sources
from langbridge.offline.parts import ANSWER, BAD, OpenPart, bad_path, journal_path, part_path

SETTINGS, INPUT = "settings.json", "input.json"
MERGED = "merged"
"""Where parts are put together; the folder goes when that is done, and with it what an interruption left."""
ON_BAD = ("refuse", "skip")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be answered, where to, and which share of it."""

    input: Path
    output: Path
    """A file, where `merge`; else a folder, with a folder of parts for each input file."""
    merge: bool
    sampling: Sampling
    made_by: dict[str, Any]
    """What else decides the answers: output that was begun otherwise is not gone on with."""
    part_lines: int = 1000
    shard: tuple[int, int] = (0, 1)
    """This machine's number, from 0, and how many there are: it answers every so many-th part."""
    on_bad: str = "refuse"
    """What to do about lines that are no prompts: end with an error, or skip and report them."""
    at_a_time: int = 32
    """Lines that are being answered at a time."""

    def __post_init__(self) -> None:
        number, count = self.shard
        if self.part_lines < 1 or not 0 <= number < count:
            raise ConfigError(
                f"need part_lines >= 1 and a shard i/n with 0 <= i < n, got {self.part_lines}, {self.shard}."
            )
        if self.on_bad not in ON_BAD:
            raise ConfigError(f"bad lines: wanted {' or '.join(ON_BAD)}, got {self.on_bad!r}.")
        if self.merge and (count > 1 or not self.input.is_file()):
            raise ConfigError(f"--output {self.output}: several machines and input folders need a folder as output.")
        inside = self.output.resolve().is_relative_to(self.input.resolve())
        if inside:
            raise ConfigError(f"--output {self.output} lies inside --input {self.input}: choose another place.")

    @property
    def folder(self) -> Path:
        """Where the parts are."""
        return self.output.with_name(self.output.name + ".parts") if self.merge else self.output

    @property
    def worker(self) -> str:
        """This machine's name in the folder of parts."""
        return f"{self.shard[0]}-of-{self.shard[1]}"


@dataclass
class Progress:
    """How far a run is."""

    total: int = 0
    """Bytes of all input files, as they lie on the disk."""
    position: int = 0
    """Bytes that were read."""
    passed: int = 0
    """Bytes of them that were answered before, or belong to other machines."""
    lines: int = 0
    """Lines that were answered in this run."""
    bad: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def rate(self) -> float:
        """Lines a second."""
        return self.lines / max(1e-9, time.monotonic() - self.began)

    def remaining(self, shards: int) -> float | None:
        """Return the seconds that are left, None where nothing is known yet."""
        own = self.position - self.passed
        if not self.lines or own <= 0:
            return None
        return (self.total - self.position) / shards * (time.monotonic() - self.began) / own


def answer_files(
    work: Work, make: Callable[[], Answerer], moved: Callable[[Progress], None], report: Callable[[str], None]
) -> Progress:
    """Answer what is not answered yet; `make` is called once, where there is any such line.

    Raises DataError for input that is missing, damaged or has changed, for lines that are no prompts (unless they are
    to be skipped: then `report` is told), and where another process is at work or settings differ; EngineError for
    breakdowns. Whatever was answered until then is kept.
    """
    files = sources(work.input)
    work.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work.folder / f".{work.worker}.lock", timeout=0):
            _check(work.folder / SETTINGS, _settings(work), "was begun with other settings")
            progress = Progress(total=sum(file.path.stat().st_size for file in files))
            asyncio.run(_Run(work, make, moved, report, progress).all(files))
            if work.merge:
                _merge(work)
    except Timeout as error:
        raise DataError(f"{work.folder}: another process is answering shard {work.worker} here; let it end.") from error
    if work.merge:
        _remove(work.folder)
    return progress


class _Run:
    """One process's share."""

    def __init__(
        self,
        work: Work,
        make: Callable[[], Answerer],
        moved: Callable[[Progress], None],
        report: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self._work, self._make, self._moved, self._report, self._progress = work, make, moved, report, progress
        self._answerer: Answerer | None = None
        self._free = asyncio.Semaphore(work.at_a_time)
        self._open: set[OpenPart] = set()

    async def all(self, files: list[Source]) -> None:
        """Answer every line of this machine's parts."""
        try:
            async with asyncio.TaskGroup() as group:
                number, before = 0, 0
                for file in files:
                    number = await self._file(group, file, number, before)
                    before += file.path.stat().st_size
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed.exceptions[0].__cause__
        finally:
            for part in self._open:
                part.close()
            if self._answerer is not None:
                await self._answerer.close()

    async def _file(self, group: asyncio.TaskGroup, file: Source, number: int, before: int) -> int:
        """Answer a file's lines; `number` counts the parts of all files in front, `before` their bytes."""
        work, progress = self._work, self._progress
        folder = work.folder if work.merge else work.folder / file.name
        _check(folder / INPUT, _identity(file), "was made from another input")
        part: OpenPart | None = None
        last = before
        for line in read(file):
            if (line.number - 1) % work.part_lines == 0:
                self._all_read(part)
                part = self._part(folder, (line.number - 1) // work.part_lines, number)
                number += 1
                await asyncio.sleep(0)  # whoever waits for an answer is not kept waiting by parts that are done
            progress.position = before + line.position
            if part is None or line.number in part.done:
                progress.passed += progress.position - last
            else:
                await self._line(group, file, line, part)
            last = progress.position
            self._moved(progress)
        self._all_read(part)
        return number

    def _part(self, folder: Path, index: int, number: int) -> OpenPart | None:
        """Open a part; None where it is done, or another machine's."""
        path, (own, count) = part_path(folder, index), self._work.shard
        if number % count != own:
            return None
        if path.exists():
            journal_path(path, self._work.worker).unlink(missing_ok=True)
            return None
        part = OpenPart(path, self._work.worker)
        self._open.add(part)
        return part

    async def _line(self, group: asyncio.TaskGroup, file: Source, line: Line, part: OpenPart) -> None:
        try:
            prompt = prompt_of(file, line)
        except DataError as error:
            self._bad(file, line, part, error)
            return
        if prompt is not None:
            self._answerer = self._answerer or self._make()
            await self._free.acquire()
            part.waiting += 1
            group.create_task(self._answer(self._answerer, file, line, prompt, part))

    async def _answer(self, answerer: Answerer, file: Source, line: Line, prompt: Prompt, part: OpenPart) -> None:
        where = f"{file.path}, line {line.number}"
        try:
            said = await answerer.answer(prompt.text, sampling_of(self._work.sampling, file.name, line.number))
            part.add(line.number, ANSWER, prompt.record(**said.fields()))
            self._progress.lines += 1
        except PromptError as error:
            self._bad(file, line, part, DataError(f"{where}: {error}"))
        except EngineError as error:
            raise EngineError(f"{where}: {error} What was answered is kept; the same command goes on.") from error
        finally:
            self._free.release()
        part.waiting -= 1
        self._finish(part)
        self._moved(self._progress)

    def _bad(self, file: Source, line: Line, part: OpenPart, error: DataError) -> None:
        if self._work.on_bad == "refuse":
            raise error
        self._report(str(error))
        entry = {"file": file.name, "line": line.number, "error": str(error)}
        part.add(line.number, BAD, json.dumps(entry, ensure_ascii=False))
        self._progress.bad += 1

    def _all_read(self, part: OpenPart | None) -> None:
        if part is not None:
            part.read = True
            self._finish(part)

    def _finish(self, part: OpenPart) -> None:
        if part.read and not part.waiting:
            part.finish()
            self._open.discard(part)


def _identity(file: Source) -> dict[str, Any]:
    """Return what tells a file from another, without reading all of it."""
    with file.path.open("rb") as opened:
        beginning = hashlib.sha256(opened.read(2**20)).hexdigest()
    return {"bytes": file.path.stat().st_size, "beginning": beginning}


def _settings(work: Work) -> dict[str, Any]:
    how = work.sampling
    sampling = {"max_new_tokens": how.max_new_tokens, "temperature": how.temperature, "stop": list(how.stop)}
    drawn = {"top_p": how.top_p, "top_k": how.top_k, "seed": how.seed} if how.temperature else {}
    return {**work.made_by, **sampling, **drawn, "part_lines": work.part_lines}


def _check(path: Path, wanted: dict[str, Any], complaint: str) -> None:
    """Write down what made a folder, or compare; raises DataError where it was made otherwise."""
    if not path.exists():
        write_text(path, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): choose another --output, or remove its folder.") from error
    if differing := [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]:
        name = differing[0]
        raise DataError(
            f"{path.parent} {complaint}: {name} was {found.get(name)!r}, now it is {wanted.get(name)!r}. Go on as it "
            "was begun, choose another --output, or remove that folder."
        )


def _merge(work: Work) -> None:
    """Put the parts of a file behind each other, and their reports of bad lines, where there are any."""
    parts = list(_parts(work.folder))
    report = bad_path(work.output)
    report.unlink(missing_ok=True)
    if bad := [path for path in map(bad_path, parts) if path.exists()]:
        _join(bad, work.folder / MERGED, report)
    _join(parts, work.folder / MERGED, work.output)


def _join(paths: list[Path], temporary: Path, target: Path) -> None:
    with temporary.open("wb") as out:
        for path in paths:
            with path.open("rb") as part:
                shutil.copyfileobj(part, out)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(target)


def _parts(folder: Path) -> Iterator[Path]:
    number = 0
    while (path := part_path(folder, number)).exists():
        yield path
        number += 1


def _remove(folder: Path) -> None:
    """Remove a folder of parts at once, so that half of it is never taken for a run to go on with."""
    gone = folder.with_name(folder.name + ".done")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
