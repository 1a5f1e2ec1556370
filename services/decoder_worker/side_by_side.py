"""
The DiT's blocks with cond and uncond side by side, so that what a call costs whatever its size is paid once for both.

A layer treats each token by itself, given the time of its row, and both passes of a picture have the same time: the patches of both go
through as one row. Only attention must tell them apart, and does by slices. Nothing is padded and nothing masked; diffusers' own mask
for glyph sequences of unlike length masks nothing (huggingface/diffusers#13587).

Calls the layers inside the blocks, so whatever wraps or replaces one takes part, but not the blocks themselves: what is compiled as a whole
block is not. Knows no pictures and no guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from services.decoder_worker import dit
from services.decoder_worker.dit import Conditioning, Rotary
from services.decoder_worker.references import LayerReferences


def predict_both(
    transformer: Any,
    latents: Tensor,
    cond: Conditioning,
    uncond: Conditioning,
    times: Tensor,
    tables: Rotary,
    references: Sequence[LayerReferences] | None,
) -> tuple[Tensor, Tensor]:
    """`dit.predict` of cond, which reads the references, and of uncond, which does not."""
    projected = transformer.image_projector(latents)
    patches = torch.cat([projected + cond.prior, projected + uncond.prior], dim=1)
    glyphs = torch.cat([cond.glyphs, uncond.glyphs], dim=1)
    for layer, block in enumerate(transformer.transformer_blocks):
        read = None if references is None else references[layer]
        patches, glyphs = _run_block(block, patches, glyphs, cond.glyphs.shape[1], times, tables, read)
    of_cond, of_uncond = patches.chunk(2, dim=1)
    return dit.leave(transformer, of_cond, times, latents.shape), dit.leave(transformer, of_uncond, times, latents.shape)


def _run_block(
    block: Any, patches: Tensor, glyphs: Tensor, num_cond_glyphs: int, times: Tensor, tables: Rotary, references: LayerReferences | None
) -> tuple[Tensor, Tensor]:
    """
    Patches [B, 2N, width] and glyphs [B, S, width], cond's before uncond's, through one block.

    Source: diffusers transformer_glm_image.py, `GlmImageTransformerBlock.forward`.
    """
    (
        normed,
        gate,
        shift,
        scale,
        ff_gate,
        normed_glyphs,
        glyph_gate,
        glyph_shift,
        glyph_scale,
        glyph_ff_gate,
    ) = (part if part.ndim == 3 else part[:, None] for part in block.norm1(patches, glyphs, times))
    attended, attended_glyphs = _attend(block.attn1, normed, normed_glyphs, num_cond_glyphs, tables, references)
    patches = patches + attended * gate
    glyphs = glyphs + attended_glyphs * glyph_gate
    patches = patches + block.ff(block.norm2(patches) * (1 + scale) + shift) * ff_gate
    # Each pass's glyphs alone and in one piece, as in two calls: MKL sums a product of fewer than four rows in another order, and uncond
    # may have one. So the velocities are those of two calls to the last bit, on the machines that were tried.
    inputs = (block.norm2_context(glyphs) * (1 + glyph_scale) + glyph_shift).tensor_split([num_cond_glyphs], dim=1)
    glyphs = glyphs + torch.cat([block.ff(each.contiguous()) for each in inputs], dim=1) * glyph_ff_gate
    return patches, glyphs


def _attend(
    attn: Any, patches: Tensor, glyphs: Tensor, num_cond_glyphs: int, tables: Rotary, references: LayerReferences | None
) -> tuple[Tensor, Tensor]:
    """Source: diffusers transformer_glm_image.py, `GlmImageAttnProcessor.__call__`."""
    num_patches = patches.shape[1] // 2
    num_uncond_glyphs = glyphs.shape[1] - num_cond_glyphs
    passes = [num_cond_glyphs + num_patches, num_uncond_glyphs + num_patches]
    cond_glyphs, uncond_glyphs = glyphs.tensor_split([num_cond_glyphs], dim=1)
    # Each pass in one piece, its glyphs first.
    tokens = torch.cat([cond_glyphs, patches[:, :num_patches], uncond_glyphs, patches[:, num_patches:]], dim=1)
    query, key, value = (project(tokens).unflatten(2, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v))
    query, key = attn.norm_q(query).to(tokens.dtype), attn.norm_k(key).to(tokens.dtype)
    for each in (*query.split(passes, dim=1), *key.split(passes, dim=1)):
        rotated = each[:, -num_patches:]
        rotated.copy_(apply_rotary_emb(rotated, (tables.cos, tables.sin), sequence_dim=1, use_real_unbind_dim=-2))

    (cond_query, uncond_query), (cond_key, uncond_key), (cond_value, uncond_value) = (
        each.split(passes, dim=1) for each in (query, key, value)
    )
    if references is not None:
        cond_key, cond_value = references.get(cond_key, cond_value)
    backend = attn.processor._attention_backend
    of_cond = dispatch_attention_fn(cond_query, cond_key, cond_value, backend=backend)
    of_uncond = dispatch_attention_fn(uncond_query, uncond_key, uncond_value, backend=backend)
    cond_glyphs, cond_patches = of_cond.tensor_split([num_cond_glyphs], dim=1)
    uncond_glyphs, uncond_patches = of_uncond.tensor_split([num_uncond_glyphs], dim=1)
    attended = torch.cat([cond_glyphs, uncond_glyphs, cond_patches, uncond_patches], dim=1)
    attended_glyphs, attended_patches = attn.to_out[1](attn.to_out[0](attended.flatten(2, 3))).tensor_split([glyphs.shape[1]], dim=1)
    return attended_patches, attended_glyphs
