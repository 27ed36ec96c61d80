"""One step's batch -> micro-batches: bounded in LM tokens, little padding, rows of one opening together."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from langbridge.model import Batch, LangBridge
from langbridge.model.opening import shared_length

WORTH = {"cpu": 64}
"""LM tokens that a micro-batch of its own must save; one more costs about as much time as these."""
WORTH_ELSEWHERE = 512


def micro_batches(model: LangBridge, batch: Batch, *, parts: int, budget: int | None) -> list[Batch]:
    """Split a batch into at least `parts` micro-batches of at most `budget` LM tokens, padding included.

    Rows are sorted by opening and length, so their order is not kept. A row longer than the budget stands alone. Where
    the LM packs rows, only their own tokens count.
    """
    lengths = model.lengths(batch)
    most_rows, packs = -(-len(lengths) // parts), model.language_model.packing is not None
    pieces = [
        piece
        for group in _groups(batch, WORTH.get(batch.target_ids.device.type, WORTH_ELSEWHERE))
        for piece in _cut(group[lengths[group].argsort(stable=True)], lengths, most_rows, budget, packs)
    ]
    return [batch] if len(pieces) == 1 else [batch.rows(piece) for piece in pieces]


def _groups(batch: Batch, worth: int) -> Iterator[Tensor]:
    """Yield row numbers, apart for each opening whose rows share enough tokens that other rows have not got."""
    common = shared_length(batch.before_ids, batch.before_mask)
    if common == batch.before_ids.shape[1]:  # one opening, or none
        yield torch.arange(len(batch.before_ids), device=batch.before_ids.device)
        return
    marked = batch.before_ids.masked_fill(batch.before_mask == 0, -1)
    kinds, kind = torch.unique(marked, dim=0, return_inverse=True)
    own = (kinds >= 0).sum(dim=1) - common  # tokens of an opening beyond those that all rows share
    counts = kind.bincount(minlength=len(kinds))
    apart = own * counts >= worth
    for number in apart.nonzero()[:, 0]:
        yield (kind == number).nonzero()[:, 0]
    if not bool(apart.all()):
        yield (~apart[kind]).nonzero()[:, 0]


def _cut(order: Tensor, lengths: Tensor, most_rows: int, budget: int | None, packs: bool) -> Iterator[Tensor]:
    """Cut rows, sorted by length, wherever one more would be too many."""
    bounds, total = [0], 0
    for place, length in enumerate(lengths[order].tolist()):
        rows, total = place - bounds[-1] + 1, total + length
        area = total if packs else rows * length
        if rows > 1 and (rows > most_rows or (budget is not None and area > budget)):
            bounds.append(place)
            total = length
    for first, end in pairwise([*bounds, len(order)]):
        yield order[first:end]
