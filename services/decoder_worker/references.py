"""
Reference images -> the keys and values that the target attends to, once per request.

Each image goes through the DiT alone at timestep 0, without text, and leaves every layer's keys and values behind. They are kept by
the one who asked: 1.9 GiB for a 1024x1024 image of the published model, so never longer than the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache
from PIL import Image
from torch import Tensor

from services.decoder_worker.vae import vae_encode


def encode_references(transformer: Any, vae: Any, references: Iterable[tuple[Image.Image, Tensor]], check_stop: Callable[[], None]) -> Any:
    """
    Write the keys and values of all references, one after the other, into one cache.

    Args:
        references: pairs of an RGB image and its prior tokens [1, N], one per DiT patch.
        check_stop: raises when the work is to stop; called before each image.
    Returns:
        a `GlmImageKVCache` for a batch of one; its mode is for the reader to set.
    Source: diffusers pipeline_glm_image.py, `__call__` section 6.
    """
    cache = GlmImageKVCache(num_layers=transformer.config.num_layers)
    cache.set_mode("write")
    for image, prior_token_ids in references:
        check_stop()
        latents = vae_encode(vae, image)
        transformer(
            hidden_states=latents,
            encoder_hidden_states=latents.new_zeros((1, 0, transformer.config.text_embed_dim)),
            prior_token_id=prior_token_ids,
            prior_token_drop=torch.zeros_like(prior_token_ids, dtype=torch.bool),
            timestep=torch.zeros((1,), device=latents.device),
            target_size=torch.tensor([[image.height, image.width]], device=latents.device),
            crop_coords=torch.zeros((1, 2), device=latents.device),
            kv_caches=cache,
            return_dict=False,
        )
    return cache
