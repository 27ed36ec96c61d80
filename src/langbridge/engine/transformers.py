"""The reference engine: the LM of `transformers`, continuous batching, one thread that owns the model.

Each turn of the thread: forget what was cancelled, score what waits, read new prompts as far as there is room, and give
every running row one token. Nothing is stopped for a newcomer but for the time that its prompt takes to read.
"""

import asyncio
import contextlib
import copy
import functools
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from langbridge.checkpoint import LangBridge
from langbridge.engine.cache import sliding_layers
from langbridge.engine.jobs import Job, ScoringJob
from langbridge.engine.protocol import Load, Piece, Request, Scoring, Token
from langbridge.engine.rows import Rows
from langbridge.errors import EngineError
from langbridge.generate import check_length, end_ids

MOST_READ = 2048
"""Positions of new prompts after which running rows get their next token."""
Result = TypeVar("Result")
log = logging.getLogger("langbridge.engine")


class TransformersEngine:
    """Continues and scores prompts with a LangBridge's own LM.

    `most_rows`: completions that are continued at a time. `positions`: most rows x columns of the key-value cache; one
    row is let in however long it is.
    """

    def __init__(self, model: LangBridge, *, most_rows: int = 32, positions: int = 32_768) -> None:
        self.most_rows, self.positions = most_rows, positions
        self._lm = model.language_model
        self._tokenizer: PreTrainedTokenizerBase = copy.deepcopy(model.lm_tokenizer)  # tokenizers are of one thread
        self._ends = frozenset(end_ids(model))
        sliding = sliding_layers(self._lm.model.config)
        kinds = (False, True) if self._lm.adapted else (False,)
        self._rows = {alone: Rows(self._lm, self._tokenizer, self._ends, sliding) for alone in kinds}
        self._waiting: deque[Job] = deque()
        self._scorings: deque[ScoringJob] = deque()
        self._new: list[Job | ScoringJob] = []
        self._tokens = 0
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="langbridge-engine", daemon=True)
        self._thread.start()

    @property
    def longest(self) -> int | None:
        """Most LM positions of prompt and completion together."""
        return self._lm.longest

    async def generate(self, request: Request) -> AsyncGenerator[Piece]:
        """Yield the pieces of all completions as they come."""
        check_length(request.length, request.sampling.max_new_tokens, self.longest)
        job = Job(request, asyncio.get_running_loop())
        self._submit(job)
        left = request.n
        try:
            while left:
                piece = await job.next()
                left -= piece.finish is not None
                yield piece
        finally:
            job.cancelled = True

    async def score(self, scoring: Scoring) -> list[Token]:
        """Return the target's tokens with their log-likelihoods."""
        check_length(scoring.length, 0, self.longest)
        job = ScoringJob(scoring, asyncio.get_running_loop())
        self._submit(job)
        try:
            return await job.answer
        finally:
            job.cancelled = True

    def load(self) -> Load:
        """Return what there is to do now."""
        with self._wake:
            waiting = sum(job.request.n for job in self._waiting) + len(self._scorings) + len(self._new)
        return Load(running=sum(map(len, self._rows.values())), waiting=waiting, tokens=self._tokens)

    async def close(self) -> None:
        """Stop; requests that are still running raise EngineError."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _submit(self, job: Job | ScoringJob) -> None:
        with self._wake:
            if self._closing:
                raise EngineError("the engine is closed.")
            self._new.append(job)
            self._wake.notify()

    def _work(self) -> None:
        try:
            while self._take():
                self._score()
                for alone in self._rows:
                    with self._mode(alone):
                        self._turn(alone, self._rows[alone])
        finally:
            with self._wake:
                self._closing = True
            gone = EngineError("the engine was closed before this request was finished.")
            abandoned = [job for rows in self._rows.values() for job in rows.abandon()]
            for job in (*self._waiting, *self._scorings, *self._new, *abandoned):
                job.fail(gone)

    @contextlib.contextmanager
    def _mode(self, alone: bool) -> Iterator[None]:
        """Switch the LM's adapters off, or leave them as they are."""
        with torch.inference_mode(), self._lm.alone() if alone else contextlib.nullcontext():
            yield

    def _score(self) -> None:
        if self._scorings:
            job = self._scorings.popleft()
            with self._mode(job.scoring.alone):
                self._guarded(functools.partial(job.run, self._lm), lambda: [job])

    def _turn(self, alone: bool, rows: Rows) -> None:
        """Give each row a token, and let new rows in; what breaks down loses only what it was working on."""
        rows.forget_cancelled()
        self._tokens += self._guarded(rows.step, rows.abandon) or 0
        for first, jobs in rows.groups(self._admitted(alone)):
            self._let_in(rows, first, jobs)

    def _let_in(self, rows: Rows, first: tuple[int, ...], jobs: list[Job]) -> None:
        """Read prompts together; where that breaks down, one by one, so that only the guilty one is lost."""
        read = self._guarded(functools.partial(rows.read, first, jobs), lambda: jobs if len(jobs) == 1 else [])
        if read is not None:
            self._tokens += self._guarded(functools.partial(rows.join, read), lambda: [*jobs, *rows.abandon()]) or 0
        elif len(jobs) > 1:
            for job in jobs:
                self._let_in(rows, first, [job])

    def _take(self) -> bool:
        """Wait for work; sort it in; return False when the engine is to end."""
        with self._wake:
            if not (self._waiting or self._scorings or any(map(len, self._rows.values()))):
                self._wake.wait_for(lambda: self._new or self._closing)
            new, self._new = self._new, []
            waiting, scorings = [*self._waiting, *new], [*self._scorings, *new]
            self._waiting = deque(job for job in waiting if isinstance(job, Job) and not job.cancelled)
            self._scorings = deque(job for job in scorings if isinstance(job, ScoringJob) and not job.cancelled)
            return not self._closing

    def _guarded(self, part: Callable[[], Result], lost: Callable[[], Sequence[Job | ScoringJob]]) -> Result | None:
        """Run a part of the turn; where it breaks down, tell those who lost by it, and go on."""
        try:
            return part()
        except Exception as error:
            log.exception("a part of the engine's turn broke down")
            failure = EngineError(f"the engine broke down while it worked on this request ({type(error).__name__}).")
            for job in {id(job): job for job in lost()}.values():
                job.fail(failure)
            return None

    def _admitted(self, alone: bool) -> list[Job]:
        """Take what waits, first come first served, as far as there is room."""
        found, left = [], deque[Job]()
        count, columns, area = sum(map(len, self._rows.values())), self._rows[alone].wanted, 0
        while self._waiting and area <= MOST_READ:
            job = self._waiting.popleft()
            if (job.request.alone and self._lm.adapted) != alone:
                left.append(job)
                continue
            columns = max(columns, job.request.length + job.request.sampling.max_new_tokens)
            count += job.request.n
            area += job.request.length
            if (count > self.most_rows or count * columns > self.positions) and count > job.request.n:
                left.append(job)
                break
            found.append(job)
        with self._wake:
            self._waiting = left + self._waiting
        return found
