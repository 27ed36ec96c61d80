"""Engines by name, runs without the layers of their LM, and what can be told of vLLM's ways without vLLM."""

import asyncio
import base64
import importlib.util
import io
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import torch
from asking import parts, pieces, request, text_of
from transformers import PreTrainedTokenizerBase

import families
from conftest import TEMPLATE, build, letters_tokenizer
from langbridge.checkpoint import LangBridge
from langbridge.config import PromptConfig, Recipe
from langbridge.engine import Part, Request, Token
from langbridge.engine.choose import load_engine, parsed
from langbridge.engine.pieces import Asked
from langbridge.engine.vllm import mixed, settings_of
from langbridge.engine.vllm_remote import Messages
from langbridge.errors import ConfigError, EngineError
from langbridge.generate import Sampling
from langbridge.pretrained import load_word_embeddings
from tokenizers_for_tests import byte_level

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}"
    "{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_front_reads_as_the_whole_does_and_has_no_layers(run: Path) -> None:
    front, whole = LangBridge.front(run).eval(), LangBridge.from_pretrained(run).eval()
    assert front.template == whole.template
    assert front.language_model.longest == whole.language_model.longest
    for own, other in zip(parts(front, "who?"), parts(whole, "who?"), strict=True):
        assert own == other if isinstance(own, tuple) else torch.equal(own, other)  # type: ignore[arg-type]
    assert not [name for name, _ in front.language_model.named_parameters() if ".layers." in name]


@pytest.mark.parametrize("lm", families.LANGUAGE_MODELS)
def test_every_familys_word_embeddings_load_alone(lm: str, tmp_path: Path) -> None:
    model = families.make(families.LANGUAGE_MODELS[lm])
    model.save_pretrained(tmp_path)
    letters_tokenizer(encloses=False).save_pretrained(tmp_path)
    words = load_word_embeddings(str(tmp_path))
    ids = torch.tensor([[5, 9, 6]])
    assert torch.equal(words.embed(ids, torch.ones_like(ids)).vectors[0], model.get_input_embeddings()(ids)[0])
    assert sum(p.numel() for p in words.parameters()) < sum(p.numel() for p in model.parameters())


def test_a_run_that_changed_its_lm_has_no_front(run: Path, tmp_path: Path) -> None:
    from langbridge.checkpoint import read_config
    from langbridge.config import LoraConfig

    fields = {"encoder": read_config(run).encoder, "language_model": read_config(run).language_model}
    recipe = Recipe(**fields, prompt=PromptConfig(template=TEMPLATE), lora=LoraConfig(parts=("language_model",)))
    LangBridge.from_recipe(recipe).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="low-rank adapters of its LM"):
        LangBridge.front(tmp_path)


def test_engines_are_known_by_name(run: Path) -> None:
    with pytest.raises(ConfigError, match="no engine named 'golden'; known: transformers, vllm"):
        load_engine("golden", run, most_rows=2)
    with pytest.raises(ConfigError, match="at least one row"):
        load_engine("transformers", run, most_rows=0)
    with pytest.raises(ConfigError, match="no argument 'x'"):
        load_engine("transformers", run, most_rows=2, arguments=["x=1"])
    assert parsed(["a=1", "b=0.5", "c=x", "d=true", "e={f: 1}"]) == {
        "a": 1,
        "b": 0.5,
        "c": "x",
        "d": True,
        "e": {"f": 1},
    }
    for argument in ("a", "=1", "a b=1", "a={"):
        with pytest.raises(ConfigError, match="--engine-set"):
            parsed([argument])

    async def ask() -> None:
        model, engine = load_engine("transformers", run, most_rows=2, arguments=["positions=500"])
        assert len(await pieces(engine, request(model, "who?", Sampling(max_new_tokens=2), past_end=True))) == 2
        await engine.close()

    asyncio.run(ask())


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_it_says_what_to_install(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"pip install 'langbridge-lm\[vllm\]'"):
        load_engine("vllm", run, most_rows=2)


def test_vllm_is_given_what_the_run_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert settings_of(model, 7, {"dtype": "bfloat16"}) == {
        "model": "tiny-lm",
        "revision": None,
        "dtype": "bfloat16",
        "max_num_seqs": 7,
        "max_logprobs": 20,
        "enable_prompt_embeds": True,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
    }
    with pytest.raises(ConfigError, match="enable_prompt_embeds is not to be set here"):
        settings_of(model, 7, {"enable_prompt_embeds": False})


def test_without_a_gpu_vllm_leaves_memory_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = build()
    assert settings_of(model, 7, {})["kv_cache_memory_bytes"] == 4 * 1024**3
    assert settings_of(model, 7, {"kv_cache_memory_bytes": 5})["kv_cache_memory_bytes"] == 5
    assert "kv_cache_memory_bytes" not in settings_of(model, 7, {"gpu_memory_utilization": 0.5})


def test_tokens_stay_tokens_beside_vectors() -> None:
    soft = torch.randn(3, 4)
    found = mixed(((1, 2), soft, (), (5,)), 4, torch.float32)
    assert found["prompt_token_ids"] == [1, 2, 0, 0, 0, 5]
    assert found["prompt_is_token_ids"] == [True, True, False, False, False, True]
    assert torch.equal(found["prompt_embeds"][2:5], soft)
    assert not found["prompt_embeds"][[0, 1, 5]].any()
    assert mixed(((1, 2), (3,)), 4, torch.float32) == {"prompt_token_ids": [1, 2, 3]}


def talker() -> PreTrainedTokenizerBase:
    """A tokenizer that loses nothing, with an end token and a chat template."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    tokenizer.chat_template = CHAT
    return tokenizer


def chat(*turns: tuple[str, str | torch.Tensor]) -> tuple[Part, ...]:
    """The parts of a conversation in the template above."""
    tokenizer = talker()

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    made: list[Part] = []
    border = ""
    for role, content in turns:
        made += [ids(f"{border}{role}: "), content if isinstance(content, torch.Tensor) else ids(content)]
        border = "\n"
    return (*made, ids("\nassistant: "))


@pytest.mark.parametrize(
    "roles", [["user"], ["system", "user"], ["user", "assistant", "user"], ["system", "user", "assistant", "user"]]
)
def test_a_remote_is_told_the_messages_that_the_parts_are_made_of(roles: list[str]) -> None:
    soft = torch.randn(4, 24)
    turns = [(role, "I say ..." if role == "assistant" else soft) for role in roles]
    found = Messages(talker()).of(chat(*turns), torch.float32)
    assert found is not None
    assert [one["role"] for one in found] == roles
    for one in found:
        said = one["content"]
        if one["role"] == "assistant":
            assert said == "I say ..."
        else:
            assert [part["type"] for part in said] == ["prompt_embeds"]
            sent = torch.load(io.BytesIO(base64.b64decode(said[0]["data"])), weights_only=True)
            assert torch.equal(sent, soft)


def test_what_the_template_cannot_make_is_no_conversation() -> None:
    soft = torch.randn(4, 24)
    whole = chat(("user", soft))
    for wrong in ((soft,), whole[1:], (*whole, (5,)), chat(("user", soft), ("user", soft)), chat(("user", "a</s>b"))):
        assert Messages(talker()).of(tuple(wrong), torch.float32) is None
    assert Messages(letters_tokenizer(encloses=False)).of(whole, torch.float32) is None


def test_an_engine_that_ends_too_early_is_found_out() -> None:
    tokenizer = letters_tokenizer(encloses=False)

    async def say(asked: Request, index: int) -> AsyncGenerator[Token]:
        yield Token(5, -1.0)

    async def ask() -> None:
        seen = Asked(tokenizer, frozenset({2}))
        found = [piece async for piece in seen.pieces(Request(parts=((1,),), sampling=Sampling(max_new_tokens=1)), say)]
        assert [(piece.finish, text_of(found)) for piece in found] == [("length", tokenizer.decode([5]))]
        with pytest.raises(EngineError, match="before its end"):
            [piece async for piece in seen.pieces(Request(parts=((1,),)), say)]
        assert seen.completions == 0
        assert seen.tokens == 2

    asyncio.run(ask())
