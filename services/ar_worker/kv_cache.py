"""
What the AR model remembers of the requests it serves: one preallocated block of keys and values with a slot per request.

Knows transformers' cache interface and nothing else of the model. A slot's tables all count positions from the request's first
prompt id, so one length says where the next id goes in every one of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class SlotCache:
    """
    Room for `slots` requests of up to `capacity` ids each, prompt and written ids together.

    Attributes:
        kv: [num_layers, 2, slots, kv_heads, capacity, head_dim]: keys and values.
        rotary: [slots, capacity, 2, rotary_dim]: cosines, and sines with the sign that rotating half gives them, of ids to be written.
        ids: [slots, capacity] int64: the ids written.
        lengths: [slots] int64: positions whose keys and values are there.
    """

    def __init__(
        self,
        slots: int,
        capacity: int,
        num_layers: int,
        kv_heads: int,
        head_dim: int,
        rotary_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        # Zeros: a masked position counts nothing times its value, and nothing times what memory happened to hold may be no number.
        self.kv = _zeros((num_layers, 2, slots, kv_heads, capacity, head_dim), device, dtype)
        self.rotary = _zeros((slots, capacity, 2, rotary_dim), device, dtype)
        self.ids = _zeros((slots, capacity), device, torch.int64)
        self.lengths = torch.zeros(slots, dtype=torch.int64, device=device)
        self.num_slots = slots
        self.capacity = capacity
        self._used = [0] * slots  # positions of each slot in which there ever was anything

    def take(self, slot: int, total: int) -> None:
        """
        Make a slot ready for a request that fills `total` positions.

        What another left behind its end is masked, which lets numbers count nothing; what overflowed there would break this one too.
        """
        self._clear(slot, 0)
        self._used[slot] = max(self._used[slot], total)

    def move(self, source: int, target: int, length: int, total: int) -> None:
        """
        Copy one slot over another.

        Args:
            length: positions filled with keys and values.
            total: positions filled with anything.
        """
        self.copy_prefix(source, target, length)
        self.rotary[target, :total] = self.rotary[source, :total]
        self.ids[target, :total] = self.ids[source, :total]
        self.lengths[target] = self.lengths[source]
        self._clear(target, length)
        self._used[target] = max(self._used[target], total)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the keys and values of the first `length` positions."""
        self.kv[:, :, target, :, :length] = self.kv[:, :, source, :, :length]

    def _clear(self, slot: int, start: int) -> None:
        self.kv[:, :, slot, :, start : self._used[slot]] = 0

    def writer(self, slot: int, length: int) -> SlotWriter:
        """The cache that the model fills when it reads a prompt into `slot`, after `length` positions that are there."""
        return SlotWriter(self.kv[:, :, slot : slot + 1], length)


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros that, on a CPU, take memory only where they are written: torch's own are written at once, gigabytes of them."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


class SlotWriter(Cache):  # type: ignore[misc]  # transformers is Any to mypy
    """
    One slot as transformers' modules fill it.

    Args:
        kv: [num_layers, 2, 1, kv_heads, capacity, head_dim].
        length: positions that are filled already.
    """

    def __init__(self, kv: Tensor, length: int) -> None:
        super().__init__(layers=[_PreallocatedLayer(keys, values, length) for keys, values in kv])


class _PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is Any to mypy
    """
    `keys` and `values`: [1, kv_heads, capacity, head_dim], of which the first `_length` positions are filled.

    Otherwise a growing layer, so that the model makes the same masks for it. transformers' own growing layer copies everything it
    holds at every token; its static one makes attention run over the empty end.
    """

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._length = length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [1, kv_heads, N, head_dim] and return all that is filled, as views."""
        start, self._length = self._length, self._length + key_states.shape[2]
        self.keys[:, :, start : self._length] = key_states
        self.values[:, :, start : self._length] = value_states
        return self.keys[:, :, : self._length], self.values[:, :, : self._length]

    def get_seq_length(self) -> int:
        return self._length
