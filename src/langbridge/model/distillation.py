"""The LM as the bridge's teacher: how far the LM behind a soft prompt is from the same LM that read the text itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 1e-6
"""Smallest probability of all other tokens together."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What is compared, and how much it counts."""

    temperature: float = 1.0
    divergence: float = 1.0
    """Weight of the divergence; the cross-entropy on the LM's own answer has weight 1."""
    top_k: int = 64
    """Tokens that are compared one by one, all others as one; 0: every token."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The most likely tokens of each target position."""

    ids: Tensor
    """(tokens, k)"""
    logs: Tensor
    """(tokens, k): log-probabilities at the temperature, over the whole vocabulary."""


def teacher(logits: Tensor, settings: Distillation) -> Teacher:
    """Keep the most likely tokens of logits (tokens, vocabulary)."""
    logs = (logits.float() / settings.temperature).log_softmax(dim=-1)
    if not settings.top_k:
        return Teacher(ids=torch.arange(logs.shape[-1], device=logs.device).expand_as(logs), logs=logs)
    found = logs.topk(min(settings.top_k, logs.shape[-1]), dim=-1)
    return Teacher(ids=found.indices, logs=found.values)


def divergence(logits: Tensor, wanted: Teacher, settings: Distillation) -> Tensor:
    """Return the mean Kullback-Leibler divergence from `wanted` to logits (tokens, vocabulary): a scalar, nats.

    It is multiplied by the squared temperature, so that its gradient keeps its size whatever the temperature is.
    """
    found = (logits.float() / settings.temperature).log_softmax(dim=-1).gather(1, wanted.ids)
    each = (wanted.logs.exp() * (wanted.logs - found)).sum(dim=-1)
    if wanted.ids.shape[1] < logits.shape[1]:
        theirs, ours = rest(wanted.logs), rest(found)
        each = each + theirs * (theirs.log() - ours.log())
    return settings.temperature**2 * each.mean()


def rest(logs: Tensor) -> Tensor:
    """Return the probability of all other tokens: (tokens,)."""
    return (1 - logs.exp().sum(dim=-1)).clamp(min=LEAST)
