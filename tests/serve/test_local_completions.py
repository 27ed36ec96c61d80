"""lm-eval's own client of completion servers, unmodified."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import Running, running
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import SHAPE, build
from langbridge.checkpoint import LangBridge
from langbridge.data import Example
from langbridge.generate import BridgedGenerator, Sampling
from langbridge.model import LanguageModel

pytest.importorskip("tenacity", reason="lm-eval's client needs its extra: pip install 'lm-eval[api]'")
api = pytest.importorskip("lm_eval.models.openai_completions", reason="lm-eval is not installed")
instance = pytest.importorskip("lm_eval.api.instance")


def with_bytes() -> LangBridge:
    """A tiny model whose LM reads bytes: its tokenizer loses nothing, as those that lm-eval is used with."""
    letters = {letter: i for i, letter in enumerate(["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    model = build()
    torch.manual_seed(0)
    lm = LlamaForCausalLM(
        LlamaConfig(**{**SHAPE, "vocab_size": len(letters)}, intermediate_size=32, eos_token_id=1, pad_token_id=0)
    )
    for parameter in lm.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return LangBridge(model.encoder, LanguageModel(lm.eval()), model.encoder_tokenizer, named, model.recipe).eval()


@pytest.fixture(scope="module")
def tiny() -> Iterator[Running]:
    with running(with_bytes()) as found:
        yield found


def client(server: Running, folder: Path, model: str, **given: Any) -> Any:
    server.service.model.lm_tokenizer.save_pretrained(folder)
    return api.LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model=model,
        tokenizer=str(folder),
        tokenizer_backend="huggingface",
        revision=None,
        **given,
    )


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    return [
        instance.Instance(request_type=kind, doc={}, arguments=one, idx=i, metadata=("x", i, 1))
        for i, one in enumerate(arguments)
    ]


@pytest.mark.parametrize("as_ids", [True, False])
def test_log_likelihoods_of_the_bare_lm(tiny: Running, tmp_path: Path, as_ids: bool) -> None:
    pairs = [("which?", " this"), ("which?", " that one"), ("a", " b")]
    found = client(tiny, tmp_path, "tiny:raw", tokenized_requests=as_ids).loglikelihood(asked("loglikelihood", *pairs))
    model = tiny.service.model
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        ids = torch.tensor([model.lm_tokenizer(context + continuation, add_special_tokens=False).input_ids])
        start = len(model.lm_tokenizer(context, add_special_tokens=False).input_ids)
        with torch.no_grad():
            logs = model.language_model.model(ids).logits[0].log_softmax(-1)
        wanted = sum(float(logs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1]))
        assert value == pytest.approx(wanted, abs=1e-3)
        assert greedy == all(int(logs[i - 1].argmax()) == ids[0, i] for i in range(start, ids.shape[1]))


def test_log_likelihoods_behind_the_bridge(tiny: Running, tmp_path: Path) -> None:
    """A task whose `target_delimiter` is the border: what is in front goes through the encoder."""
    pairs = [("which?", "<|answer|>this"), ("which?", "<|answer|>that one")]
    found = client(tiny, tmp_path, "tiny", tokenized_requests=False).loglikelihood(asked("loglikelihood", *pairs))
    wanted = BridgedGenerator(tiny.service.model).score("which?", ["this", "that one"])
    assert [value for value, _ in found] == pytest.approx(wanted, abs=1e-3)


def test_generation_through_the_bridge(tiny: Running, tmp_path: Path) -> None:
    model = tiny.service.model
    ask = client(tiny, tmp_path, "tiny", tokenized_requests=False, eos_string="</s>")
    until = {"until": ["\n\n"], "max_gen_toks": 8}
    found = ask.generate_until(asked("generate_until", ("who?", until), ("what?", until)))
    wanted = BridgedGenerator(model).answers(
        [Example(source="who?"), Example(source="what?")], Sampling(max_new_tokens=8)
    )
    assert found == [answer.text for answer in wanted]
