"""
Denoising: the state of one picture between its noise and its last step, and the step.

Free functions of tensors. Knows the DiT, guidance and Euler; not who asked, how many pictures there are, or when to stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.decoder_worker.schedule import Schedule


@dataclass
class Denoising:
    """
    One picture on its way. Everything but `latents` and `num_done` was computed once and stays.

    Shapes: latents [1, C, H, W]; prompt_embeds and negative_prompt_embeds [1, S, text_embed_dim]; prior_token_ids [1, H * W / 4], one
    per DiT patch; target_size [1, 2], height and width in pixels. `negative_prompt_embeds` is None where there is no guidance;
    `references` is the `GlmImageKVCache` of the source images, None for text-to-image.
    """

    latents: Tensor
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    prior_token_ids: Tensor
    target_size: Tensor
    references: Any | None
    schedule: Schedule
    guidance_scale: float
    num_done: int = 0

    @property
    def is_done(self) -> bool:
        return self.num_done == self.schedule.num_steps


def step(transformer: Any, picture: Denoising) -> None:
    """
    Take the picture one Euler step further.

    cond and uncond are two calls of the DiT, as in the reference: their texts differ in length and only cond reads the references.
    """
    timestep = picture.schedule.timesteps[picture.num_done]
    sigma, sigma_next = picture.schedule.sigmas[picture.num_done : picture.num_done + 2]

    velocity = _predict(transformer, picture, timestep, is_cond=True)
    if picture.negative_prompt_embeds is not None:
        uncond = _predict(transformer, picture, timestep, is_cond=False)
        velocity = uncond + picture.guidance_scale * (velocity - uncond)

    # float32 from here on, whatever the model's dtype: bfloat16 latents would lose the small steps near the end.
    picture.latents = picture.latents.float() + (sigma_next - sigma) * velocity
    picture.num_done += 1


def _predict(transformer: Any, picture: Denoising, timestep: float, *, is_cond: bool) -> Tensor:
    """The DiT's velocity [1, C, H, W] in float32, with (cond) or without (uncond) glyphs, prior tokens and references."""
    if picture.references is not None:
        picture.references.set_mode("read" if is_cond else "skip")
    return transformer(
        hidden_states=picture.latents.to(transformer.dtype),
        encoder_hidden_states=picture.prompt_embeds if is_cond else picture.negative_prompt_embeds,
        prior_token_id=picture.prior_token_ids,
        prior_token_drop=torch.full_like(picture.prior_token_ids, not is_cond, dtype=torch.bool),
        # One less than the schedule says: the model counts its times from 0 to 999.
        timestep=torch.full((1,), timestep - 1, device=picture.latents.device),
        target_size=picture.target_size,
        crop_coords=torch.zeros_like(picture.target_size),
        kv_caches=picture.references,
        return_dict=False,
    )[0].float()
