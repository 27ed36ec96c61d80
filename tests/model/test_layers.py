"""Layers that compute twice: the same gradients from far less that is kept."""

import pytest
import torch
from torch import Tensor

from conftest import build
from families import ENCODERS, LANGUAGE_MODELS, encoder_half, make
from langbridge.data import Example
from langbridge.model import Embeddings, LanguageModel
from langbridge.model.layers import layers_of, recompute

EXAMPLES = [Example(source="word " * (1 + i), target="so it is " * (1 + i % 3)) for i in range(4)]


def step(lm: LanguageModel, vectors: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return loss, gradient of the prompt's vectors, and the numbers that were kept for it in between."""
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() if tensor.requires_grad else 0
        return tensor

    prompt = vectors.clone().requires_grad_()
    mask = torch.ones(3, 9, dtype=torch.int64)
    targets = torch.randint(4, 60, (3, 5), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = lm.loss(Embeddings(prompt, mask), targets, torch.ones_like(targets))
    loss.backward()
    assert prompt.grad is not None
    return loss.detach(), prompt.grad, kept


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_every_language_model_gives_the_same_gradient(name: str) -> None:
    lm = LanguageModel(make(LANGUAGE_MODELS[name]))
    lm.freeze()
    vectors = torch.randn(3, 9, lm.dim, generator=torch.Generator().manual_seed(1))
    loss, gradient, kept = step(lm, vectors)
    assert recompute(lm.model) == 2
    again = step(lm, vectors)
    assert torch.equal(again[0], loss)
    assert torch.equal(again[1], gradient)
    assert again[2] < kept / 3


@pytest.mark.parametrize("name", ENCODERS)
def test_the_layers_of_every_encoder_are_found(name: str) -> None:
    assert len(layers_of(encoder_half(make(ENCODERS[name])))) == 2


def test_a_trained_encoder_drops_out_the_same_twice() -> None:
    """Dropout of the second pass is that of the first."""
    gradients = []
    for twice in (False, True):
        model = build("mt5").train()
        model.encoder.requires_grad_(True).train()
        if twice:
            assert recompute(model.encoder.model) == 2
        torch.manual_seed(3)
        model(model.collate(EXAMPLES)).backward()
        gradients.append([p.grad for p in model.encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 5
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))
