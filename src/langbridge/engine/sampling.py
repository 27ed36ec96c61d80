"""Logits -> the next token of one row, drawn with the row's own generator: who else is in the batch does not matter."""

import torch
from torch import Tensor

from langbridge.generate import Sampling

HEAD = 256
"""Likeliest tokens among which a nucleus is looked for first."""


def generator_of(sampling: Sampling, index: int) -> torch.Generator | None:
    """Return the generator of completion `index` of a request; None where nothing is drawn."""
    if sampling.temperature == 0:
        return None
    return torch.Generator().manual_seed(seed_of(sampling, index))


def seed_of(sampling: Sampling, index: int) -> int:
    """Return one seed for two numbers, so that completion 1 of seed 0 is not completion 0 of seed 1."""
    return (sampling.seed * 0x9E3779B1 + index * 0x85EBCA77) % 2**63


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Return one token for logits (vocabulary,): temperature, then top_k, then top_p, as `transformers` does."""
    ids, probabilities = likely(logits.float().cpu() / sampling.temperature, sampling.top_k, sampling.top_p)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def likely(logits: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the tokens that may be drawn, likeliest first, with their probabilities."""
    most = min(top_k or len(logits), len(logits))
    if top_p == 1 and most == len(logits):
        return torch.arange(len(logits)), logits.softmax(dim=0)
    if top_p < 1 and most > HEAD:  # sorting a whole vocabulary takes longer than a small LM's step
        total = logits.topk(most).values.logsumexp(dim=0) if most < len(logits) else logits.logsumexp(dim=0)
        values, ids = logits.topk(HEAD)
        found = (values - total).exp()
        if found.sum() >= top_p:
            return _nucleus(ids, found, top_p)
    values, ids = logits.topk(most)
    return _nucleus(ids, values.softmax(dim=0), top_p)


def _nucleus(ids: Tensor, probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Keep the fewest likeliest tokens that have `top_p` of the probability together; at least one."""
    before = probabilities.cumsum(dim=0) - probabilities
    count = max(1, int((before < top_p).sum()))
    return ids[:count], probabilities[:count] / probabilities[:count].sum()
