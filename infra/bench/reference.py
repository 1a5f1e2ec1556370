"""
What a customer without glmq has: diffusers' own pipeline in a loop, on the same weights and the same cores.

Needs torch. One prompt after another, as the pipeline's own examples do; each picture has generators of its own, as glmq's pictures have.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import GlmImagePipeline

GUIDANCE_SCALE = 1.5


@dataclass(frozen=True)
class Wish:
    """One picture that is asked of both sides."""

    prompt: str
    seed: int
    side_px: int
    steps: int


@dataclass(frozen=True)
class Reference:
    """The pipeline, loaded."""

    pipeline: Any
    """Any: diffusers publishes no types."""

    @staticmethod
    def load(checkpoint: Path) -> Reference:
        pipeline = GlmImagePipeline.from_pretrained(checkpoint, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        return Reference(pipeline)

    def draw(self, wish: Wish) -> np.ndarray[Any, np.dtype[np.int64]]:
        """[side_px, side_px, 3], levels of 0 to 255."""
        drawn = self.pipeline(
            prompt=wish.prompt,
            height=wish.side_px,
            width=wish.side_px,
            num_inference_steps=wish.steps,
            guidance_scale=GUIDANCE_SCALE,
            generator=torch.Generator().manual_seed(wish.seed),
        ).images[0]
        return np.asarray(drawn).astype(np.int64)

    def seconds_per_picture(self, wishes: Sequence[Wish], num_threads: int) -> float:
        """Wall seconds, with so many torch threads."""
        torch.set_num_threads(num_threads)
        started = time.perf_counter()
        for wish in wishes:
            self.draw(wish)
        return (time.perf_counter() - started) / len(wishes)
