"""
The AR model's keys and values, for one request whose length is known before it starts.

Knows transformers' cache interface and nothing else of the model. transformers' own growing cache copies everything it holds
at every token, which is quadratic in a grid's thousands of ids; its static cache makes attention run over the empty end.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class GridCache(Cache):  # type: ignore[misc]  # transformers is Any to mypy
    """
    One layer per decoder layer, each allocated once.

    Args:
        capacity: prompt ids and generated ids together.
    """

    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[_PreallocatedLayer(capacity) for _ in range(num_layers)])


class _PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is Any to mypy
    """
    `keys` and `values`: [B, kv_heads, capacity, head_dim], of which the first `_length` positions are filled.

    Otherwise a growing layer, so that the model makes the same masks for it.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Here and not before: only the states know batch, heads, dtype and device.
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_empty(*states.shape[:2], self._capacity, states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, kv_heads, N, head_dim] and return all that is filled, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self._length = self._length, self._length + key_states.shape[2]
        self.keys[:, :, start : self._length] = key_states
        self.values[:, :, start : self._length] = value_states
        return self.keys[:, :, : self._length], self.values[:, :, : self._length]

    def get_seq_length(self) -> int:
        return self._length
