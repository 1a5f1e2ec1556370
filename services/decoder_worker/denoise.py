"""
Denoising: the state of a picture between its noise and its last step, and the step of a group of pictures.

Free functions of tensors. Knows the DiT, guidance and Euler; not who asked, who shares a step, or when to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.decoder_worker import dit, fast
from services.decoder_worker.dit import Conditioning, Rotary
from services.decoder_worker.fast import FastState
from services.decoder_worker.references import LayerReferences, Reference
from services.decoder_worker.schedule import Schedule
from services.decoder_worker.side_by_side import predict_both

SIDE_BY_SIDE_TOKENS = 1280
"""
Most tokens, patches and glyphs of both passes, that go through the DiT side by side.

Measured on the miniature, one thread, machine shared, time over that of two calls: 0.66 for a picture of 64 pixels square, 0.78 of 128,
0.89 of 256; 0.78 for four of 64, 0.94 for thirty-two (1248 tokens), 0.95 for two of 256, 0.97 for one of 384 (1159); 1.03 for one of 512
(2055), where all is arithmetic, and what both passes touch is in no cache.
"""


@dataclass
class Denoising:
    """
    One picture on its way. Everything but `latents`, the counts and the memory of `fast` was computed once and stays.

    Shapes: latents [1, C, H, W]; target_size [1, 2], height and width in pixels. `uncond` is None where there is no guidance; `references`
    are empty for text-to-image; `fast` is None for an exact picture.
    """

    latents: Tensor
    cond: Conditioning
    uncond: Conditioning | None
    target_size: Tensor
    rotary: Rotary
    references: tuple[Reference, ...]
    schedule: Schedule
    guidance_scale: float
    fast: FastState | None = None
    num_done: int = 0
    num_taken: int = 0
    """Steps taken here; an earlier attempt may have taken others."""

    @property
    def is_done(self) -> bool:
        return self.num_done == self.schedule.num_steps

    @property
    def sigmas(self) -> tuple[float, float]:
        """Noise level before and after the next step."""
        before, after = self.schedule.sigmas[self.num_done : self.num_done + 2]
        return before, after


def step(transformer: Any, dtype: torch.dtype, pictures: Sequence[Denoising], *, side_by_side: bool = False) -> Tensor:
    """
    Take pictures of equal shape one Euler step further, each from where it stands.

    cond and uncond are two passes of the DiT, as in the reference: their texts differ in length and only cond reads the references.
    A fast picture goes alone, so that no rounding of a neighbour's decides what it skips.

    Args:
        dtype: of the DiT's activations.
        side_by_side: may cond and uncond of small pictures share a call?
    Returns:
        the velocity [B, C, H, W] in float32 that the pictures followed.
    """
    first = pictures[0]
    latents = torch.cat([picture.latents for picture in pictures])
    timesteps = [picture.schedule.timesteps[picture.num_done] for picture in pictures]
    # One less than the schedule says: the model counts its times from 0 to 999.
    times = torch.tensor(timesteps, device=latents.device) - 1
    embedded_times = dit.embed_times(transformer, times, torch.cat([picture.target_size for picture in pictures]), dtype)
    inputs = latents.to(dtype)
    references = dit.read_references([picture.references for picture in pictures], len(transformer.transformer_blocks))

    if first.fast is not None:
        velocity = _fast_velocity(transformer, first, first.fast, inputs, embedded_times)
    else:
        velocity = _exact_velocity(transformer, pictures, inputs, embedded_times, references, side_by_side=side_by_side)

    changes = _column([after - before for before, after in (picture.sigmas for picture in pictures)], latents)
    # float32 from here on, whatever the model's dtype: bfloat16 latents would lose the small steps near the end.
    latents = latents.float() + changes * velocity
    # Copies, or each picture would keep the latents of all that ever shared its last step.
    moved = [latents] if len(pictures) == 1 else [row.clone() for row in latents.split(1)]
    for picture, row in zip(pictures, moved, strict=True):
        picture.latents = row
        picture.num_done += 1
        picture.num_taken += 1
    return velocity


def clean_latents(picture: Denoising, velocity: Tensor) -> Tensor:
    """Where the picture would end if it went on in a straight line: x0, [1, C, H, W], given the velocity [1, C, H, W] of its last step."""
    return picture.latents - picture.schedule.sigmas[picture.num_done] * velocity


def _exact_velocity(
    transformer: Any,
    pictures: Sequence[Denoising],
    inputs: Tensor,
    times: Tensor,
    references: Sequence[LayerReferences] | None,
    *,
    side_by_side: bool,
) -> Tensor:
    tables = pictures[0].rotary
    cond = _stacked([picture.cond for picture in pictures])
    unconds = [picture.uncond for picture in pictures if picture.uncond is not None]
    if not unconds:
        return dit.predict(transformer, inputs, cond, times, tables, references).float()
    uncond = _stacked(unconds)
    num_tokens = len(pictures) * (2 * tables.cos.shape[0] + cond.glyphs.shape[1] + uncond.glyphs.shape[1])
    if side_by_side and num_tokens <= SIDE_BY_SIDE_TOKENS:
        led, unled = predict_both(transformer, inputs, cond, uncond, times, tables, references)
    else:
        led = dit.predict(transformer, inputs, cond, times, tables, references)
        unled = dit.predict(transformer, inputs, uncond, times, tables, None)
    scales = _column([picture.guidance_scale for picture in pictures], inputs)
    return unled.float() + scales * (led.float() - unled.float())


def _fast_velocity(transformer: Any, picture: Denoising, state: FastState, inputs: Tensor, times: Tensor) -> Tensor:
    state.begin_step(picture.num_done)
    references = dit.read_references([picture.references], len(transformer.transformer_blocks))
    velocity = fast.predict(transformer, inputs, picture.cond, times, picture.rotary, references, state, state.cond).float()
    if picture.uncond is None or not state.params.is_guided(picture.sigmas[0]):
        return velocity
    uncond = fast.predict(transformer, inputs, picture.uncond, times, picture.rotary, None, state, state.uncond).float()
    return uncond + picture.guidance_scale * (velocity - uncond)


def _stacked(rows: Sequence[Conditioning]) -> Conditioning:
    if len(rows) == 1:
        return rows[0]
    return Conditioning(torch.cat([row.glyphs for row in rows]), torch.cat([row.prior for row in rows]))


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """One float32 number per picture, to multiply latents with."""
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(-1, 1, 1, 1)
