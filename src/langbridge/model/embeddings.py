"""Vectors in the LM's input space with their mask, and the one way to put them together."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Embeddings:
    """LM-space vectors with their mask; all padding is on the left once `join` has made them."""

    vectors: Tensor
    """(batch, length, lm_dim), float."""
    mask: Tensor
    """(batch, length), int64, 1 = content."""

    def expand(self, batch: int) -> "Embeddings":
        """Repeat a single row `batch` times without copying."""
        return Embeddings(self.vectors.expand(batch, -1, -1), self.mask.expand(batch, -1))


def join(*parts: Embeddings) -> Embeddings:
    """Concatenate along the length and move all padding to the left."""
    vectors = torch.cat([part.vectors for part in parts], dim=1)  # (batch, length, lm_dim)
    mask = torch.cat([part.mask for part in parts], dim=1)  # (batch, length)
    order = mask.argsort(dim=1, stable=True)  # stable: content keeps its order behind the padding
    return Embeddings(vectors.gather(1, order[..., None].expand_as(vectors)), mask.gather(1, order))


def flush(whole: Embeddings) -> Embeddings:
    """Move all padding to the right, and drop columns that are padding in every row."""
    order = whole.mask.argsort(dim=1, descending=True, stable=True)[:, : int(whole.mask.sum(dim=1).max())]
    vectors = whole.vectors.gather(1, order[..., None].expand(-1, -1, whole.vectors.shape[2]))
    return Embeddings(vectors, whole.mask.gather(1, order))
