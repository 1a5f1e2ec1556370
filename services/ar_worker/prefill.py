"""
A request's prompt through the net and into its slot, up to the logits of the first id that is to be written.

Knows nothing of other requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from services.ar_worker.kv_cache import SlotCache
from services.ar_worker.layers import TextNet
from services.ar_worker.prompt import ArPrompt
from services.ar_worker.requests import GridRequest
from services.ar_worker.weights import ArModel
from shared.errors import PermanentWorkError


@dataclass(frozen=True)
class Prefix:
    """
    A prompt that was read. Requests with the same one share it, while one of them lives.

    Attributes:
        num_ids: of the prompt.
        logits: [num_ids]: for the first id to be written.
        rotary: [T, 2, rotary_dim], see `SlotCache.rotary`, of the ids to be written.
        source_ids: per source [token_h, token_w] int64.
    """

    prompt: ArPrompt
    num_ids: int
    logits: Tensor
    rotary: Tensor
    source_ids: list[Tensor]


def check_length(prompt: ArPrompt, request: GridRequest, capacity: int) -> None:
    """
    Raises:
        PermanentWorkError: prompt and picture together are longer than a slot.
    """
    num_prompt, num_ids = prompt.input_ids.shape[1], request.num_ids
    if num_prompt + num_ids > capacity:
        raise PermanentWorkError(
            "unprocessable_prompt",
            f"the prompt has {num_prompt} tokens; with the picture that makes {num_prompt + num_ids}, and there is room for {capacity}",
        )


def prefill(model: ArModel, net: TextNet, prompt: ArPrompt, cache: SlotCache, slot: int) -> Prefix:
    """Read a prompt into a slot."""
    source_ids = tokenize_sources(model, prompt)
    input_ids = fill_placeholders(model, prompt.input_ids, source_ids)
    num_ids = input_ids.shape[1]
    kv = cache.kv[:, :, slot, :, :num_ids]

    def attend(index: int, qkv: Tensor) -> Tensor:
        queries, keys, values = qkv.transpose(0, 1).split([net.heads, net.kv_heads, net.kv_heads])
        kv[index, 0], kv[index, 1] = keys, values
        keys, values = (part.repeat_interleave(net.heads // net.kv_heads, dim=0) for part in (keys, values))
        attended = scaled_dot_product_attention(queries[None], keys[None], values[None], is_causal=True, scale=net.scaling)
        return attended[0].transpose(0, 1).reshape(num_ids, -1)

    hidden = net.run(net.embed(input_ids[0]), _rotary(model, prompt.prefill_positions), attend)
    logits = torch.empty(1, net.num_ids, device=hidden.device, dtype=hidden.dtype)
    net.project(hidden[-1:], logits)
    return Prefix(prompt, num_ids, logits[0], _rotary(model, prompt.decode_positions), source_ids)


def tokenize_sources(model: ArModel, prompt: ArPrompt) -> list[Tensor]:
    """
    The codes of the source images, from one pass of the vision tower for all of them.

    Returns:
        per source [token_h, token_w] int64. They are both a result and, in the prompt, what the model sees of the source.
    """
    if prompt.pixel_values is None:
        return []
    # By the tower itself: what get_image_features() wraps its result in changes between versions.
    features = model.net.model.visual(prompt.pixel_values.to(model.dtype), grid_thw=prompt.source_grids).pooler_output
    ids = model.net.get_image_tokens(features, prompt.source_grids)
    shapes = prompt.source_grids[:, 1:].tolist()
    return [part.view(h, w) for part, (h, w) in zip(ids.split([h * w for h, w in shapes]), shapes, strict=True)]


def fill_placeholders(model: ArModel, input_ids: Tensor, source_ids: list[Tensor]) -> Tensor:
    """[1, N] int64: the prompt, with the sources' codes where the processor left room for them."""
    if not source_ids:
        return input_ids
    return input_ids.masked_scatter(input_ids == model.image_token_id, torch.cat([ids.flatten() for ids in source_ids]))


def _rotary(model: ArModel, positions: Tensor) -> Tensor:
    """[T, 2, rotary_dim]: cosines and signed sines of positions [3, 1, T], from the net's own module."""
    like = torch.empty(0, device=model.device, dtype=model.dtype)
    cosines, sines = model.net.model.language_model.rotary_emb(like, positions)
    # Rotating half is to swap the halves and turn the sign of the one that comes first; here the sign is the sine's.
    sines = sines.clone()
    sines[..., : sines.shape[-1] // 2].neg_()
    return torch.stack([cosines[0], sines[0]], dim=1)
