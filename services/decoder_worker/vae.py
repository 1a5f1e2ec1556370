"""
Pixels <-> latents through the VAE, and floats -> 8-bit pixels.

Knows the VAE's normalisation (`latents_mean`, `latents_std`) and diffusers' pixel conventions; nothing about denoising.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from torch.nn import functional


def vae_encode(vae: Any, image: Image.Image) -> Tensor:
    """
    Encode a condition image to the mode of its latent distribution (never a sample: one image, one set of latents).

    Args:
        image: RGB, both sides multiples of 16.
    Returns:
        [1, C, H, W] normalised latents in the VAE's dtype.
    """
    pixels = VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(image))
    pixels = VaeImageProcessor.normalize(pixels).to(device=vae.device, dtype=vae.dtype)
    mean, std = _latent_statistics(vae)
    return (vae.encode(pixels).latent_dist.mode() - mean) / std


def vae_decode(vae: Any, latents: Tensor, *, tiled: bool = False) -> Tensor:
    """
    Decode latents to pixels.

    Args:
        latents: [B, C, H, W], any float dtype.
        tiled: decode overlapping tiles of the VAE's own size, each alone, and blend them. Needs a fraction of the memory and is not exact:
            a tile does not see beyond its edge. Pictures of one tile are decoded whole all the same.
    Returns:
        [B, 3, height_px, width_px] float32 on the CPU, 0..1.
    """
    mean, std = _latent_statistics(vae)
    vae.use_tiling = tiled
    try:
        pixels = vae.decode(latents.to(vae.dtype) * std + mean, return_dict=False)[0]
    finally:
        vae.use_tiling = False
    # To float32 after the clamp: in bfloat16 the reference rounds here too.
    return VaeImageProcessor.denormalize(pixels).float().cpu()


def pool_latents(latents: Tensor, max_side: int) -> Tensor:
    """
    Average latents down so that a preview of them costs little.

    Args:
        latents: [B, C, H, W].
        max_side: of the result, in latent pixels.
    """
    height, width = latents.shape[-2:]
    factor = max(1, math.ceil(max(height, width) / max_side))
    return functional.adaptive_avg_pool2d(latents, (max(1, height // factor), max(1, width // factor)))


def to_pil(pixels: Tensor) -> Image.Image:
    """Round [3, height_px, width_px] floats in 0..1 to an 8-bit RGB image, half to even, as the reference does."""
    image: Image.Image = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pixels.unsqueeze(0)))[0]
    return image


def _latent_statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per latent channel, each [1, C, 1, 1]."""
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1).to(device=vae.device, dtype=vae.dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std
