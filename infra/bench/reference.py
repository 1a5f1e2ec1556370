"""
What a customer without glmq has: diffusers' own pipeline in a loop, on the same weights and the same cores.

Needs torch. One prompt after another, as the pipeline's own examples do; each picture has generators of its own, as glmq's pictures have.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import GlmImagePipeline

from infra.bench.stack import Pixels

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

    def draw(self, wish: Wish) -> Pixels:
        """One picture."""
        drawn = self.pipeline(
            prompt=wish.prompt,
            height=wish.side_px,
            width=wish.side_px,
            num_inference_steps=wish.steps,
            guidance_scale=GUIDANCE_SCALE,
            generator=torch.Generator().manual_seed(wish.seed),
        ).images[0]
        return np.asarray(drawn).astype(np.int64)


class PipelineLoop:
    """The reference, one picture after the other, with one torch thread or one per core, whichever is quicker; keeps what it drew."""

    def __init__(self, reference: Reference, first: Wish) -> None:
        """
        Args:
            first: is drawn with either number of threads, which decides.
        """
        self._reference = reference
        self.drawn: dict[Wish, Pixels] = {}
        self.first_s = {threads: self._draw(first, threads) for threads in sorted({1, len(os.sched_getaffinity(0))})}
        """Seconds of the first picture by torch threads."""
        self.num_threads = min(self.first_s, key=lambda threads: self.first_s[threads])
        self.seconds = [self.first_s[self.num_threads]]
        """Of each picture, with the number of threads that was quicker."""

    def draw(self, wishes: Sequence[Wish]) -> None:
        """Go on with these."""
        self.seconds += [self._draw(wish, self.num_threads) for wish in wishes]

    def _draw(self, wish: Wish, num_threads: int) -> float:
        torch.set_num_threads(num_threads)
        started = time.perf_counter()
        self.drawn[wish] = self._reference.draw(wish)
        return time.perf_counter() - started
