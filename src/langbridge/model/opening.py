"""LM tokens that begin every row of a batch: read once without gradient, then shared as a key-value cache."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


@dataclass(frozen=True)
class Opening:
    """What a frozen LM made of the tokens that begin every row."""

    length: int
    cache: Any
    """Keys and values of one row."""
    name: str
    """What the LM's forward pass calls its cache."""

    def behind(self, rows: int) -> dict[str, Any]:
        """Return the argument that lets `rows` rows go on from here; nothing is copied."""
        cache = copy.copy(self.cache)  # the LM writes into the cache it is given
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in cache.layers:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
        return {self.name: cache}


def shareable(cache: Any) -> bool:
    """Tell whether a cache is nothing but keys and values that can be repeated for more rows."""
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and all(type(layer) in plain for layer in cache.layers)


def shared_length(ids: Tensor, mask: Tensor) -> int:
    """Return how many first tokens all rows of ids (batch, length) have in common, wherever their padding is."""
    order = mask.argsort(dim=1, descending=True, stable=True)  # content first
    ids, mask = ids.gather(1, order), mask.gather(1, order)
    same = (ids == ids[:1]).all(dim=0) & mask.bool().all(dim=0)
    return int(same.long().cumprod(dim=0).sum())


def shared_tokens(ids: Tensor, mask: Tensor) -> Tensor:
    """Return the first tokens that all rows of ids (batch, length) have in common: (1, shared)."""
    return ids[0][mask[0].bool()][: shared_length(ids, mask)][None]


def without_first(mask: Tensor, count: int) -> Tensor:
    """Hide the first `count` content tokens of each row of mask (batch, length)."""
    return mask * (mask.cumsum(dim=1) > count)


def cache_name(read: Any) -> str:
    """Return the name that the cache has in an LM's output, and in its forward pass."""
    return "cache" if "cache" in read else "past_key_values"  # the name before transformers 5.24
