"""The divergence from the LM's own logits, against the textbook formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import build
from langbridge.checkpoint import LangBridge
from langbridge.data import Example
from langbridge.model.distillation import Distillation, divergence, teacher

VOCABULARY = 12


def logits(seed: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_with_every_token_it_is_the_textbook_divergence(temperature: float) -> None:
    own = Distillation(temperature=temperature, top_k=0)
    p, q = (logits(seed).div(temperature).softmax(-1) for seed in (1, 2))
    wanted = temperature**2 * float((p * (p / q).log()).sum(-1).mean())
    assert float(divergence(logits(2), teacher(logits(1), own), own)) == pytest.approx(wanted, rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(k=st.integers(1, VOCABULARY), temperature=st.floats(0.3, 5), seed=st.integers(0, 1000))
def test_the_most_likely_tokens_and_one_for_the_rest(k: int, temperature: float, seed: int) -> None:
    """Property: the divergence between distributions whose other tokens are merged; never above the whole one."""
    own = Distillation(temperature=temperature, top_k=k)
    theirs, ours = logits(seed), logits(seed + 1)
    p, q = (part.div(temperature).softmax(-1) for part in (theirs, ours))
    top = p.topk(k, dim=-1).indices
    merged = [torch.cat([part.gather(1, top), 1 - part.gather(1, top).sum(-1, keepdim=True)], -1) for part in (p, q)]
    for part in merged:
        part[:, -1].clamp_(min=1e-6)
    a, b = merged
    wanted = temperature**2 * float((a * (a / b).log()).sum(-1).mean())
    found = float(divergence(ours, teacher(theirs, own), own))
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    everything = Distillation(temperature=temperature, top_k=0)
    assert found <= float(divergence(ours, teacher(theirs, everything), everything)) + 1e-4
    assert float(divergence(theirs, teacher(theirs, own), own)) == pytest.approx(0, abs=1e-4)


def taught(lm: str, **settings: float) -> LangBridge:
    model = build("bert", lm)
    model.distillation = Distillation(**settings)
    return model


EXAMPLES = [
    Example(source="hi", target="yes", text="hi", instruction="say: "),
    Example(source="what is the name of it?", target="no way", text="what is the name of it?", complete=False),
]


@pytest.mark.parametrize("lm", ["llama", "gpt2", "qwen2"])
def test_the_loss_by_hand(lm: str) -> None:
    """Cross-entropy on the answer behind the soft prompt, and the divergence from the LM that read the text."""
    model = taught(lm, temperature=2.0, divergence=0.5, top_k=0)
    words, tokenizer = model.language_model.model.get_input_embeddings(), model.lm_tokenizer
    nll, gap, count = 0.0, 0.0, 0
    with torch.no_grad():
        for example in EXAMPLES:
            before, after = (
                words(torch.tensor(tokenizer(text, add_special_tokens=False).input_ids))
                for text in (model.template.before + example.instruction, model.template.after)
            )
            source = torch.tensor([model.encoder_tokenizer(example.source).input_ids])
            soft = model.soft_prompt(source, torch.ones_like(source)).vectors[0]
            text = words(torch.tensor(tokenizer(example.text, add_special_tokens=False).input_ids))
            target = tokenizer(example.target, add_special_tokens=False).input_ids
            target = [*target, tokenizer.eos_token_id] if example.complete else target
            said = words(torch.tensor(target))
            rows = []
            for middle in (soft, text):
                whole = torch.cat([before, middle, after, said])[None]
                rows.append(model.language_model.model(inputs_embeds=whole).logits[0, -len(target) - 1 : -1])
            ours, theirs = rows
            nll -= sum(float(row.log_softmax(-1)[i]) for row, i in zip(ours, target, strict=True))
            p, q = (theirs / 2).softmax(-1), (ours / 2).softmax(-1)
            gap += 4 * float((p * (p / q).log()).sum())
            count += len(target)
        loss = float(model(model.collate(EXAMPLES)))
    assert loss == pytest.approx((nll + 0.5 * gap) / count, abs=1e-5)


def test_only_the_bridge_is_taught() -> None:
    model = taught("llama", top_k=4)
    model.train()(model.collate(EXAMPLES)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("bridge."), name


def test_without_a_text_it_is_the_plain_loss() -> None:
    model = taught("llama", divergence=9.0)
    plain = build("bert", "llama")
    examples = [Example(source="hi", target="yes"), *EXAMPLES]
    with torch.no_grad():
        assert float(model(model.collate(examples))) == float(plain(plain.collate(examples)))
