"""An AR model whose adapters are as crude as can be. Apart from tests/fakes.py, whose users have no torch."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn

from services.ar_worker.weights import ArModel
from shared.lora import Lora


class Adapted(nn.Module):
    """A linear layer with something around it, as adapters are put around layers."""

    def __init__(self, base: nn.Module, scale: float, is_too_large: bool) -> None:
        super().__init__()
        self.base, self.scale, self.is_too_large = base, scale, is_too_large

    def forward(self, hidden: Tensor) -> Tensor:
        if self.is_too_large:
            raise torch.OutOfMemoryError("no memory for the adapter")
        result: Tensor = self.base(hidden) * (1 + self.scale)
        return result


class AdaptedModel(ArModel):
    """
    An adapter multiplies the first layer's queries and gates: behind other layers a norm would undo it.

    The one named `out-of-memory` fails when it is called.
    """

    @classmethod
    def of(cls, model: ArModel) -> AdaptedModel:
        return cls(**{field.name: getattr(model, field.name) for field in fields(model)})

    def use_lora(self, lora: Lora) -> None:
        layer = self.net.model.language_model.layers[0]
        for parent, name in ((layer.self_attn, "q_proj"), (layer.mlp, "gate_up_proj")):
            module = getattr(parent, name)
            base = module.base if isinstance(module, Adapted) else module
            scale = sum(choice.scale for choice in lora)
            too_large = any(choice.name == "out-of-memory" for choice in lora)
            setattr(parent, name, Adapted(base, scale, too_large) if lora else base)
