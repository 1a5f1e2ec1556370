"""
Reference images -> the keys and values that pictures attend to, once per image and adapters.

Each image goes through the DiT alone at timestep 0, without text, and leaves every layer's keys and values behind: 1.9 GiB for a 1024x1024
image of the published model. `sharing.py` decides how long they stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Reference:
    """Keys and values of one reference image, per layer: [1, R, heads, head_dim]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


def encode_reference(transformer: Any, latents: Tensor, prior_token_ids: Tensor, height_px: int, width_px: int) -> Reference:
    """
    Run one reference image through the DiT.

    Args:
        latents: [1, C, H, W], as `vae_encode` makes them.
        prior_token_ids: [1, N], one per DiT patch.
    Source: diffusers pipeline_glm_image.py, `__call__` section 6.
    """
    cache = GlmImageKVCache(num_layers=transformer.config.num_layers)
    cache.set_mode("write")
    transformer(
        hidden_states=latents,
        encoder_hidden_states=latents.new_zeros((1, 0, transformer.config.text_embed_dim)),
        prior_token_id=prior_token_ids,
        prior_token_drop=torch.zeros_like(prior_token_ids, dtype=torch.bool),
        timestep=torch.zeros((1,), device=latents.device),
        target_size=torch.tensor([[height_px, width_px]], device=latents.device),
        crop_coords=torch.zeros((1, 2), device=latents.device),
        kv_caches=cache,
        return_dict=False,
    )
    return Reference(tuple(layer.k_caches[0] for layer in cache.caches), tuple(layer.v_caches[0] for layer in cache.caches))


@dataclass(frozen=True)
class LayerReferences:
    """
    What one layer reads of the references of a batch; the DiT's blocks take it for a `GlmImageLayerKVCache` in mode `read`.

    Rows may have references of their own, of equal lengths. diffusers' own cache joins all references of a row beforehand, which
    would hold the keys of an image twice as soon as two pictures share it in unlike company.
    """

    rows: Sequence[Sequence[Reference]]
    layer: int
    mode: str = "read"

    def get(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the references of each row in front of its own keys and values [B, N, heads, head_dim]."""
        keys = [[reference.keys[self.layer] for reference in row] for row in self.rows]
        values = [[reference.values[self.layer] for reference in row] for row in self.rows]
        return _prepend(keys, key), _prepend(values, value)


def _prepend(rows: list[list[Tensor]], own: Tensor) -> Tensor:
    num_before = sum(part.shape[1] for part in rows[0])
    joined = own.new_empty((own.shape[0], num_before + own.shape[1], *own.shape[2:]))
    for row, parts in enumerate(rows):
        start = 0
        for part in parts:
            joined[row, start : start + part.shape[1]] = part[0]
            start += part.shape[1]
    joined[:, num_before:] = own
    return joined
