"""Bridges: encoder states -> soft prompt. The only part that must be trained."""

import torch
from torch import Tensor, nn

from langbridge.model.embeddings import Embeddings, join


class LinearBridge(nn.Module):
    """One linear layer with bias, and one learned vector that ends the soft prompt (LangBridge, section 3).

    `scale` is the standard deviation of the LM's word embeddings: from a random start, states of unit variance map to
    vectors of that size.
    """

    def __init__(self, encoder_dim: int, lm_dim: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(encoder_dim, lm_dim)
        self.boundary = nn.Parameter(torch.empty(lm_dim))
        nn.init.normal_(self.linear.weight, std=scale / encoder_dim**0.5)
        nn.init.zeros_(self.linear.bias)
        nn.init.normal_(self.boundary, std=scale)

    def forward(self, states: Tensor, mask: Tensor) -> Embeddings:
        """Map states (batch, source, encoder_dim) and mask (batch, source) to (batch, source + 1, lm_dim)."""
        batch = states.shape[0]
        end = self.boundary.expand(batch, 1, -1)
        return join(Embeddings(self.linear(states), mask), Embeddings(end, mask.new_ones(batch, 1)))


BRIDGES = {"linear": LinearBridge}
