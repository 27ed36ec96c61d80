"""The LM on a vLLM server that trusts us: soft prompts are content parts of chat messages, or the whole is vectors.

Where a prompt is a conversation in the LM's own chat template, it goes to `/v1/chat/completions` as messages, so that
tokens stay tokens. Any other prompt goes to `/v1/completions`, its tokens as the vectors that stand for them.
Such a server must not be reached by anybody else: whoever may send it vectors may do more.
"""

import base64
import copy
import importlib.util
import io
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from langbridge.checkpoint import LangBridge
from langbridge.engine.jobs import joined
from langbridge.engine.pieces import Asked
from langbridge.engine.protocol import Load, Part, Piece, Request, Scoring, Token
from langbridge.engine.sampling import seed_of
from langbridge.errors import ConfigError, EngineError, PromptError
from langbridge.generate import check_length, end_ids

KEY = "LANGBRIDGE_VLLM_KEY"
"""Environment variable of the server's API key, where it wants one."""
TOKEN = "token_id:"
"""What stands in front of tokens in the server's log-probabilities."""


class RemoteVllmEngine:
    """Continues prompts with a run's LM on a vLLM server; `front` needs no layers of it.

    `url` ends in /v1; `model` is what the server calls the LM (default: its first). Raises EngineError where nobody
    answers.
    """

    def __init__(self, front: LangBridge, url: str, *, most_rows: int = 32, model: str | None = None) -> None:
        if importlib.util.find_spec("openai") is None:
            raise ConfigError("a remote vLLM needs the openai package: pip install 'langbridge-lm[remote]'.")
        import openai

        self.most_rows = most_rows
        key = os.environ.get(KEY) or "none"
        self._client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0)
        found = served(url, key, model)
        self._model, self._longest = found["id"], found.get("max_model_len") or front.language_model.longest
        tokenizer = copy.deepcopy(front.lm_tokenizer)
        self._lm, self._messages = front.language_model, Messages(tokenizer)
        self._ends = sorted(end_ids(front))
        self._asked = Asked(tokenizer, frozenset(self._ends))

    @property
    def longest(self) -> int | None:
        """Most LM positions of prompt and completion together."""
        return self._longest

    async def generate(self, request: Request) -> AsyncGenerator[Piece]:
        """Yield the pieces of all completions as they come."""
        check_length(request.length, request.sampling.max_new_tokens, self.longest)
        async with aclosing(self._asked.pieces(request, self._say)) as pieces:
            async for piece in pieces:
                yield piece

    async def score(self, scoring: Scoring) -> list[Token]:
        """Raise PromptError: vLLM's server does not score behind vectors."""
        raise PromptError(
            "a remote vLLM cannot score a prompt (echo with logprobs, routing by_likelihood): use the engine vllm, "
            "which runs here."
        )

    def load(self) -> Load:
        """Return what there is to do now; the server decides what runs and what waits."""
        return Load(running=self._asked.completions, waiting=0, tokens=self._asked.tokens)

    async def close(self) -> None:
        """Stop asking; the server goes on."""
        self._asked.close()
        await self._client.close()

    async def _say(self, request: Request, index: int) -> AsyncGenerator[Token]:
        """Yield the tokens of one completion."""
        import openai

        try:
            messages = self._messages.of(request.parts, self._lm.dtype)
            if messages is None:
                stream, read = await self._complete(request, index), completed
            else:
                stream, read = await self._chat(request, index, messages), said
            async with stream:
                async for chunk in stream:
                    for choice in chunk.choices:
                        for token in read(choice, request.logprobs):
                            yield token
        except openai.BadRequestError as error:
            raise PromptError(f"the vLLM server refused the prompt: {str(error)[:300]}") from error
        except EngineError:
            raise
        except Exception as error:  # of the client, or of the connection in the midst of an answer
            raise EngineError(f"the vLLM server did not answer ({type(error).__name__}): {str(error)[:200]}") from error

    async def _chat(self, request: Request, index: int, messages: Any) -> Any:
        own, logs = self._how(request, index), {}
        if request.logprobs is not None:
            logs = {"logprobs": True, "top_logprobs": request.logprobs}
        create: Any = self._client.chat.completions.create  # it does not know vectors as content
        return await create(model=self._model, messages=messages, stream=True, extra_body=own, **logs)

    async def _complete(self, request: Request, index: int) -> Any:
        own, logs = self._how(request, index), {}
        if request.logprobs is not None:
            logs = {"logprobs": request.logprobs}
        prompt = None
        if any(isinstance(part, Tensor) for part in request.parts):
            own["prompt_embeds"] = packed(joined(self._lm, request.parts))
        else:
            prompt = [token for part in request.parts for token in part]
        create: Any = self._client.completions.create
        return await create(model=self._model, prompt=prompt, stream=True, extra_body=own, **logs)

    def _how(self, request: Request, index: int) -> dict[str, Any]:
        how = request.sampling
        return {
            "max_tokens": how.max_new_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "top_k": how.top_k,
            "seed": seed_of(how, index) if how.temperature else None,
            "ignore_eos": request.past_end,
            "stop_token_ids": [] if request.past_end else self._ends,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }


class Messages:
    """Parts of a prompt -> the messages that the LM's chat template makes them of."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, list[tuple[tuple[str, ...], list[tuple[int, ...]]]]] = {}

    def of(self, parts: tuple[Part, ...], dtype: torch.dtype) -> list[dict[str, Any]] | None:
        """Return a conversation; None where the template cannot make these parts, or would make others of its text."""
        forms, contents = parts[0::2], parts[1::2]
        for roles, made in self._ways(len(contents)):
            if len(made) == len(forms) and all(
                not isinstance(form, Tensor) and tuple(form) == ids for form, ids in zip(forms, made, strict=True)
            ):
                said = [self._content(content, dtype) for content in contents]
                if None not in said:
                    return [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]
        return None

    def _ways(self, count: int) -> list[tuple[tuple[str, ...], list[tuple[int, ...]]]]:
        """Return who may have said `count` messages, with the tokens that the template puts around each of them."""
        if count not in self._known:
            turns = tuple("assistant" if (count - number) % 2 == 0 else "user" for number in range(count))
            roles = turns if count % 2 else ("system", *turns[1:])
            made = self._made(roles) if count else []
            self._known[count] = [(roles, made)] if made else []
        return self._known[count]

    def _made(self, roles: Sequence[str]) -> list[tuple[int, ...]]:
        marks = [f"<<slot {number}>>" for number in range(len(roles))]
        turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            text = str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except Exception:  # templates refuse with errors of their own kinds, such as for a system's message
            return []
        forms = []
        for mark in marks:
            before, found, text = text.partition(mark)
            if not found:
                return []
            forms.append(before)
        return [tuple(self._tokenizer(form, add_special_tokens=False).input_ids) for form in (*forms, text)]

    def _content(self, part: Part, dtype: torch.dtype) -> str | list[dict[str, str]] | None:
        if isinstance(part, Tensor):
            return [{"type": "prompt_embeds", "data": packed(part.to(dtype))}]
        text: str = self._tokenizer.decode(list(part))
        again = tuple(self._tokenizer(text, add_special_tokens=False).input_ids)
        return text if again == tuple(part) else None  # what looks like a control token would become one


def packed(vectors: Tensor) -> str:
    """Return vectors as the server takes them."""
    file = io.BytesIO()
    torch.save(vectors.detach().cpu().clone(), file)
    return base64.b64encode(file.getvalue()).decode()


def said(choice: Any, most: int | None) -> list[Token]:
    """Return the tokens of a part of a chat's stream."""
    ids = getattr(choice, "token_ids", None) or []
    if most is None:
        return [Token(token, float("nan")) for token in ids]
    logs = choice.logprobs.content if choice.logprobs is not None else []
    if len(logs) != len(ids):
        raise EngineError(f"the vLLM server told {len(logs)} log-probabilities of {len(ids)} tokens.")
    return [
        Token(token, log.logprob, tuple((number(one.token), one.logprob) for one in log.top_logprobs[:most]))
        for token, log in zip(ids, logs, strict=True)
    ]


def completed(choice: Any, most: int | None) -> list[Token]:
    """Return the tokens of a part of a completion's stream."""
    ids = getattr(choice, "token_ids", None) or []
    if most is None:
        return [Token(token, float("nan")) for token in ids]
    logs = choice.logprobs
    told = [] if logs is None else list(zip(logs.token_logprobs, logs.top_logprobs, strict=True))
    if len(told) != len(ids):
        raise EngineError(f"the vLLM server told {len(told)} log-probabilities of {len(ids)} tokens.")
    found = []
    for token, (own, likely) in zip(ids, told, strict=True):
        ranked = sorted(((number(name), log) for name, log in (likely or {}).items()), key=lambda pair: -pair[1])
        found.append(Token(token, own, tuple(ranked[:most])))
    return found


def number(text: str) -> int:
    """Return the token that a text names."""
    return int(text.removeprefix(TOKEN))


def served(url: str, key: str, model: str | None) -> dict[str, Any]:
    """Return what the server says of a model; raises EngineError where nobody answers, ConfigError for none such."""
    import openai

    try:
        with openai.OpenAI(base_url=url, api_key=key, max_retries=1, timeout=30) as client:
            models = [one.model_dump() for one in client.models.list().data]
    except openai.OpenAIError as error:
        raise EngineError(
            f"{url}: no vLLM server answers ({type(error).__name__}). Is it running, and does the URL end in /v1?"
        ) from error
    for found in models:
        if model in (None, found["id"]):
            return found
    raise ConfigError(f"{url} has no model {model!r}; it has {', '.join(one['id'] for one in models) or 'none'}.")
