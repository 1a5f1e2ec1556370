"""
The DiT's forward without what is the same in every step of a picture.

Runs the modules of the real `GlmImageTransformer2DModel` by calling them, so whatever wraps or replaces one (adapters, quantised
weights, compiled blocks) takes part. Knows no pictures, no schedule and no guidance.

Left out of each step, against the model's own forward: projecting the glyph embeddings, embedding and projecting the prior tokens,
and the rotary tables, which the model makes on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.decoder_worker.references import LayerReferences, Reference


@dataclass(frozen=True, eq=False)
class Rotary:
    """Cosines and sines of a size's rotary embedding, each [N, head_dim]."""

    cos: Tensor
    sin: Tensor

    @property
    def nbytes(self) -> int:
        return int(self.cos.nbytes + self.sin.nbytes)


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What leads one of the two passes: projected glyphs [B, S, width] and projected prior tokens [B, N or 1, width]."""

    glyphs: Tensor
    prior: Tensor


def project_glyphs(transformer: Any, embeds: Tensor) -> Tensor:
    """Glyph embeddings [1, S, text_embed_dim] -> [1, S, width]."""
    projected: Tensor = transformer.glyph_projector(embeds)
    return projected


def project_prior(transformer: Any, prior_token_ids: Tensor) -> Tensor:
    """Prior tokens [1, N] -> [1, N, width]."""
    projected: Tensor = transformer.prior_projector(transformer.prior_token_embedding(prior_token_ids))
    return projected


def project_no_prior(transformer: Any, prior_token_ids: Tensor) -> Tensor:
    """What dropped prior tokens are projected to: [1, 1, width], the same for every patch."""
    # As many rows as the model itself projects, for the same rounding; they are all equal, and one is kept.
    embedding = torch.zeros_like(transformer.prior_token_embedding(prior_token_ids))
    projected: Tensor = transformer.prior_projector(embedding)
    return projected[:, :1].clone()


def rotary(transformer: Any, latents: Tensor) -> Rotary:
    """The tables of a picture of this size, on its device."""
    cos, sin = transformer.rope(latents)
    return Rotary(cos.to(latents.device), sin.to(latents.device))


def embed_times(transformer: Any, timesteps: Tensor, sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """Timesteps [B] and sizes [B, 2] in pixels -> [B, time_embed_dim], the same for cond and uncond."""
    embedded: Tensor = transformer.time_condition_embed(timesteps, sizes, torch.zeros_like(sizes), dtype)
    return embedded


def read_references(rows: Sequence[Sequence[Reference]], num_layers: int) -> list[LayerReferences] | None:
    """What the layers read of these references, one row per picture; None where there are none."""
    return [LayerReferences(rows, layer) for layer in range(num_layers)] if rows[0] else None


def enter(transformer: Any, latents: Tensor, conditioning: Conditioning) -> Tensor:
    """Latents [B, C, H, W] -> the patches' hidden states [B, N, width] that the first block takes."""
    hidden: Tensor = transformer.image_projector(latents) + conditioning.prior
    return hidden


def run_blocks(
    blocks: Sequence[Any],
    hidden: Tensor,
    glyphs: Tensor,
    times: Tensor,
    tables: Rotary,
    references: Sequence[LayerReferences] | None,
) -> tuple[Tensor, Tensor]:
    """Image and glyph hidden states through some of the blocks; `references` are those of these blocks."""
    for index, block in enumerate(blocks):
        hidden, glyphs = block(
            hidden, glyphs, times, (tables.cos, tables.sin), None, None, kv_cache=None if references is None else references[index]
        )
    return hidden, glyphs


def leave(transformer: Any, hidden: Tensor, times: Tensor, latent_shape: torch.Size) -> Tensor:
    """Hidden states after the last block -> velocity [B, C, H, W] in the model's dtype."""
    batch, _, height, width = latent_shape
    patch = transformer.config.patch_size
    patches = transformer.proj_out(transformer.norm_out(hidden, times))
    patches = patches.reshape(batch, height // patch, width // patch, -1, patch, patch)
    velocity: Tensor = patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return velocity


def predict(
    transformer: Any,
    latents: Tensor,
    conditioning: Conditioning,
    times: Tensor,
    tables: Rotary,
    references: Sequence[LayerReferences] | None,
) -> Tensor:
    """
    The DiT's velocity [B, C, H, W] for latents [B, C, H, W] in the model's dtype.

    Source: diffusers transformer_glm_image.py, `GlmImageTransformer2DModel.forward`.
    """
    hidden = enter(transformer, latents, conditioning)
    hidden, _ = run_blocks(transformer.transformer_blocks, hidden, conditioning.glyphs, times, tables, references)
    return leave(transformer, hidden, times, latents.shape)
