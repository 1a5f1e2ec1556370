"""
The language model over the net's own weights, each part the cheapest call that computes what the net's module does.

transformers' modules compute the same for one request at a time, and with far more of the host's time. What a row attends to is the
caller's affair: here are the layers, and rotation. Knows neither slots nor requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm
from transformers.models.glm_image.modeling_glm_image import GlmImageRMSNorm

from services.ar_worker.weights import ArModel

HEAD_ROWS = 1024
"""On a CPU the head is multiplied in parts of so many ids: the library slows down on matrices that outgrow its cache."""

Transform = Callable[[Tensor], Tensor]

Attend = Callable[[int, Tensor], Tensor]
"""Of a layer by its number: rotated queries, rotated keys and values [n, heads + 2 * kv_heads, head_dim] -> [n, heads * head_dim]."""


class TextNet:
    """
    Args:
        num_ids: ids that get logits: the codebook.
    """

    def __init__(self, model: ArModel, num_ids: int) -> None:
        text, config = model.net.model.language_model, model.net.config.text_config
        attention = text.layers[0].self_attn
        self._text = text
        self._head = model.net.lm_head
        self._device = model.device
        self.num_ids = num_ids
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        self.read_layers()

    def read_layers(self) -> None:
        """Look at the net's layers again: after something wrapped them, or took its wrapping off."""
        self._layers = [_Layer(layer) for layer in self._text.layers]
        self._project = _head(self._head, self.num_ids, self._device)

    def embed(self, ids: Tensor) -> Tensor:
        """[n] -> [n, hidden]."""
        embedded: Tensor = self._text.embed_tokens(ids)
        return embedded

    def run(self, hidden: Tensor, rotary: Tensor, attend: Attend) -> Tensor:
        """
        Run [n, hidden] through all layers.

        Args:
            rotary: [n, 2, rotary_dim], see `SlotCache.rotary`.
        """
        cosines, sines = rotary[:, 0, None], rotary[:, 1, None]
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(layer.input_norm(hidden)).view(hidden.shape[0], -1, self.head_dim)
            self._rotate(qkv[:, : self.heads + self.kv_heads, : rotary.shape[2]], cosines, sines)
            hidden = hidden + layer.after_attention_norm(layer.output(attend(index, qkv)))
            gate, up = layer.gate_up(layer.mlp_norm(hidden)).chunk(2, dim=-1)
            hidden = hidden + layer.after_mlp_norm(layer.down(up * layer.activation(gate)))
        return hidden

    def project(self, hidden: Tensor, logits: Tensor) -> None:
        """Fill [n, num_ids] from what the last layer made."""
        self._project(self._text.norm(hidden), logits)

    def _rotate(self, heads: Tensor, cosines: Tensor, sines: Tensor) -> None:
        half = heads.shape[-1] // 2
        swapped = torch.cat((heads[..., half:], heads[..., :half]), dim=-1)
        heads.copy_(heads * cosines + swapped * sines)


class _Layer:
    """The parts of one layer."""

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
        self.activation: Transform = mlp.activation_fn


def _is_plain(module: nn.Module) -> bool:
    """
    Is it torch's own linear layer over its own matrix, with nothing around it?

    LoRA and bitsandbytes put another class in its place, torchao another tensor, accelerate's offloading another `forward`.
    """
    return type(module) is nn.Linear and _is_unwrapped(module)


def _is_unwrapped(module: Any) -> bool:
    return (
        type(module.weight.data) is Tensor
        and module.weight.device.type != "meta"
        and "forward" not in vars(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def _linear(module: nn.Module) -> Transform:
    if not _is_plain(module):
        return lambda hidden: module(hidden)
    weight, bias = module.weight.data, None if module.bias is None else module.bias.data
    return lambda hidden: linear(hidden, weight, bias)


def _norm(module: Any) -> Transform:
    """torch's own norm, which is one kernel where the module runs six. Below float32 the module rounds before it scales; so does this."""
    if type(module) is not GlmImageRMSNorm or not _is_unwrapped(module):
        return lambda hidden: module(hidden)
    weight, epsilon = module.weight.data, module.variance_epsilon
    if weight.dtype == torch.float32:
        return lambda hidden: rms_norm(hidden, weight.shape, weight, epsilon)
    return lambda hidden: weight * rms_norm(hidden, weight.shape, eps=epsilon)


def _side_by_side(modules: list[nn.Module]) -> Transform:
    """Several layers with one input as one product; their weights become views of its matrix, so nothing is held twice."""
    if not all(_is_plain(module) for module in modules) or len({module.bias is None for module in modules}) > 1:
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
    if not _is_plain(module) or module.bias is not None:

        def call(hidden: Tensor, out: Tensor) -> None:
            out.copy_(module(hidden)[:, :num_ids])

        return call
    weight = module.weight.data[:num_ids].t()
    parts = weight.split(HEAD_ROWS if device.type == "cpu" else num_ids, dim=1)

    def multiply(hidden: Tensor, out: Tensor) -> None:
        for part, columns in zip(parts, out.split([part.shape[1] for part in parts], dim=1), strict=True):
            torch.mm(hidden, part, out=columns)

    return multiply
