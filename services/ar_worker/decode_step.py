"""
One more id for every row of a slot cache: the net's forward pass for single ids, over the net's own weights.

transformers' modules compute the same, for one request at a time and at four times the host's time: here the rows have lengths and
positions of their own, grouped heads are not repeated, and only ids that can be drawn get logits. Knows nothing of requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention
from transformers.models.glm_image.modeling_glm_image import GlmImageRMSNorm

from services.ar_worker.kv_cache import SlotCache
from services.ar_worker.settings import CompileMode
from services.ar_worker.weights import ArModel

_LEAST_STATIC_LENGTH = 256

HEAD_ROWS = 1024
"""On a CPU the head is multiplied in parts of so many ids: the library slows down on matrices that outgrow its cache."""

ATTENDED_ROWS = 8
"""
On a CPU attention is bound by reading keys and values, so rows of different lengths are attended to in parts of so many, each up to its own
longest. Fewer would save more reading and cost more calls.
"""

_WORTH_PARTS = 0.9
"""Positions that parts read, over those that all rows together would: above, the calls cost more than is saved."""

Linear = Callable[[Tensor], Tensor]


class DecodeStep:
    """
    Args:
        num_ids: ids that get logits: the codebook.
        compiler: torch.compile's backend.
    Attributes:
        logits: [slots, num_ids]: of each row, for its next id.
        part: rows whose attention is computed together, so that they had better be of like length.
    """

    def __init__(self, model: ArModel, cache: SlotCache, num_ids: int, mode: CompileMode = "off", compiler: str = "inductor") -> None:
        text = model.net.model.language_model
        config = model.net.config.text_config
        self._text = text
        self._head = model.net.lm_head
        self._cache = cache
        self._num_ids = num_ids
        self._heads = config.num_attention_heads
        self._kv_heads, _, self._head_dim = cache.kv.shape[3:]
        self._rotary_dim = cache.rotary.shape[3]
        self._is_static = mode != "off"
        self.part = ATTENDED_ROWS if model.device.type == "cpu" and not self._is_static else cache.num_slots
        self.logits = torch.zeros(cache.num_slots, num_ids, device=model.device, dtype=model.dtype)
        self._static_logits = torch.zeros_like(self.logits) if self._is_static else self.logits
        self._rows = torch.arange(cache.num_slots, device=model.device)
        self._positions = torch.arange(cache.capacity, device=model.device)
        # Where [2, slots, kv_heads, capacity, head_dim] without its last axis has position 0 of each key head, then of each value head.
        first = torch.arange(2 * cache.num_slots * self._kv_heads, device=model.device) * cache.capacity
        self._first_positions = first.view(2, cache.num_slots, self._kv_heads).transpose(0, 1).reshape(cache.num_slots, -1)
        self._layers: list[_Layer] = []
        self.read_layers()
        self._run: Callable[[int, int, tuple[_Part, ...], Tensor], None] = self._forward
        if mode == "compile":
            self._run = torch.compile(self._forward, dynamic=False, backend=compiler)
        elif mode == "cuda_graphs":
            self._run = _Graphs(self._forward)

    def read_layers(self) -> None:
        """Look at the net's layers again: after something wrapped them, or took its wrapping off."""
        self._layers = [_Layer(layer) for layer in self._text.layers]
        self._project = _head(self._head, self._num_ids, self.logits.device)

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

        As many at a time as a step has rows, by the very products and kernels of a step: in bfloat16 others would round otherwise, and a
        successor would draw other ids than the worker before it.

        Returns:
            [num_ids]: the logits of what follows the last.
        """
        num_rows, last = self._cache.num_slots, first + count - 1
        logits = torch.empty_like(self.logits)
        for start in range(first, first + count, num_rows):
            end = min(start + num_rows - 1, last)
            # Rows that are too many repeat the last one, and write what it writes.
            size = num_rows if self._is_static else end - start + 1
            positions = torch.arange(start, start + size, device=logits.device).clamp_(max=end)
            length = self._static_length(end) if self._is_static else end + 1
            rows = torch.full_like(positions, slot)
            self._run_rows(rows, positions, (_Part(0, size, length, is_uniform=False, slot=slot),), logits[:size])
        return logits[end - start]

    def _static_length(self, length: int) -> int:
        """A power of two that has room for one more than `length`."""
        powers = math.ceil(math.log2((length + 1) / _LEAST_STATIC_LENGTH))
        return min(_LEAST_STATIC_LENGTH << max(0, powers), self._cache.capacity)

    def _forward(self, start: int, stop: int, parts: tuple[_Part, ...], logits: Tensor) -> None:
        self._run_rows(self._rows[start:stop], self._cache.lengths[start:stop], parts, logits)

    def _run_rows(self, rows: Tensor, positions: Tensor, parts: tuple[_Part, ...], logits: Tensor) -> None:
        """Run the ids at `positions` [n] of the slots `rows` [n], and fill `logits` [n, num_ids]."""
        cache = self._cache
        hidden = self._text.embed_tokens(cache.ids[rows, positions])
        rotary = cache.rotary[rows, positions]
        cosines, sines = rotary[:, 0, None], rotary[:, 1, None]
        targets = (self._first_positions[rows] + positions[:, None]).flatten()
        of_parts = positions.split([part.size for part in parts])
        masks = [self._mask(part, own, hidden.dtype) for part, own in zip(parts, of_parts, strict=True)]
        for layer, kv in zip(self._layers, cache.kv, strict=True):
            attended = self._attend(layer, layer.input_norm(hidden), kv, parts, masks, cosines, sines, targets)
            hidden = hidden + layer.after_attention_norm(layer.output(attended))
            gate, up = layer.gate_up(layer.mlp_norm(hidden)).chunk(2, dim=-1)
            hidden = hidden + layer.after_mlp_norm(layer.down(up * layer.activation(gate)))
        self._project(self._text.norm(hidden), logits)

    def _mask(self, part: _Part, positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """[rows, 1, 1, length]: what hides everything behind each row's own position."""
        if part.is_uniform:
            return None
        # Added to the scores, and in their dtype, so that no layer has to make it anew from booleans.
        mask = torch.zeros(part.size, part.length, device=positions.device, dtype=dtype)
        return mask.masked_fill_(self._positions[: part.length] > positions[:, None], -math.inf)[:, None, None]

    def _attend(
        self,
        layer: _Layer,
        hidden: Tensor,
        kv: Tensor,
        parts: tuple[_Part, ...],
        masks: list[Tensor | None],
        cosines: Tensor,
        sines: Tensor,
        targets: Tensor,
    ) -> Tensor:
        """[n, hidden] -> [n, heads * head_dim]; adds each row's keys and values to `kv` [2, slots, kv_heads, capacity, head_dim]."""
        n, rotated = hidden.shape[0], self._heads + self._kv_heads
        qkv = layer.qkv(hidden).view(n, -1, self._head_dim)
        turned = qkv[:, :rotated, : self._rotary_dim]
        half = self._rotary_dim // 2
        swapped = torch.cat((turned[..., half:], turned[..., :half]), dim=-1)
        qkv[:, :rotated, : self._rotary_dim] = turned * cosines + swapped * sines
        kv.view(-1, self._head_dim).index_copy_(0, targets, qkv[:, self._heads :].reshape(-1, self._head_dim))
        # The queries that share a key head are as good as so many positions, so no head is repeated.
        queries = qkv[:, : self._heads].view(n, self._kv_heads, -1, self._head_dim)
        attended = [
            scaled_dot_product_attention(of_part, *part.held(kv), attn_mask=mask, scale=layer.scaling)
            for part, mask, of_part in zip(parts, masks, queries.split([part.size for part in parts]), strict=True)
        ]
        return (attended[0] if len(attended) == 1 else torch.cat(attended)).reshape(n, -1)


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


class _Layer:
    """One decoder layer's parts, each the cheapest call that computes what the net's module does."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm = _norm(layer.input_layernorm)
        self.after_attention_norm = _norm(layer.post_self_attn_layernorm)
        self.mlp_norm = _norm(layer.post_attention_layernorm)
        self.after_mlp_norm = _norm(layer.post_mlp_layernorm)
        self.qkv = _side_by_side([attention.q_proj, attention.k_proj, attention.v_proj])
        self.output = _linear(attention.o_proj)
        self.gate_up = _linear(mlp.gate_up_proj)
        self.down = _linear(mlp.down_proj)
        self.activation: Linear = mlp.activation_fn
        self.scaling: float = attention.scaling


def is_plain(module: nn.Module) -> bool:
    """
    Is it torch's own linear layer over its own matrix, with nothing around it?

    LoRA and bitsandbytes put another class in its place, torchao another tensor, accelerate's offloading another `forward`.
    """
    return type(module) is nn.Linear and _is_bare(module)


def _is_bare(module: Any) -> bool:
    return (
        type(module.weight.data) is Tensor
        and module.weight.device.type != "meta"
        and "forward" not in vars(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def _linear(module: nn.Module) -> Linear:
    if not is_plain(module):
        return lambda hidden: module(hidden)
    weight, bias = module.weight.data, None if module.bias is None else module.bias.data
    return lambda hidden: linear(hidden, weight, bias)


def _norm(module: Any) -> Linear:
    """torch's own norm, which is one kernel where the module runs six. Below float32 the module rounds before it scales; so does this."""
    if type(module) is not GlmImageRMSNorm or not _is_bare(module):
        return lambda hidden: module(hidden)
    weight, epsilon = module.weight.data, module.variance_epsilon
    if weight.dtype == torch.float32:
        return lambda hidden: rms_norm(hidden, weight.shape, weight, epsilon)
    return lambda hidden: weight * rms_norm(hidden, weight.shape, eps=epsilon)


def _side_by_side(modules: list[nn.Module]) -> Linear:
    """Several layers with one input as one product; their weights become views of its matrix, so nothing is held twice."""
    if not all(is_plain(module) for module in modules) or len({module.bias is None for module in modules}) > 1:
        return lambda hidden: torch.cat([module(hidden) for module in modules], dim=-1)
    weight = _join([module.weight for module in modules])
    bias = None if modules[0].bias is None else _join([module.bias for module in modules])
    return lambda hidden: linear(hidden, weight, bias)


def _join(parts: list[nn.Parameter]) -> Tensor:
    """One tensor of parts that follow each other along the first axis. They are moved together unless they already lie so."""
    first, place = parts[0].data, parts[0].data_ptr()
    lie_together = all(part.is_contiguous() for part in parts)
    for part in parts:
        same_storage = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        lie_together = lie_together and same_storage and part.data_ptr() == place
        place += part.numel() * part.element_size()
    sizes = [part.shape[0] for part in parts]
    if lie_together:
        return first.as_strided((sum(sizes), *first.shape[1:]), first.stride(), first.storage_offset())
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split(sizes), strict=True):
        part.data = view
    return whole


def _head(module: nn.Module, num_ids: int, device: torch.device) -> Callable[[Tensor, Tensor], None]:
    """The head as a function that fills [n, num_ids] from hidden states [n, hidden]."""
    if not is_plain(module) or module.bias is not None:

        def call(hidden: Tensor, out: Tensor) -> None:
            out.copy_(module(hidden)[:, :num_ids])

        return call
    weight = module.weight.data[:num_ids].t()
    parts = weight.split(HEAD_ROWS if device.type == "cpu" else num_ids, dim=1)

    def multiply(hidden: Tensor, out: Tensor) -> None:
        for part, columns in zip(parts, out.split([part.shape[1] for part in parts], dim=1), strict=True):
            torch.mm(hidden, part, out=columns)

    return multiply


class _Graphs:
    """
    Steps recorded as CUDA graphs, one for each length, when it first comes.

    All slots and the same buffers every time, so only the length tells two recordings apart.
    """

    def __init__(self, run: Callable[[int, int, tuple[_Part, ...], Tensor], None]) -> None:
        self._record = run
        self._graphs: dict[tuple[_Part, ...], torch.cuda.CUDAGraph] = {}

    def __call__(self, start: int, stop: int, parts: tuple[_Part, ...], logits: Tensor) -> None:
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
