"""Pieces -> OpenAI's JSON, whole or as a stream of events."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from langbridge.engine import Token
from langbridge.serve.service import Begun, EchoTokens, Said

Json = dict[str, Any]
Decode = Callable[[Sequence[int]], str]
HALF = "\ufffd"


@dataclass
class Choice:
    """One completion as it grows."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None

    def add(self, said: Said) -> None:
        """Take a piece."""
        self.text += said.piece.text
        self.tokens.append(said.piece.token)
        self.finish = said.piece.finish


@dataclass(frozen=True, kw_only=True)
class Form:
    """How one request is answered."""

    model: str
    decode: Decode
    n: int
    logprobs: bool
    echo: bool = False
    made: int = field(default_factory=lambda: int(time.time()))

    def number(self, said: Said) -> int:
        """Return the choice that a piece belongs to."""
        return said.prompt * self.n + said.piece.index


def usage(begun: Begun) -> Json:
    """Return token counts; `encoder_tokens` are beyond OpenAI's."""
    record = begun.record
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "total_tokens": record.prompt_tokens + record.completion_tokens,
        "encoder_tokens": record.encoder_tokens,
    }


def about(begun: Begun) -> Json:
    """Return who read the prompts, and how long it took: beyond OpenAI's fields."""
    return {"prompts": [one.record() for one in begun.prepared], "timings": begun.record.timings()}


class Completions:
    """The JSON of `/v1/completions`."""

    kind, chunk, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, form: Form) -> None:
        self.form = form
        self._written: dict[int, int] = {}
        """Characters of each choice whose tokens were told."""

    def opening(self, begun: Begun) -> Iterator[Json]:
        """Yield what a stream says before the LM does: the echoed prompt."""
        form = self.form
        for number in range(len(begun.prepared) * form.n if form.echo else 0):
            text, echo = _echoed(begun, number // form.n)
            yield {"index": number, "text": text, "logprobs": self._logprobs(number, echo), "finish_reason": None}

    def piece(self, said: Said) -> Json:
        """Return one choice of a stream's event."""
        number = self.form.number(said)
        return {
            "index": number,
            "text": said.piece.text,
            "logprobs": self._logprobs(number, [(said.piece.token.id, said.piece.token)]),
            "finish_reason": said.piece.finish,
        }

    def whole(self, begun: Begun, number: int, choice: Choice) -> Json:
        """Return one choice of a whole answer."""
        text, echo = _echoed(begun, number // self.form.n) if self.form.echo else ("", [])
        tokens = [*echo, *((token.id, token) for token in choice.tokens)]
        return {
            "index": number,
            "text": text + choice.text,
            "logprobs": self._logprobs(number, tokens),
            "finish_reason": choice.finish or "length",
        }

    def _logprobs(self, number: int, tokens: EchoTokens) -> Json | None:
        if not self.form.logprobs:
            return None
        names = [self.form.decode([i]) for i, _ in tokens]
        offsets = [self._written.get(number, 0)]
        for name in names:
            offsets.append(offsets[-1] + len(name))
        self._written[number] = offsets.pop()
        return {
            "tokens": names,
            "token_logprobs": [None if token is None else token.logprob for _, token in tokens],
            "top_logprobs": [None if token is None else self._top(token) for _, token in tokens],
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> Json:
        found: Json = {}
        for i, logprob in (*token.likeliest, (token.id, token.logprob)):
            found.setdefault(self.form.decode([i]), logprob)  # pieces of characters may look alike: the likelier stays
        return found


class Chats:
    """The JSON of `/v1/chat/completions`."""

    kind, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, form: Form) -> None:
        self.form = form

    def opening(self, begun: Begun) -> Iterator[Json]:
        """Yield what a stream says before the LM does: whose turn it is."""
        for number in range(len(begun.prepared) * self.form.n):
            delta = {"role": "assistant", "content": ""}
            yield {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}

    def piece(self, said: Said) -> Json:
        """Return one choice of a stream's event."""
        return {
            "index": self.form.number(said),
            "delta": {"content": said.piece.text} if said.piece.text else {},
            "logprobs": self._logprobs([said.piece.token]),
            "finish_reason": said.piece.finish,
        }

    def whole(self, begun: Begun, number: int, choice: Choice) -> Json:
        """Return one choice of a whole answer."""
        return {
            "index": number,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.tokens),
            "finish_reason": choice.finish or "length",
        }

    def _logprobs(self, tokens: Sequence[Token]) -> Json | None:
        if not self.form.logprobs:
            return None
        content = [
            {**self._named(token.id, token.logprob), "top_logprobs": [self._named(*one) for one in token.likeliest]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _named(self, i: int, logprob: float) -> Json:
        name = self.form.decode([i])
        return {"token": name, "logprob": logprob, "bytes": None if HALF in name else list(name.encode())}


def _echoed(begun: Begun, prompt: int) -> tuple[str, EchoTokens]:
    echo = begun.prepared[prompt].echo
    assert echo is not None
    return echo.text, begun.echoes[prompt] if begun.echoes else []


def envelope(kind: Completions | Chats, begun: Begun, choices: Sequence[Json], *, chunk: bool) -> Json:
    """Return choices in what stands around them in a whole answer, or in one event of a stream."""
    return {
        "id": f"{kind.prefix}-{begun.record.id}",
        "object": kind.chunk if chunk else kind.kind,
        "created": kind.form.made,
        "model": kind.form.model,
        "choices": list(choices),
    }


def whole(kind: Completions | Chats, begun: Begun, choices: Sequence[Choice]) -> Json:
    """Return a whole answer."""
    found = [kind.whole(begun, number, choice) for number, choice in enumerate(choices)]
    return {**envelope(kind, begun, found, chunk=False), "usage": usage(begun), "langbridge": about(begun)}


def event(data: Json) -> bytes:
    """Return one event of a stream."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
