"""Keys and values of rows that come and go: every row ends in the same column, shorter ones are padded on the left.

A step writes one column for all rows in place; rows join and leave between steps. Nothing is copied but the rows that
move. Columns of padding in front of the longest row are no longer looked at.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

from langbridge.errors import EngineError
from langbridge.model.opening import Opening, shareable

SPARE = 128
"""Columns that are kept free for the next steps whenever room is made."""


class KeptLayer(DynamicLayer):
    """A layer's keys and values, all of them; a sliding window is left to the mask."""

    def __init__(self, is_sliding: bool) -> None:
        super().__init__()
        self.is_sliding = is_sliding


def sliding_layers(config: PretrainedConfig) -> list[bool]:
    """Tell of each layer whether it sees a window only.

    Raises EngineError where an LM keeps more than keys and values.
    """
    cache = DynamicCache(config=config)
    if not shareable(cache):
        kinds = sorted({type(layer).__name__ for layer in cache.layers})
        raise EngineError(
            f"the LM keeps more than keys and values between tokens ({', '.join(kinds)}), which the transformers "
            "engine cannot batch: use another engine, or `langbridge generate`."
        )
    return [bool(layer.is_sliding) for layer in cache.layers]


def reading_cache(sliding: Sequence[bool], opening: Opening | None, rows: int) -> Cache:
    """Return a cache for reading `rows` new prompts behind what the LM has read in front of all of them."""
    layers = [KeptLayer(kind) for kind in sliding]
    if opening is not None:
        for layer, read in zip(layers, opening.cache.layers, strict=True):
            layer.lazy_initialization(read.keys, read.values)
            layer.keys = read.keys.expand(rows, -1, -1, -1)
            layer.values = read.values.expand(rows, -1, -1, -1)
    return Cache(layers=layers)


def whole(opening: Opening) -> bool:
    """Tell whether an opening's cache still has all of its columns: short windows drop the first ones."""
    return all(layer.keys.shape[2] == opening.length for layer in opening.cache.layers)


class RowsLayer(DynamicLayer):
    """One layer of `RowsCache`."""

    def __init__(self, rows: "RowsCache", is_sliding: bool) -> None:
        super().__init__()
        self.rows = rows
        self.is_sliding = is_sliding
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns (rows, heads, new, dim); return all that rows look at."""
        count, new, at = key_states.shape[0], key_states.shape[2], self.rows.end
        self.keys[:count, :, at : at + new] = key_states
        self.values[:count, :, at : at + new] = value_states
        seen = slice(self.rows.start, at + new)
        return self.keys[:count, :, seen], self.values[:count, :, seen]

    def get_seq_length(self) -> int:
        """Return how many columns rows look at."""
        return self.rows.end - self.rows.start


class RowsCache:
    """The rows that are being continued; row numbers are places in `lengths`."""

    def __init__(self, sliding: Sequence[bool]) -> None:
        self.lengths: list[int] = []
        """Positions that each row has filled."""
        self.start = self.end = 0
        """Columns that rows look at."""
        self.cache = Cache(layers=[RowsLayer(self, kind) for kind in sliding])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> tuple[int, int]:
        """Rows and columns that there is room for."""
        keys = self.cache.layers[0].keys
        return (0, 0) if keys is None else (keys.shape[0], keys.shape[2])

    def held(self, device: torch.device) -> Tensor:
        """Return which columns are content: (rows, columns), int64."""
        lengths = torch.tensor(self.lengths, device=device)[:, None]
        width = self.end - self.start
        return (torch.arange(width, device=device) >= width - lengths).long()

    def join(self, read: Cache, lengths: Sequence[int], copies: Sequence[int]) -> None:
        """Add rows from prompts that were read: row i of `read` has content in its first lengths[i] columns.

        copies[i] rows are made of it.
        """
        total, longest = len(self) + sum(copies), max(lengths)
        rows, columns = self.capacity
        if total > rows or longest > self.end or self.end >= columns:
            self._make_room(max(total, min(rows, 2 * total)), longest, read.layers)
        for layer, source in zip(self.cache.layers, read.layers, strict=True):
            row = len(self)
            for i, (length, count) in enumerate(zip(lengths, copies, strict=True)):
                place = slice(self.end - length, self.end)
                layer.keys[row : row + count, :, place] = source.keys[i, :, :length]
                layer.values[row : row + count, :, place] = source.values[i, :, :length]
                row += count
        self.lengths += [length for length, count in zip(lengths, copies, strict=True) for _ in range(count)]
        self._trim()

    def ready(self) -> None:
        """Make sure that the next step has a column to write into."""
        if self.end >= self.capacity[1]:
            self._make_room(len(self), 0, self.cache.layers)

    def advance(self) -> None:
        """Count the column that a step wrote."""
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def leave(self, row: int) -> None:
        """Drop a row; the last row takes its number."""
        last = len(self) - 1
        if row != last:
            for layer in self.cache.layers:
                layer.keys[row, :, self.start : self.end] = layer.keys[last, :, self.start : self.end]
                layer.values[row, :, self.start : self.end] = layer.values[last, :, self.start : self.end]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if self.lengths:
            self._trim()
        else:
            self.clear()

    def clear(self) -> None:
        """Drop all rows and the memory they were in."""
        self.lengths, self.start, self.end = [], 0, 0
        for layer in self.cache.layers:
            layer.keys = layer.values = None

    def _trim(self) -> None:
        self.start = self.end - max(self.lengths)

    def _make_room(self, rows: int, longest: int, like: Sequence[Any]) -> None:
        """Move all rows into new memory with room for `rows`, and for `longest` columns in front of the end."""
        width = self.end - self.start
        end = max(width, longest)
        for layer, source in zip(self.cache.layers, like, strict=True):
            for name in ("keys", "values"):
                old, shape = getattr(layer, name), getattr(source, name)
                new = shape.new_zeros(rows, shape.shape[1], end + SPARE, shape.shape[3])
                if self.lengths:
                    new[: len(self), :, end - width : end] = old[: len(self), :, self.start : self.end]
                setattr(layer, name, new)
        self.start, self.end = end - width, end
