"""
One more id for every row of a slot cache: the net's forward pass for single ids.

The rows have lengths and positions of their own, grouped heads are not repeated, and only ids that can be drawn get logits. Knows
nothing of requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from services.ar_worker.kv_cache import SlotCache
from services.ar_worker.layers import TextNet
from services.ar_worker.settings import CompileMode

_LEAST_STATIC_LENGTH = 256

_READ_ROWS = 256
"""Ids that are read at once where steps have no shape of their own: what was written is read in few passes, and not all in one."""

ATTENDED_ROWS = 8
"""
On a CPU attention is bound by reading keys and values, so rows of different lengths are attended to in parts of so many, each up to its own
longest. Fewer would save more reading and cost more calls.
"""

_WORTH_PARTS = 0.9
"""Positions that parts read, over those that all rows together would: above, the calls cost more than is saved."""


class DecodeStep:
    """
    Args:
        compiler: torch.compile's backend.
    Attributes:
        logits: [slots, num_ids]: of each row, for its next id.
        part: rows whose attention is computed together, so that they had better be of like length.
    """

    def __init__(self, net: TextNet, cache: SlotCache, mode: CompileMode = "off", compiler: str = "inductor") -> None:
        device = cache.kv.device
        self._net = net
        self._cache = cache
        self._is_static = mode != "off"
        self.part = ATTENDED_ROWS if device.type == "cpu" and not self._is_static else cache.num_slots
        self.logits = torch.zeros(cache.num_slots, net.num_ids, device=device, dtype=cache.kv.dtype)
        self._static_logits = torch.zeros_like(self.logits) if self._is_static else self.logits
        self._rows = torch.arange(cache.num_slots, device=device)
        self._positions = torch.arange(cache.capacity, device=device)
        # Where [2, slots, kv_heads, capacity, head_dim] without its last axis has position 0 of each key head, then of each value head.
        first = torch.arange(2 * cache.num_slots * net.kv_heads, device=device) * cache.capacity
        self._first_positions = first.view(2, cache.num_slots, net.kv_heads).transpose(0, 1).reshape(cache.num_slots, -1)
        self._run: Callable[[int, int, tuple[_Part, ...], Tensor], None] = self._forward
        if mode == "compile":
            self._run = torch.compile(self._forward, dynamic=False, backend=compiler)
        elif mode == "cuda_graphs":
            self._run = _Graphs(self._forward, device)

    def __call__(self, start: int, stop: int, lengths: Sequence[int], is_bare: bool = True) -> None:
        """
        Run the last id of the slots `start` to `stop` (exclusive), and fill their logits.

        Args:
            lengths: of each, before this id.
            is_bare: is the net without adapters? What was compiled or recorded knows no others.
        """
        cache = self._cache
        if self._is_static:
            # Slots outside are computed and not used. What they write lies behind their own length, where they write again.
            run = self._run if is_bare else self._forward
            run(0, cache.num_slots, (_Part(0, cache.num_slots, self._static_length(max(lengths)), False),), self._static_logits)
            self.logits[start:stop] = self._static_logits[start:stop]
        else:
            self._run(start, stop, _parts(start, lengths, self.part), self.logits[start:stop])
        cache.lengths[start:stop] += 1

    def read(self, slot: int, first: int, count: int) -> Tensor:
        """
        Run `count` ids that lie in a slot from position `first` on, as if one step after another had written them.

        Where steps have one shape, as many at a time as they have rows, by their very products and kernels: in bfloat16 others would round
        otherwise, and a successor would draw other ids than the worker before it.

        Returns:
            [num_ids]: the logits of what follows the last.
        """
        num_rows, last = self._cache.num_slots if self._is_static else _READ_ROWS, first + count - 1
        for start in range(first, first + count, num_rows):
            end = min(start + num_rows - 1, last)
            # Rows that are too many repeat the last one, and write what it writes.
            size = num_rows if self._is_static else end - start + 1
            positions = torch.arange(start, start + size, device=self.logits.device).clamp_(max=end)
            length = self._static_length(end) if self._is_static else end + 1
            rows = torch.full_like(positions, slot)
            hidden = self._pass(rows, positions, (_Part(0, size, length, is_uniform=False, slot=slot),))
        # The head, too, of as many rows as in a step.
        hidden = hidden if self._is_static else hidden[-1:]
        logits = self.logits.new_empty(len(hidden), self._net.num_ids)
        self._net.project(hidden, logits)
        return logits[end - start if self._is_static else 0]

    def _static_length(self, length: int) -> int:
        """A power of two that has room for one more than `length`."""
        powers = math.ceil(math.log2((length + 1) / _LEAST_STATIC_LENGTH))
        return min(_LEAST_STATIC_LENGTH << max(0, powers), self._cache.capacity)

    def _forward(self, start: int, stop: int, parts: tuple[_Part, ...], logits: Tensor) -> None:
        self._net.project(self._pass(self._rows[start:stop], self._cache.lengths[start:stop], parts), logits)

    def _pass(self, rows: Tensor, positions: Tensor, parts: tuple[_Part, ...]) -> Tensor:
        """Run the ids at `positions` [n] of the slots `rows` [n] through the layers: [n, hidden]."""
        cache, net = self._cache, self._net
        targets = (self._first_positions[rows] + positions[:, None]).flatten()
        sizes = [part.size for part in parts]
        hidden = net.embed(cache.ids[rows, positions])
        masks = [self._mask(part, own, hidden.dtype) for part, own in zip(parts, positions.split(sizes), strict=True)]

        def attend(index: int, qkv: Tensor) -> Tensor:
            kv = cache.kv[index]
            kv.view(-1, net.head_dim).index_copy_(0, targets, qkv[:, net.heads :].reshape(-1, net.head_dim))
            # The queries that share a key head are as good as so many positions, so no head is repeated.
            queries = qkv[:, : net.heads].view(qkv.shape[0], net.kv_heads, -1, net.head_dim)
            attended = [
                scaled_dot_product_attention(of_part, *part.held(kv), attn_mask=mask, scale=net.scaling)
                for part, mask, of_part in zip(parts, masks, queries.split(sizes), strict=True)
            ]
            return (attended[0] if len(attended) == 1 else torch.cat(attended)).reshape(qkv.shape[0], -1)

        return net.run(hidden, cache.rotary[rows, positions], attend)

    def _mask(self, part: _Part, positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """[rows, 1, 1, length]: what hides everything behind each row's own position."""
        if part.is_uniform:
            return None
        # Added to the scores, and in their dtype, so that no layer has to make it anew from booleans.
        mask = torch.zeros(part.size, part.length, device=positions.device, dtype=dtype)
        return mask.masked_fill_(self._positions[: part.length] > positions[:, None], -math.inf)[:, None, None]


class _Part(NamedTuple):
    """
    Rows that attend together to the first `length` positions: those of the slots `start` to `stop` (exclusive).

    Attributes:
        is_uniform: has each row that many, with the one it adds?
        slot: the one slot in which all of them are, instead of one for each.
    """

    start: int
    stop: int
    length: int
    is_uniform: bool
    slot: int | None = None

    @property
    def size(self) -> int:
        return self.stop - self.start

    def held(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, kv_heads, length, head_dim] among a layer's [2, slots, kv_heads, capacity, head_dim], uncopied."""
        rows = kv[:, self.start : self.stop] if self.slot is None else kv[:, self.slot, None].expand(-1, self.size, -1, -1, -1)
        keys, values = rows[:, :, :, : self.length]
        return keys, values


def _parts(start: int, lengths: Sequence[int], size: int) -> tuple[_Part, ...]:
    """Slots from `start` on, `size` at a time; all together, if that saves hardly any reading."""
    cuts = [lengths[first : first + size] for first in range(0, len(lengths), size)]
    if sum(len(cut) * max(cut) for cut in cuts) > _WORTH_PARTS * len(lengths) * max(lengths):
        cuts, size = [lengths], len(lengths)
    return tuple(_Part(start + i * size, start + i * size + len(cut), max(cut) + 1, len(set(cut)) == 1) for i, cut in enumerate(cuts))


class _Graphs:
    """
    Steps recorded as CUDA graphs, one for each length, when it first comes.

    All slots and the same buffers every time, so only the length tells two recordings apart.
    """

    def __init__(self, run: Callable[[int, int, tuple[_Part, ...], Tensor], None], device: torch.device) -> None:
        self._record = run
        self._device = device
        self._graphs: dict[tuple[_Part, ...], torch.cuda.CUDAGraph] = {}

    def __call__(self, start: int, stop: int, parts: tuple[_Part, ...], logits: Tensor) -> None:
        # Streams and recordings are of the thread's current device, which nobody else sets.
        with torch.cuda.device(self._device):
            if parts not in self._graphs:
                # Once without recording: libraries choose their kernels and take their workspaces at the first call.
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    self._record(start, stop, parts, logits)
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self._record(start, stop, parts, logits)
                self._graphs[parts] = graph
            self._graphs[parts].replay()
