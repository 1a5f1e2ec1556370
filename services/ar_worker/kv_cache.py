"""
What the AR model remembers of the requests it serves: one preallocated block of keys and values with a slot per request.

Knows nothing else of the model. A slot's tables all count positions from the request's first prompt id, so one length says where the next
id goes in every one of them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


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


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros that, on a CPU, take memory only where they are written: torch's own are written at once, gigabytes of them."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
