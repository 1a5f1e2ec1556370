"""
What the decoder engine is measured against: the shortest code that draws, on the same nets; and the requests that both are given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from services.decoder_worker import vae
from services.decoder_worker.glyph import glyph_embeds
from services.decoder_worker.latents import starting_noise
from services.decoder_worker.request import ImageRequest, SourceInput
from services.decoder_worker.schedule import make_schedule
from services.decoder_worker.weights import DecoderModel
from shared.grid import TOKEN_PX, TokenGrid
from shared.quoting.reference import glyph_texts

PROMPT = 'a poster that says "OPEN"'

STEPS = 20
"""What the miniature draws in unless told otherwise."""

_TOLERANCE = 1e-4

Result = TypeVar("Result")


def make_request(side: int, seed: int, steps: int = STEPS, sources: tuple[SourceInput, ...] = ()) -> ImageRequest:
    grid = TokenGrid(side // TOKEN_PX, side // TOKEN_PX)
    return ImageRequest(PROMPT, grid, make_ids(grid, side), seed, steps, 1.5, sources)


def make_ids(grid: TokenGrid, seed: int) -> list[list[int]]:
    rows: list[list[int]] = np.random.default_rng(seed).integers(0, 256, (grid.token_h, grid.token_w)).tolist()
    return rows


def timed(act: Callable[[], Result]) -> tuple[float, Result]:
    """CPU seconds of this process, and the result."""
    started = time.process_time()
    result = act()
    return time.process_time() - started, result


def check_equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference of any pixel; nothing counts where it is more than the tolerance."""
    difference = max(float((mine - other).abs().max()) for mine, other in zip(ours, theirs, strict=True))
    if difference > _TOLERANCE:
        raise AssertionError(f"pixels differ by {difference}")
    return difference


class BareLoop:
    """
    The shortest code that draws: two calls of the DiT per step, Euler, VAE.

    Glyphs are embedded once for all calls, which the engine does too.
    """

    def __init__(self, model: DecoderModel) -> None:
        self.model = model
        with torch.inference_mode():
            self.cond, self.uncond = (glyph_embeds(model.tokenizer, model.text_encoder, glyph_texts(text)) for text in (PROMPT, ""))

    def draw(self, requests: Sequence[ImageRequest], *, decode: bool = True) -> list[Tensor]:
        """Draw text-to-image requests of one shape and number of steps as one batch; latents instead of pixels without `decode`."""
        model = self.model
        first = requests[0]
        ids = torch.cat([upsampled(request.token_ids) for request in requests])
        schedule = make_schedule(model.schedule_params, ids.shape[1], first.steps)
        noise = [starting_noise(request.seed, first.grid, model.latent_channels, 8, model.dtype, model.device) for request in requests]
        latents = torch.cat(noise)
        with torch.inference_mode():
            for index, timestep in enumerate(schedule.timesteps):
                cond, uncond = (self.velocity(latents, ids, timestep, first.grid, dropped=dropped) for dropped in (False, True))
                velocity = uncond + first.guidance_scale * (cond - uncond)
                latents = latents + (schedule.sigmas[index + 1] - schedule.sigmas[index]) * velocity
            return list(vae.vae_decode(model.vae, latents) if decode else latents)

    def velocity(self, latents: Tensor, ids: Tensor, timestep: float, grid: TokenGrid, *, dropped: bool, kv_caches: Any = None) -> Tensor:
        """One call of the DiT: cond, or uncond with the prior tokens `dropped`."""
        batch = latents.shape[0]
        size = torch.tensor([[grid.height_px, grid.width_px]], dtype=self.model.dtype).expand(batch, 2)
        velocity: Tensor = self.model.transformer(
            hidden_states=latents,
            encoder_hidden_states=(self.uncond if dropped else self.cond).expand(batch, -1, -1),
            prior_token_id=ids,
            prior_token_drop=torch.full_like(ids, dropped, dtype=torch.bool),
            timestep=torch.full((batch,), timestep - 1),
            target_size=size,
            crop_coords=torch.zeros_like(size),
            kv_caches=kv_caches,
            return_dict=False,
        )[0]
        return velocity


def upsampled(rows: list[list[int]]) -> Tensor:
    """Token ids of a grid -> [1, N], one per DiT patch."""
    return torch.tensor(rows).repeat_interleave(2, dim=0).repeat_interleave(2, dim=1).view(1, -1)
