"""The rows that an LM continues together: read prompts, step, hand out pieces, let rows leave."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedTokenizerBase

from langbridge.engine.cache import RowsCache, reading_cache, whole
from langbridge.engine.jobs import Job, joined
from langbridge.engine.protocol import Piece, Token
from langbridge.engine.sampling import draw, generator_of
from langbridge.engine.text import TextPieces
from langbridge.model import Embeddings
from langbridge.model.language_model import LanguageModel
from langbridge.model.opening import Opening

REMEMBERED = 64
"""First parts of prompts that are remembered, to tell which come again."""


@dataclass
class Row:
    """One completion that is being continued."""

    job: Job
    index: int
    text: TextPieces
    generator: torch.Generator | None
    last: int = 0
    """Its newest token, which the LM has not read yet."""
    tokens: int = 0
    """New tokens so far."""


@dataclass(frozen=True)
class Prompts:
    """Prompts that the LM has read."""

    jobs: Sequence[Job]
    cache: Cache
    lengths: Sequence[int]
    """Columns of content that each row of the cache begins with."""
    logits: Tensor
    """(prompts, vocabulary): behind each prompt's last position."""


class Rows:
    """Rows of one LM, with its adapters on or off throughout."""

    def __init__(
        self,
        lm: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        ends: frozenset[int],
        sliding: Sequence[bool],
    ) -> None:
        self._lm, self._tokenizer, self._ends, self._sliding = lm, tokenizer, ends, sliding
        self._cache = RowsCache(sliding)
        self._rows: list[Row] = []
        self._firsts: OrderedDict[tuple[int, ...], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def wanted(self) -> int:
        """Columns that the longest row can grow to."""
        requests = [row.job.request for row in self._rows]
        return max((request.length + request.sampling.max_new_tokens for request in requests), default=0)

    def forget_cancelled(self) -> None:
        """Let go of rows that nobody waits for."""
        for number in reversed(range(len(self._rows))):
            if self._rows[number].job.cancelled:
                self._leave(number)

    def abandon(self) -> list[Job]:
        """Let go of everything; return whose it was."""
        jobs = list({id(row.job): row.job for row in self._rows}.values())
        self._rows = []
        self._cache = RowsCache(self._sliding)
        return jobs

    def step(self) -> int:
        """Give each row one more token; return how many there were."""
        if not self._rows:
            return 0
        self._cache.ready()
        ids = torch.tensor([[row.last] for row in self._rows])
        new = self._lm.embed(ids, torch.ones_like(ids))
        logits = self._lm.go_on(new, self._cache.held(self._lm.device), self._cache.cache)
        self._cache.advance()
        return self._say(list(range(len(self._rows))), logits)

    def groups(self, jobs: Sequence[Job]) -> list[tuple[tuple[int, ...], list[Job]]]:
        """Sort new prompts by the tokens in front that are read once for all: (tokens, jobs)."""
        groups: dict[tuple[int, ...], list[Job]] = {}
        for job in jobs:
            groups.setdefault(self._shared(job), []).append(job)
        return list(groups.items())

    def read(self, first: tuple[int, ...], jobs: Sequence[Job]) -> Prompts:
        """Let the LM read new prompts that begin with `first`, which changes nothing here yet."""
        opening = self._opening(first)
        start = opening.length if opening is not None else 0
        prompts = [joined(self._lm, job.request.parts[bool(start) :]) for job in jobs]
        lengths = [len(prompt) for prompt in prompts]
        mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths], device=self._lm.device)
        vectors = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)  # padded on the right
        cache = reading_cache(self._sliding, opening, len(jobs))
        logits = self._lm.go_on(Embeddings(vectors, mask), mask.new_ones(len(jobs), start), cache)
        return Prompts(jobs, cache, [start + n for n in lengths], logits)

    def join(self, read: Prompts) -> int:
        """Make rows of prompts that were read, and give each its first token; return how many rows there are."""
        copies = [job.request.n for job in read.jobs]
        self._cache.join(read.cache, read.lengths, copies)
        numbers = list(range(len(self._rows), len(self._rows) + sum(copies)))
        for job in read.jobs:
            sampling = job.request.sampling
            for index in range(job.request.n):
                text = TextPieces(self._tokenizer, sampling.stop)
                self._rows.append(Row(job, index, text, generator_of(sampling, index)))
        repeats = torch.tensor(copies, device=read.logits.device)
        return self._say(numbers, read.logits.repeat_interleave(repeats, dim=0))

    def _shared(self, job: Job) -> tuple[int, ...]:
        """Return the tokens in front that other prompts have too: the first part, once it was seen before."""
        first = job.request.parts[0]
        if isinstance(first, Tensor) or len(job.request.parts) == 1 or self._lm.learns:
            return ()
        seen = first in self._firsts
        self._firsts[first] = None
        self._firsts.move_to_end(first)
        if len(self._firsts) > REMEMBERED:
            self._firsts.popitem(last=False)
        return first if seen else ()

    def _opening(self, first: tuple[int, ...]) -> Opening | None:
        if not first:
            return None
        opening = self._lm.begin(torch.tensor([first]))
        return opening if opening is not None and whole(opening) else None

    def _say(self, numbers: Sequence[int], logits: Tensor) -> int:
        """Choose a token for each of these rows from its logits (rows, vocabulary), and tell whoever waits."""
        logits = logits.float()
        best = logits.argmax(dim=-1).tolist()
        said: list[tuple[Job, Piece]] = []
        done = []
        for number, row_logits, greedy in zip(numbers, logits, best, strict=True):
            row = self._rows[number]
            request = row.job.request
            row.last = greedy if row.generator is None else draw(row_logits, request.sampling, row.generator)
            row.tokens += 1
            piece = self._piece(row, row_logits)
            said.append((row.job, piece))
            if piece.finish is not None:
                done.append(number)
        for number in reversed(done):
            self._leave(number)
        for job, piece in said:  # behind the leaving: whoever hears of an end finds the row gone
            job.give(piece)
        return len(numbers)

    def _piece(self, row: Row, logits: Tensor) -> Piece:
        request, token = row.job.request, Token(row.last, float("nan"))
        if request.logprobs is not None:
            logs = logits.log_softmax(dim=-1)
            likeliest = logs.topk(request.logprobs)
            pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
            token = Token(row.last, float(logs[row.last]), tuple(pairs))
        ended = row.last in self._ends and not request.past_end
        text = "" if ended else row.text.add(row.last)
        if ended or row.text.stopped:
            return Piece(row.index, token, text + row.text.end(), "stop")
        if row.tokens >= request.sampling.max_new_tokens:
            return Piece(row.index, token, text + row.text.end(), "length")
        return Piece(row.index, token, text)

    def _leave(self, number: int) -> None:
        self._cache.leave(number)
        self._rows[number] = self._rows[-1]
        self._rows.pop()
