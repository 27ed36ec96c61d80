"""Several sequences in one row of the LM, each of which sees itself alone: block-diagonal causal attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langbridge.model.embeddings import Embeddings


@dataclass(frozen=True)
class Packed:
    """Rows that hold several sequences, and where each position of a sequence lies."""

    vectors: Tensor
    """(rows, width, lm_dim)"""
    mask: Tensor
    """(rows, 1, width, opening + width), of the vectors' type: 0 where a position sees another, else very low."""
    positions: Tensor
    """(rows, width), int64: counted in each sequence by itself."""
    apart: tuple[Tensor, Tensor]
    """Row and column of each content position among the sequences."""
    together: tuple[Tensor, Tensor]
    """Row and column of the same position here."""

    def unpack(self, states: Tensor, shape: Sequence[int]) -> Tensor:
        """Return states (rows, width, hidden) as those of the sequences: (*shape, hidden), 0 at padding."""
        apart, together = ([part.to(states.device) for part in places] for places in (self.apart, self.together))
        return states.new_zeros(*shape, states.shape[-1]).index_put(tuple(apart), states[tuple(together)])


def pack(whole: Embeddings, most: int, opening: int = 0) -> Packed:
    """Put sequences that are padded on the right into rows of at most `most` positions, or as long as the longest.

    `opening`: positions that every sequence goes on from, held in a cache in front of every row.
    """
    device = whole.mask.device
    rows, starts = arrange(whole.mask.sum(dim=1).tolist(), most)
    owner, column = whole.mask.nonzero(as_tuple=True)
    row = torch.tensor(rows, device=device)[owner]
    place = torch.tensor(starts, device=device)[owner] + column
    count, width = max(rows) + 1, int(place.max()) + 1
    vectors = whole.vectors.new_zeros(count, width, whole.vectors.shape[2])
    vectors = vectors.index_put((row, place), whole.vectors[owner, column])
    owners = torch.full((count, width), -1, device=device).index_put((row, place), owner)
    positions = torch.zeros((count, width), dtype=torch.int64, device=device).index_put((row, place), opening + column)
    own = (owners[:, :, None] == owners[:, None, :]).tril()  # padding sees padding: no position sees nothing
    seen = torch.cat([own.new_ones(count, width, opening), own], dim=2)[:, None]
    hidden = torch.finfo(vectors.dtype).min
    mask = torch.zeros(seen.shape, dtype=vectors.dtype, device=device).masked_fill(~seen, hidden)
    return Packed(vectors, mask, positions, (owner, column), (row, place))


def arrange(lengths: Sequence[int], most: int) -> tuple[list[int], list[int]]:
    """Return row and first column of each sequence, in as few rows as it takes and those about equally long.

    The longest first, each in the row that is emptiest; a sequence longer than `most` makes rows as long as itself.
    """
    most = max(most, *lengths)
    rows, starts = [0] * len(lengths), [0] * len(lengths)
    for count in range(-(-sum(lengths) // most), len(lengths) + 1):
        filled = [0] * count
        for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
            row = filled.index(min(filled))
            rows[number], starts[number] = row, filled[row]
            filled[row] += lengths[number]
        if max(filled) <= most:
            break
    return rows, starts
