"""Embeddings of added whitespace tokens beside an encoder's own: the only rows of its table that may train."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SAMPLE = 4096
"""Rows whose mean a new row starts with."""


class WhitespaceRows(nn.Module):
    """Looks up some ids in rows of its own and all others in the encoder's embedding layer.

    A row starts as the encoder's own row of that id where its table has one (spare rows), else as the mean of rows.
    Rows are vectors as the encoder reads them: behind the scale that some families put on what they look up.
    """

    ids: Tensor
    """(rows,), ascending."""

    def __init__(self, base: nn.Module, ids: Sequence[int]) -> None:
        super().__init__()
        self.base = base
        device = self.weight.device
        self.register_buffer("ids", torch.tensor(sorted(ids), device=device), persistent=False)
        with torch.no_grad():
            own = self.weight.shape[0]
            mean = base(torch.linspace(0, own - 1, min(own, SAMPLE), device=device).long()).float().mean(dim=0)
            rows = [base(torch.tensor([i], device=device))[0].float() if i < own else mean for i in sorted(ids)]
        self.rows = nn.Parameter(torch.stack(rows))

    @property
    def weight(self) -> Tensor:
        """The encoder's own table: (vocabulary, width)."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids (batch, source): (batch, source, width)."""
        place = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        ours = self.ids[place] == ids
        vectors: Tensor = self.base(ids.masked_fill(ours, 0))
        return torch.where(ours[..., None], self.rows[place].to(vectors.dtype), vectors)
