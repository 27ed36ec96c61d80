"""The LM on vLLM, in this process's hands: soft prompts as vectors, the LM's own tokens as tokens, side by side."""

import asyncio
import copy
import importlib.util
import itertools
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import torch
from torch import Tensor

from langbridge.checkpoint import LangBridge
from langbridge.engine.pieces import Asked
from langbridge.engine.protocol import MOST_LIKELY, Load, Part, Piece, Request, Scoring, Token
from langbridge.engine.sampling import seed_of
from langbridge.errors import ConfigError, EngineError
from langbridge.generate import check_length, end_ids
from langbridge.pretrained import folder_of

OURS = ("model", "enable_prompt_embeds", "skip_tokenizer_init", "max_logprobs", "max_num_seqs")
"""Arguments of vLLM that are not the user's to set."""
ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process in which the encoder's threads run can hang
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Where the user's environment does not say otherwise."""


ON_CPU = {"kv_cache_memory_bytes": 4 * 1024**3}
"""Without a GPU: vLLM would take 92% of the machine's memory, and not start where less of it is free."""


class VllmEngine:
    """Continues and scores prompts with a run's LM on vLLM; `front` needs no layers of it.

    `most_rows`: completions that are continued at a time. `arguments`: of vLLM's engine, such as
    tensor_parallel_size, gpu_memory_utilization or max_model_len. Raises ConfigError where vLLM is not installed or
    refuses an argument, EngineError where it does not start.
    """

    def __init__(self, front: LangBridge, *, most_rows: int = 32, arguments: Mapping[str, Any] | None = None) -> None:
        self.most_rows = most_rows
        self._dim, self._dtype = front.language_model.dim, front.language_model.dtype
        self._ends = sorted(end_ids(front))
        self._asked = Asked(copy.deepcopy(front.lm_tokenizer), frozenset(self._ends))
        self._names = itertools.count()
        self._engine = started(settings_of(front, most_rows, arguments or {}))
        own, theirs = front.language_model.longest, int(self._engine.model_config.max_model_len)
        self._longest = theirs if own is None else min(own, theirs)

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
        """Return the target's tokens with their log-likelihoods."""
        check_length(scoring.length, 1, self.longest)  # vLLM always says a token more
        return await self._asked.scoring(self._score(scoring))

    def load(self) -> Load:
        """Return what there is to do now."""
        inside = self._asked.completions
        running = min(inside, self.most_rows)
        return Load(running=running, waiting=inside - running, tokens=self._asked.tokens)

    async def close(self) -> None:
        """Stop; requests that are still running raise EngineError."""
        if not self._asked.closed:
            self._asked.close()
            await asyncio.sleep(0)  # whoever was cut off lets go first
            engine, self._engine = self._engine, None  # kept until the end of the process, it would complain there
            await asyncio.to_thread(engine.shutdown)

    async def _say(self, request: Request, index: int) -> AsyncGenerator[Token]:
        """Yield the tokens of one completion."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        how = request.sampling
        wanted = SamplingParams(
            max_tokens=how.max_new_tokens,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            seed=seed_of(how, index) if how.temperature else None,
            stop_token_ids=[] if request.past_end else self._ends,
            ignore_eos=request.past_end,
            logprobs=request.logprobs,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        async with aclosing(self._outputs(request.parts, wanted)) as outputs:
            async for output in outputs:
                said = output.outputs[0]
                logs = said.logprobs or itertools.repeat(None)
                for token, likely in zip(said.token_ids, logs, strict=False):
                    yield told(token, likely, request.logprobs)

    async def _score(self, scoring: Scoring) -> list[Token]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        wanted = SamplingParams(
            max_tokens=1,
            temperature=0,
            prompt_logprobs=scoring.logprobs,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        logs: Sequence[Any] = ()
        async with aclosing(self._outputs((*scoring.parts, scoring.target), wanted)) as outputs:
            async for output in outputs:
                logs = output.prompt_logprobs or ()
        found = zip(scoring.target, logs[-len(scoring.target) :], strict=True)
        return [told(token, likely, scoring.logprobs) for token, likely in found]

    async def _outputs(self, parts: tuple[Part, ...], wanted: Any) -> AsyncGenerator[Any]:
        """Yield what vLLM says; raises EngineError."""
        prompt = mixed(parts, self._dim, self._dtype)
        try:
            async with aclosing(self._engine.generate(prompt, wanted, f"langbridge-{next(self._names)}")) as outputs:
                async for output in outputs:
                    yield output
        except Exception as error:  # vLLM raises many kinds, and wraps some: each means that this request is lost
            cause = error.__cause__ or error
            text = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            raise EngineError(f"vLLM broke down while it worked on this request: {text[:200]}") from error


def mixed(parts: tuple[Part, ...], dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return parts as vLLM takes them: tokens that are tokens, and vectors where there is no token."""
    if not any(isinstance(part, Tensor) for part in parts):
        return {"prompt_token_ids": [token for part in parts for token in part]}
    length = sum(map(len, parts))
    vectors, ids, real = torch.zeros(length, dim, dtype=dtype), [0] * length, [False] * length
    start = 0
    for part in parts:
        place = slice(start, start + len(part))
        if isinstance(part, Tensor):
            vectors[place] = part.detach().to("cpu", dtype)
        else:
            ids[place], real[place] = part, [True] * len(part)
        start += len(part)
    return {"prompt_embeds": vectors, "prompt_token_ids": ids, "prompt_is_token_ids": real}


def told(token: int, likely: Mapping[int, Any] | None, most: int | None) -> Token:
    """Return a token with what vLLM told of its likelihood."""
    if likely is None or most is None:
        return Token(token, float("nan"))
    ranked = sorted(((other, log.logprob) for other, log in likely.items()), key=lambda pair: -pair[1])
    return Token(token, likely[token].logprob, tuple(ranked[:most]))


def settings_of(front: LangBridge, most_rows: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's arguments for a run's LM; raises ConfigError for what cannot be."""
    lm = front.recipe.language_model
    if taken := [name for name in OURS if name in given]:
        raise ConfigError(f"vLLM's {taken[0]} is not to be set here: it follows from the run or from other options.")
    if lm.gguf_file is not None or (lm.quantization is not None and "quantization" not in given):
        raise ConfigError(
            f"{lm.name} is loaded from GGUF or packed by this run; for vLLM, set dtype and vLLM's own quantization "
            "argument, or use the engine transformers."
        )
    return {
        "model": folder_of(lm.name),
        "revision": lm.revision,
        "dtype": lm.dtype,
        "max_num_seqs": most_rows,
        "max_logprobs": MOST_LIKELY,
        "enable_prompt_embeds": True,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        **({} if torch.cuda.is_available() or "gpu_memory_utilization" in given else ON_CPU),
        **given,
    }


def started(settings: Mapping[str, Any]) -> Any:
    """Return vLLM's engine; raises ConfigError and EngineError."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "the engine vllm needs vLLM, which is not installed here: pip install 'langbridge-lm[vllm]', in a virtual "
            "environment of its own, as it pins many packages."
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        arguments = AsyncEngineArgs(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"vLLM refuses its arguments: {str(error).strip().splitlines()[0]}") from error
    try:
        return AsyncLLM.from_engine_args(arguments)
    except Exception as error:  # as above
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EngineError(f"vLLM did not start: {text}") from error
