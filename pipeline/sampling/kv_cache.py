"""The keys and values of a batch whose rows come and go: one allocation, rows aligned at their right ends."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin


class RowLayer(CacheLayerMixin):
    """One layer's keys and values, (rows, heads, room, head size), of which the first `length` columns are in use.

    Every layer keeps all columns, those of sliding windows too: their masks see to it that no more is looked at.
    """

    is_sliding = False
    keys: Any
    values: Any

    def __init__(self, rows: int, room: int) -> None:
        super().__init__()
        self._rows, self._room, self.length = rows, room, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate, by the first keys that come."""
        self.dtype, self.device = key_states.dtype, key_states.device
        _, heads, _, size = key_states.shape
        self.keys = key_states.new_zeros(self._rows, heads, self._room, size)
        self.values = value_states.new_zeros(self._rows, heads, self._room, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a step's columns, and return all that are in use."""
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns with this step's, offset)."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.length

    def get_max_length(self) -> int:
        """Columns there are."""
        return self._room


class RowCache(Cache):
    """The cache of `rows` answers at once, of `room` columns each, as transformers' models take it."""

    def __init__(self, layers: int, rows: int, room: int) -> None:
        self._held = [RowLayer(rows, room) for _ in range(layers)]
        super().__init__(layers=[*self._held])

    @property
    def length(self) -> int:
        """Columns in use."""
        return self._held[0].length

    def put(self, rows: Sequence[int], prompts: DynamicCache) -> None:
        """Take over the prompts that were just read, left-padded, as these rows: right ends meet."""
        for mine, theirs in zip(self._held, cast(list[Any], prompts.layers), strict=True):
            if not mine.is_initialized:
                mine.lazy_initialization(theirs.keys, theirs.values)
            columns = slice(mine.length - theirs.keys.shape[-2], mine.length)
            for held, read in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
                held[list(rows), :, columns] = read

    def start(self, length: int) -> None:
        """Forget all rows; the next ones have `length` columns."""
        for layer in self._held:
            layer.length = length

    def drop(self, columns: int) -> None:
        """Forget the first columns of every row."""
        for layer in self._held:
            kept = slice(columns, layer.length)
            layer.length -= columns
            for held in (layer.keys, layer.values):
                held[:, :, : layer.length] = held[:, :, kept].clone()
