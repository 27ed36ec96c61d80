"""A run, or its plain LM, behind lm-eval's interface; `langbridge lm-eval` hands on to lm-eval's own command line.

The context of a request goes where every prompt goes (encoder, bridge, the run's own template), the continuation is the
LM's: so this is an `LM` and not a `TemplateLM`, which has one tokenizer for both.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import lm_eval.models  # noqa: F401 - registers lm-eval's own models, which it does not do once there is another
import torch
from lm_eval._cli.harness import HarnessCLI
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import model_registry
from lm_eval.utils import (
    get_rolling_token_windows,
    make_disjoint_window,
    setup_logging,
    simple_parse_args_string,
)
from tqdm import tqdm

from langbridge.data.collate import pad
from langbridge.data.examples import Example
from langbridge.errors import ConfigError, PromptError
from langbridge.generate import BridgedGenerator, PlainGenerator, Progress, Sampling
from langbridge.pretrained import quiet
from langbridge.routing import load

NAME = "langbridge"
TASKS = Path(__file__).parent / "harness_tasks"
"""Tasks for lm-eval that read the same data, ask the same and grade the same as ours."""
MODEL_ARGUMENTS = {"run", "plain", "routing", "dtype"}
LONGEST_ANSWER = 256
"""New tokens where a task names no limit."""
BATCH_SIZE = 16
"""Where lm-eval says `auto`."""


class LangBridgeLM(LM):
    """What lm-eval asks, answered by a generator."""

    def __init__(self, generator: BridgedGenerator) -> None:
        super().__init__()
        self.generator = generator
        self._device = generator.device

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """Load a run as `--model_args` says: `run=PATH,plain=true,routing=by_language,dtype=bfloat16`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """Load a run; raises ConfigError for arguments that make no sense."""
        if unknown := sorted(set(arg_dict) - MODEL_ARGUMENTS):
            known = ", ".join(sorted(MODEL_ARGUMENTS))
            raise ConfigError(f"--model_args has {unknown[0]!r}; known: {known}.")
        if "run" not in arg_dict:
            raise ConfigError("--model_args names no run: wanted run=PATH (a folder, a hub id or `embedded`).")
        plain = arg_dict.get("plain", False)
        if not isinstance(plain, bool):
            raise ConfigError(f"--model_args plain={plain}: wanted true or false.")
        more = additional_config or {}
        size = str(more.get("batch_size") or BATCH_SIZE)
        if not size.startswith("auto") and not (size.isdecimal() and int(size)):
            raise ConfigError(f"--batch_size {size}: wanted a number, or auto.")
        quiet()
        generator = load(
            str(arg_dict["run"]),
            plain=plain,
            routing=arg_dict.get("routing"),
            dtype=arg_dict.get("dtype"),
            batch_size=BATCH_SIZE if size.startswith("auto") else int(size),
        )
        device = torch.device(more.get("device") or generator.device)
        if device.type != "cuda" or torch.cuda.is_available():  # lm-eval says cuda:0 where the user says nothing
            generator.model.to(device)
        return cls(generator)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (summed log-likelihood of the continuation, whether greedy decoding would say it) of each request.

        Raises PromptError for an empty context: a bridge has none; the plain LM's is its begin token.
        """
        pairs = [request.args for request in requests]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        empty = [i for i, (context, _) in enumerate(pairs) if not context.strip()]
        for i, result in zip(empty, self._from_nothing([pairs[i][0] + pairs[i][1] for i in empty]), strict=True):
            found[i] = result
        rest = [i for i in range(len(pairs)) if pairs[i][0].strip() and pairs[i][1]]
        examples = [Example(source=pairs[i][0], target=pairs[i][1]) for i in rest]
        with bar("scoring", len(examples), disable_tqdm) as moved:
            scores = self.generator.scores(examples, progress=moved)
        for i, score in zip(rest, scores, strict=True):
            found[i] = (score.log_likelihood, score.greedy)
        for pair, result in zip(pairs, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, result)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text on its own: defined for the plain LM, without its template.

        Raises PromptError for a bridge, which has no prompt to give the LM where there is no text.
        """
        texts = [request.args[0] for request in requests]
        found = [total for total, _ in self._from_nothing(texts)]
        for text, total in zip(texts, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return each completion, cut in front of its first stop string; blanks are kept."""
        outputs = [""] * len(requests)
        groups: dict[Sampling, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(sampling_of(request.args[1]), []).append(i)
        with bar("generating", len(requests), disable_tqdm) as moved:
            done = 0
            for sampling, rows in groups.items():
                examples = [Example(source=requests[i].args[0]) for i in rows]
                answers = self.generator.answers(examples, sampling, progress=_after(done, moved))
                for i, answer in zip(rows, answers, strict=True):
                    outputs[i] = before(answer.text, sampling.stop)
                    self.cache_hook.add_partial("generate_until", requests[i].args, outputs[i])
                done += len(rows)
        return outputs

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Refuse: the run's own template is around every prompt already."""
        raise ConfigError("a run puts its own template around every prompt: leave --apply_chat_template out.")

    @property
    def tokenizer_name(self) -> str:
        """Refuse as `apply_chat_template` does."""
        return self.apply_chat_template([])

    @torch.inference_mode()
    def _from_nothing(self, texts: Sequence[str]) -> list[tuple[float, bool]]:
        """Return (log-likelihood, whether greedy) of texts behind the begin token, in windows of the LM's length."""
        generator = self.generator
        if not texts:
            return []
        if not isinstance(generator, PlainGenerator):
            raise PromptError(
                "the likelihood of a text without a prompt is not defined through a bridge, which gives the LM what it "
                "read: measure the plain LM with --model_args run=PATH,plain=true."
            )
        lm, tokenizer = generator.model.language_model, generator.tokenizer
        begin = next(i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if i is not None)
        longest = (lm.longest or 2048) - 1
        windows = [
            (row, *make_disjoint_window(window))
            for row, text in enumerate(texts)
            for window in get_rolling_token_windows(generator.collate.text_ids(text), begin, longest, 1)
        ]
        totals, greedy = [0.0] * len(texts), [True] * len(texts)
        windows.sort(key=lambda window: len(window[2]))
        with lm.alone():
            for start in range(0, len(windows), generator.batch_size):
                part = windows[start : start + generator.batch_size]
                contexts = pad([context for _, context, _ in part], tokenizer.pad_token_id)
                ids, mask = pad([target for _, _, target in part], tokenizer.pad_token_id, left=False)
                prompt = lm.embed(*contexts)
                ((logs, likeliest),) = lm.scored(prompt, [(ids.to(lm.device), mask.to(lm.device))])
                for (row, _, _), total, same in zip(part, logs.sum(1).tolist(), likeliest.all(1).tolist(), strict=True):
                    totals[row] += total
                    greedy[row] = greedy[row] and same
        return list(zip(totals, greedy, strict=True))


@contextlib.contextmanager
def bar(text: str, total: int, disable: bool) -> Iterator[Progress]:
    """Show a progress bar of the kind that lm-eval shows; yield what moves it."""
    with tqdm(total=total, desc=text, disable=disable) as shown:
        yield lambda done, _: shown.update(done - shown.n)


def _after(before: int, moved: Progress) -> Progress:
    return lambda done, total: moved(before + done, total)


def before(text: str, stops: Sequence[str]) -> str:
    """Return the text in front of the first stop string."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]


def sampling_of(settings: dict[str, Any]) -> Sampling:
    """Return lm-eval's generation settings as ours; raises ConfigError for one that is not known."""
    rest = dict(settings)
    until = rest.pop("until", None) or []
    most = rest.pop("max_gen_toks", None)
    most = rest.pop("max_new_tokens", None) if most is None else most
    temperature = float(rest.pop("temperature", None) or 0.0)
    if not rest.pop("do_sample", temperature > 0):
        temperature = 0.0
    top_p, top_k = float(rest.pop("top_p", None) or 1.0), int(rest.pop("top_k", None) or 0)
    if rest:
        known = "until, max_gen_toks, do_sample, temperature, top_p, top_k"
        raise ConfigError(f"generation setting {sorted(rest)[0]!r} is not known; known: {known}.")
    return Sampling(
        max_new_tokens=LONGEST_ANSWER if most is None else int(most),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop=(until,) if isinstance(until, str) else tuple(until),
    )


def main(arguments: Sequence[str]) -> None:
    """Run lm-eval's command line with our model and tasks."""
    register()
    setup_logging()
    given, sys.argv = sys.argv, ["langbridge lm-eval", *arguments]
    try:
        command = HarnessCLI()
        parsed = command.parse_args()
        if hasattr(parsed, "include_path"):
            parsed.include_path = [str(TASKS), *([parsed.include_path] if parsed.include_path else [])]
        command.execute(parsed)
    finally:
        sys.argv = given


def register() -> None:
    """Make the model known to lm-eval by name."""
    if NAME not in model_registry:
        model_registry.register(NAME, target=f"{__name__}:{LangBridgeLM.__name__}")
