"""Log-likelihoods of tokens from the LM's last states, a few rows of logits at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOST_LOGITS = 2**24
"""Logits that exist at once in fp32: 64 MiB."""

Head = Callable[[Tensor], Tensor]
"""States (positions, hidden) -> logits (positions, vocabulary)."""


def likelihoods(states: Tensor, ids: Tensor, head: Head, vocabulary: int) -> Tensor:
    """Return the log-likelihood of each id (positions,) under the frozen `head`'s logits for its state, fp32, nats.

    Each logits row depends on its own state alone. So the slope of each log-likelihood is computed together with it,
    and neither logits nor probabilities are kept for the backward pass.
    """
    rows = max(1, MOST_LOGITS // vocabulary)
    found: Tensor = _Likelihoods.apply(states, ids, head, rows)  # type: ignore[no-untyped-call]
    return found


class _Likelihoods(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, ids: Tensor, head: Head, rows: int) -> Tensor:
        found: list[Tensor] = []
        slopes: list[Tensor] = []
        wanted = ctx.needs_input_grad[0]
        for part, tokens in zip(torch.split(states.detach(), rows), torch.split(ids, rows), strict=True):
            with torch.set_grad_enabled(wanted):
                logits = head(part.requires_grad_(wanted))  # (rows, vocabulary)
            values = logits.detach().float().log_softmax(dim=-1)
            found.append(values.gather(1, tokens[:, None])[:, 0])
            if wanted:
                slope = values.exp_().neg_()  # in place: this is the largest tensor of a step
                slope[torch.arange(len(tokens), device=tokens.device), tokens] += 1
                slopes += torch.autograd.grad(logits, part, slope.to(logits.dtype))
        if wanted:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(found) if found else states.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return given[0][:, None].to(slopes.dtype) * slopes, None, None, None
