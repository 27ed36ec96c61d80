"""vLLM against the reference engine, on the embedded models: `make test-vllm`, in a virtual environment of its own."""

import asyncio
import contextlib
import gc
import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from asking import parts, pieces, request, text_of, text_parts

from langbridge.checkpoint import LangBridge
from langbridge.data.parallel import sanity_set
from langbridge.engine import Engine, Request, Scoring
from langbridge.engine.choose import load_engine
from langbridge.engine.transformers import TransformersEngine
from langbridge.errors import ConfigError, EngineError, PromptError
from langbridge.generate import Sampling
from langbridge.pretrained import local_path

VLLMS = (
    "DeprecationWarning",
    "UserWarning",
    "FutureWarning",
    "ResourceWarning",
    "pytest.PytestUnraisableExceptionWarning",
)
pytestmark = [
    pytest.mark.embedded,
    pytest.mark.usefixtures("embedded"),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed here; `make test-vllm` installs it in a virtual environment of its own",
    ),
    # of vLLM and of what it imports, not of ours
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in VLLMS),
]
SMALL = ["max_model_len=1024", "kv_cache_memory_bytes=500000000", "enforce_eager=true"]
"""Arguments that keep vLLM's cache small and its start short."""
LANGUAGES = ("fra", "swh", "tel", "kat", "jpn", "ara")
PROMPTS = [sanity_set().sources[language][number] for number, language in enumerate(LANGUAGES)]
GREEDY = Sampling(max_new_tokens=24)
Result = TypeVar("Result")


class Engines:
    """Both engines on one event loop."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.model = LangBridge.from_pretrained("embedded").eval()
        self.reference = TransformersEngine(self.model, most_rows=8)
        self.front, self.vllm = load_engine("vllm", "embedded", most_rows=8, arguments=SMALL)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(work)

    def both(self, asked: list[Request]) -> list[tuple[Any, Any]]:
        """What each engine says to requests that come at once."""

        async def ask(engine: Engine) -> list[Any]:
            return list(await asyncio.gather(*(pieces(engine, one) for one in asked)))

        return list(zip(self.run(ask(self.reference)), self.run(ask(self.vllm)), strict=True))


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    made = Engines()
    with made.runner:
        yield made
        made.run(made.reference.close())
        made.run(made.vllm.close())
    made.vllm = made.reference  # vLLM's own complaints are to come here, and not when all tests are over
    gc.collect()


def test_the_front_has_no_layers_and_reads_the_same(engines: Engines) -> None:
    weights = sum(parameter.numel() for parameter in engines.front.language_model.parameters())
    assert weights < 0.25 * sum(parameter.numel() for parameter in engines.model.language_model.parameters())
    for own, whole in zip(parts(engines.front, PROMPTS[0]), parts(engines.model, PROMPTS[0]), strict=True):
        assert own == whole if isinstance(own, tuple) else bool((own == whole).all())


def test_greedy_tokens_and_their_likelihoods_are_the_same(engines: Engines) -> None:
    bridged = [request(engines.model, prompt, GREEDY, logprobs=3) for prompt in PROMPTS]
    plain = [
        Request(parts=text_parts(engines.model, prompt), sampling=GREEDY, logprobs=3, alone=True)
        for prompt in ("What is the capital of Japan?", *PROMPTS[:2])
    ]
    for wanted, found in engines.both(bridged + plain):
        assert [piece.token.id for piece in found] == [piece.token.id for piece in wanted]
        assert text_of(found) == text_of(wanted)
        assert found[-1].finish == wanted[-1].finish
        for one, other in zip(wanted, found, strict=True):
            assert other.token.logprob == pytest.approx(one.token.logprob, abs=1e-3)
            assert [i for i, _ in other.token.likeliest] == [i for i, _ in one.token.likeliest]


def test_log_likelihoods_are_the_same(engines: Engines) -> None:
    target = tuple(engines.model.lm_tokenizer("The capital of Japan is Tokyo.", add_special_tokens=False).input_ids)
    for prompt in (*(parts(engines.model, one) for one in PROMPTS), text_parts(engines.model, "Where is Tokyo?")):
        asked = Scoring(parts=prompt, target=target, logprobs=2)
        wanted, found = engines.run(engines.reference.score(asked)), engines.run(engines.vllm.score(asked))
        assert [token.id for token in found] == list(target)
        assert [token.logprob for token in found] == pytest.approx([token.logprob for token in wanted], abs=1e-3)
        assert [token.likeliest[0][0] for token in found] == [token.likeliest[0][0] for token in wanted]


def test_prompts_of_one_shape_are_not_taken_for_one_another(engines: Engines) -> None:
    """What vLLM remembers of prompts goes by their vectors, not by the tokens that hold their places."""
    first, other = request(engines.model, PROMPTS[0], GREEDY), request(engines.model, PROMPTS[1], GREEDY)
    soft = first.parts[1][:12], other.parts[1][:12]
    asked = [Request(parts=(first.parts[0], vectors, first.parts[2]), sampling=GREEDY) for vectors in soft]
    for wanted, found in engines.both(asked * 2):
        assert [piece.token.id for piece in found] == [piece.token.id for piece in wanted]


def test_stop_strings_and_ends_are_the_same(engines: Engines) -> None:
    whole = text_of(engines.both([request(engines.model, PROMPTS[0], GREEDY)])[0][0])
    stop = whole[4:8]
    asked = [
        request(engines.model, PROMPTS[0], Sampling(max_new_tokens=24, stop=(stop,))),
        request(engines.model, PROMPTS[0], Sampling(max_new_tokens=3)),
        request(engines.model, PROMPTS[0], Sampling(max_new_tokens=60), past_end=True),
    ]
    for wanted, found in engines.both(asked):
        assert text_of(found) == text_of(wanted)
        assert (len(found), found[-1].finish) == (len(wanted), wanted[-1].finish)
        assert all(math.isnan(piece.token.logprob) for piece in found)


def test_seeds_draw_the_same_again_and_differ_from_one_another(engines: Engines) -> None:
    drawn = Sampling(max_new_tokens=12, temperature=1.2, top_p=0.95, top_k=50, seed=7)
    asked = request(engines.model, PROMPTS[0], drawn, n=3)
    found, again = (engines.run(pieces(engines.vllm, asked)) for _ in range(2))
    texts = [text_of(found, index) for index in range(3)]
    assert texts == [text_of(again, index) for index in range(3)]
    assert len(set(texts)) == 3
    assert sum(piece.finish is not None for piece in found) == 3


def test_a_closed_stream_frees_its_row(engines: Engines) -> None:
    async def ask() -> None:
        endless = request(engines.model, PROMPTS[0], Sampling(max_new_tokens=500), past_end=True)
        async with aclosing(engines.vllm.generate(endless)) as stream:
            await anext(stream)
            assert engines.vllm.load().running == 1
        assert engines.vllm.load().running == 0
        assert engines.vllm._engine.get_num_unfinished_requests() == 0  # type: ignore[attr-defined]

    engines.run(ask())


def test_what_cannot_be_is_refused(engines: Engines) -> None:
    with pytest.raises(PromptError, match="more than the LM's 1024"):
        engines.run(pieces(engines.vllm, request(engines.model, PROMPTS[0], Sampling(max_new_tokens=1020))))
    for argument, complaint in (
        ("model=x", "not to be set here"),
        ("nonsense=1", "refuses its arguments"),
        ("x", "NAME=VALUE"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            load_engine("vllm", "embedded", most_rows=8, arguments=[argument])


def test_generate_from_file_to_file(engines: Engines, tmp_path: Path) -> None:
    """The command gives the same answers with both engines."""
    given = tmp_path / "in.jsonl"
    given.write_text("".join(json.dumps({"id": i, "prompt": one}) + "\n" for i, one in enumerate(PROMPTS)))
    outputs = {}
    for engine in ("transformers", "vllm"):
        command = [sys.executable, "-m", "langbridge", "generate", "embedded", "--input", str(given)]
        command += ["--output", str(tmp_path / f"{engine}.jsonl"), "--engine", engine, "--max-new-tokens", "16"]
        command += [part for one in SMALL for part in ("--engine-set", one) if engine == "vllm"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        assert found.returncode == 0, found.stderr
        outputs[engine] = (tmp_path / f"{engine}.jsonl").read_text()
    assert outputs["vllm"] == outputs["transformers"]
    assert len(outputs["vllm"].splitlines()) == len(PROMPTS)


def test_the_server_runs_on_vllm(engines: Engines) -> None:
    wanted = text_of(engines.both([request(engines.model, PROMPTS[0], GREEDY)])[0][0])
    command = ["langbridge", "serve", "embedded", "--engine", "vllm", "--port", "0", "--name", "it"]
    command += [part for one in SMALL for part in ("--engine-set", one)]
    with running([sys.executable, "-m", *command]) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "listening on" in line)
        url = line.split("listening on ")[1].split(",")[0]
        body = {
            "model": "it",
            "messages": [{"role": "user", "content": PROMPTS[0]}],
            "max_tokens": 24,
            "temperature": 0,
        }
        said = posted(f"{url}/v1/chat/completions", body)
        assert said["choices"][0]["message"]["content"].strip() == wanted.strip()
        body = {"model": "it", "prompt": PROMPTS[0] + "<|answer|>Tokyo", "max_tokens": 0, "echo": True, "logprobs": 1}
        assert posted(f"{url}/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"][-1] < 0


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a server while the block runs."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        yield process
        process.terminate()
        assert process.stderr is not None
        process.stderr.read()
        process.wait(timeout=120)
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def posted(url: str, body: dict[str, Any]) -> Any:
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=300) as reply:
        return json.load(reply)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A vLLM server of the LM, as a deployment of it has one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", local_path("embedded:smollm2-135m"), "--served-model-name", "smollm2"]
    command += ["--port", str(port), "--host", "127.0.0.1", "--enable-prompt-embeds", "--max-model-len", "1024"]
    command += ["--dtype", "float32", "--kv-cache-memory-bytes", "500000000", "--enforce-eager"]
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"vllm-server-{port}.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        while not healthy(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()[-3000:]
            threading.Event().wait(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
            log.unlink()


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def test_a_remote_vllm_says_the_same(engines: Engines, server: str) -> None:
    model = engines.model
    front, remote = load_engine(server, "embedded", most_rows=8)
    asked = [request(model, prompt, GREEDY, logprobs=2) for prompt in PROMPTS]
    asked.append(Request(parts=text_parts(model, "What is the capital of Japan?"), sampling=GREEDY, logprobs=2))
    asked.append(conversation(model))
    sent = [remote._messages.of(one.parts, torch.float32) for one in asked]  # type: ignore[attr-defined]
    assert [one is None for one in sent] == [True] * (len(PROMPTS) + 1) + [False]  # the run has a template of its own

    async def ask() -> list[Any]:
        found = list(await asyncio.gather(*(pieces(remote, one) for one in asked)))
        with pytest.raises(PromptError, match="cannot score"):
            await remote.score(Scoring(parts=asked[0].parts, target=(1,)))
        endless = request(model, PROMPTS[0], Sampling(max_new_tokens=900), past_end=True)
        waits = asyncio.create_task(pieces(remote, endless))
        while not remote.load().running:
            await asyncio.sleep(0)
        await remote.close()
        with pytest.raises(EngineError, match="closed"):
            await waits
        return found

    for found, (wanted, _) in zip(engines.run(ask()), engines.both(asked), strict=True):
        assert [piece.token.id for piece in found] == [piece.token.id for piece in wanted]
        assert [p.token.logprob for p in found] == pytest.approx([p.token.logprob for p in wanted], abs=1e-3)
        assert (text_of(found), found[-1].finish) == (text_of(wanted), wanted[-1].finish)
    assert front.language_model.longest == 8192
    assert remote.longest == 1024


def conversation(model: LangBridge) -> Request:
    """A system's message, a question, its answer and another question, each soft prompt in its place."""
    turns = [("system", "<<0>>"), ("user", "<<1>>"), ("assistant", "Tokyo."), ("user", "<<2>>")]
    messages = [{"role": role, "content": content} for role, content in turns]
    text = model.lm_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    made: list[Any] = []
    for mark, content in (("<<0>>", PROMPTS[0]), ("<<1>>", PROMPTS[1]), ("Tokyo.", None), ("<<2>>", PROMPTS[2])):
        before, _, text = str(text).partition(mark)
        made.append(tuple(model.lm_tokenizer(before, add_special_tokens=False).input_ids))
        said = tuple(model.lm_tokenizer("Tokyo.", add_special_tokens=False).input_ids)
        made.append(parts(model, content)[1] if content is not None else said)
    made.append(tuple(model.lm_tokenizer(text, add_special_tokens=False).input_ids))
    return Request(parts=tuple(made), sampling=GREEDY, logprobs=2)


def test_nobody_answers_where_there_is_no_server() -> None:
    with pytest.raises(EngineError, match="no vLLM server answers"):
        load_engine("http://127.0.0.1:9/v1", "embedded", most_rows=8)


def test_closing_tells_everybody(engines: Engines) -> None:
    """Last of all here: the engine is gone afterwards."""

    async def ask() -> None:
        endless = request(engines.model, PROMPTS[0], Sampling(max_new_tokens=900), past_end=True)
        tasks = [asyncio.create_task(pieces(engines.vllm, endless)) for _ in range(3)]
        while not engines.vllm.load().tokens or not engines.vllm.load().running:
            await asyncio.sleep(0)
        await engines.vllm.close()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, EngineError) for one in found)
        with pytest.raises(EngineError, match="closed"):
            await pieces(engines.vllm, endless)

    engines.run(ask())
