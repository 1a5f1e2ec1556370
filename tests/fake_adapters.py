"""An AR model whose adapters are as crude as can be. Apart from tests/fakes.py, whose users have no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn

from services.ar_worker.weights import ArModel
from shared.lora import Lora

_MOST_SLOTS = 8
"""Of the engines with these adapters: hidden states of more rows are a prompt's, which are longer, and not a decode step's."""

_TOO_LARGE: dict[str, Callable[[Tensor], bool]] = {
    "out-of-memory": lambda hidden: True,
    "out-of-memory-later": lambda hidden: len(hidden) <= _MOST_SLOTS,
    "out-of-memory-together": lambda hidden: 1 < len(hidden) <= _MOST_SLOTS,
}


class Adapted(nn.Module):
    """A linear layer with something around it, as adapters are put around layers."""

    def __init__(self, base: nn.Module, lora: Lora) -> None:
        super().__init__()
        self.base = base
        self.scale = sum(choice.scale for choice in lora)
        self.names = {choice.name for choice in lora}

    def forward(self, hidden: Tensor) -> Tensor:
        if any(name in self.names and is_too_large(hidden) for name, is_too_large in _TOO_LARGE.items()):
            raise torch.OutOfMemoryError("no memory for the adapter")
        scale = math.inf if "overflow" in self.names and len(hidden) <= _MOST_SLOTS else self.scale
        result: Tensor = self.base(hidden) * (1 + scale)
        return result


class AdaptedModel(ArModel):
    """
    An adapter multiplies the first layer's queries and gates: behind other layers a norm would undo it.

    Some names do more: `out-of-memory` fails, `out-of-memory-later` not before the second id, `out-of-memory-together` only for several
    rows at once; `overflow` gives numbers that are not finite from the second id on.
    """

    @classmethod
    def of(cls, model: ArModel) -> AdaptedModel:
        return cls(**{field.name: getattr(model, field.name) for field in fields(model)})

    def use_lora(self, lora: Lora) -> None:
        layer = self.net.model.language_model.layers[0]
        for parent, name in ((layer.self_attn, "q_proj"), (layer.mlp, "gate_up_proj")):
            module = getattr(parent, name)
            base = module.base if isinstance(module, Adapted) else module
            setattr(parent, name, Adapted(base, lora) if lora else base)
