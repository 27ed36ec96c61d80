"""Closed-form initial bridge: ridge regression from encoder states onto LM word embeddings.

For the same English text cut by both tokenizers, each encoder token is paired with the LM tokens that share characters
with it; its state is mapped onto the mean of their word embeddings. The encoder's own start and end tokens share no
characters with anything: they are mapped onto `filler`, an LM embedding that carries no content.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from langbridge.model.bridge import LinearBridge

Spans = list[tuple[int, int]]
"""(first, last + 1) character of each token; an empty span belongs to a token without text."""


@dataclass(frozen=True, kw_only=True)
class AlignedText:
    """One text as both models see it."""

    states: Tensor
    """(source, encoder_dim)"""
    encoder_spans: Spans
    lm_ids: Tensor
    """(length,)"""
    lm_spans: Spans


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What the regression found."""

    tokens: int
    """Pairs it was fitted on."""
    explained_variance: float
    """R2 on the held-out tenth of the texts; 1 is perfect, 0 is the mean."""


def overlap(encoder_spans: Spans, lm_spans: Spans) -> Tensor:
    """Return which LM tokens share a character with which encoder tokens: (source, length), rows sum to 1 or 0."""
    left = torch.tensor(encoder_spans).reshape(-1, 1, 2)
    right = torch.tensor(lm_spans).reshape(1, -1, 2)
    shared = (torch.minimum(left, right)[..., 1] - torch.maximum(left, right)[..., 0]).clamp(min=0)
    touching = (shared > 0).float()  # (source, length)
    return touching / touching.sum(dim=1, keepdim=True).clamp(min=1)


def fit(
    bridge: LinearBridge, texts: Iterable[AlignedText], lm_vectors: Tensor, filler: Tensor, *, ridge: float = 1e-2
) -> WarmStart:
    """Set the bridge's weights by ridge regression in place; every tenth text is held out to measure R2.

    `lm_vectors` (vocabulary, lm_dim), `filler` (lm_dim,). `ridge` is relative to the mean variance of the states.
    """
    kept: tuple[list[Tensor], list[Tensor]] = ([], [])
    held: tuple[list[Tensor], list[Tensor]] = ([], [])
    for number, text in enumerate(texts):
        weights = overlap(text.encoder_spans, text.lm_spans).to(lm_vectors)
        targets = weights @ lm_vectors[text.lm_ids]  # (source, lm_dim)
        empty = torch.tensor([first == last for first, last in text.encoder_spans])
        targets[empty] = filler
        known = empty | (weights.sum(dim=1) > 0)
        states_list, targets_list = held if number % 10 == 9 else kept
        states_list.append(text.states[known])
        targets_list.append(targets[known])
    x, y = (torch.cat(parts).double() for parts in kept)
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    centred = x - x_mean
    gram = centred.T @ centred
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, centred.T @ (y - y_mean)).T  # (lm_dim, encoder_dim)
    with torch.no_grad():
        bridge.linear.weight.copy_(weight)
        bridge.linear.bias.copy_(y_mean - weight @ x_mean)
        bridge.boundary.copy_(filler)
    test_x, test_y = (torch.cat(parts).double() for parts in (held if held[0] else kept))
    residual = test_y - (test_x - x_mean) @ weight.T - y_mean
    r2 = 1 - residual.square().sum() / (test_y - y_mean).square().sum()
    return WarmStart(tokens=len(x), explained_variance=float(r2))
