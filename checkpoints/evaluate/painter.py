"""Draws with GlmImagePipeline from a checkpoint's folder, in float32 on the CPU, with the settings that its files name."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import GlmImagePipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor
from transformers.utils import logging as transformers_logging

from checkpoints.train.posters import Bytes
from shared.checkpoint import read_model_info


@dataclass(frozen=True)
class Tokens:
    """
    Prior tokens of a picture, as the pipeline hands them on.

    Attributes:
        ids: of the target, each repeated 2x2: (1, patches).
        sources: of the source pictures, or None, and their grids.
    """

    ids: Tensor
    sources: Any = None
    source_grids: Any = None

    def shuffled(self, height: int, width: int, seed: int) -> Tokens:
        """The same tokens, one per 32-px cell, dealt out to other cells of a picture of height x width pixels."""
        rows, columns = height // 32, width // 32
        cells = self.ids.reshape(2 * rows, 2 * columns)[::2, ::2].flatten()
        cells = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))].reshape(rows, columns)
        return Tokens(cells.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1).reshape(1, -1))


@dataclass(frozen=True)
class PartTimes:
    """Seconds of each part of one picture, on one core."""

    ar_s: float
    dit_s: float
    vae_s: float

    @property
    def total_s(self) -> float:
        return self.ar_s + self.dit_s + self.vae_s


class Painter:
    """
    A checkpoint that draws.

    Raises:
        StartupError: the folder is no checkpoint.
    """

    def __init__(self, checkpoint: Path) -> None:
        for logging in (diffusers_logging, transformers_logging):
            logging.disable_progress_bar()
            logging.set_verbosity_error()  # the pipeline warns of its own way to call the processor, once a picture
        info = read_model_info(checkpoint, revision="local")
        self.steps, self.guidance_scale = info.steps, info.guidance_scale
        self.name = info.name
        # Named, for the parts would otherwise come in the type of their files.
        self._pipeline = GlmImagePipeline.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
        self._pipeline.set_progress_bar_config(disable=True)

    def write_tokens(self, prompt: str, height: int, width: int, seed: int, source: Bytes | None = None) -> Tokens:
        """The AR model's half."""
        images = None if source is None else [[Image.fromarray(source)]]
        with torch.inference_mode():
            ids, sources, grids = self._pipeline.generate_prior_tokens(
                prompt, height, width, images, device=torch.device("cpu"), generator=torch.Generator().manual_seed(seed)
            )
        return Tokens(ids, sources, grids)

    def draw(self, prompt: str, tokens: Tokens, height: int, width: int, seed: int, source: Bytes | None = None, **settings: Any) -> Bytes:
        """
        The DiT's and the VAE's half: a picture (height, width, 3).

        Args:
            prompt: only its quoted texts matter here.
        """
        (image,) = self._denoise(prompt, tokens, height, width, seed, source, output_type="pil", **settings)
        return np.asarray(image)

    def _denoise(
        self, prompt: str, tokens: Tokens, height: int, width: int, seed: int, source: Bytes | None = None, **settings: Any
    ) -> Any:
        settings = {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale, **settings}
        return self._pipeline(
            prompt=prompt,
            image=None if source is None else [Image.fromarray(source)],
            height=height,
            width=width,
            generator=torch.Generator().manual_seed(seed),
            prior_token_ids=tokens.ids,
            prior_token_image_ids=tokens.sources,
            source_image_grid_thw=tokens.source_grids,
            **settings,
        ).images

    def time_parts(self, prompt: str, height: int, width: int, steps: int, repeats: int = 3) -> PartTimes:
        """Median times of one picture, after one that is not counted. The DiT's includes the glyph encoder's."""
        vae = self._pipeline.vae
        times = []
        for seed in range(repeats + 1):
            clock = [time.perf_counter()]
            tokens = self.write_tokens(prompt, height, width, seed)
            clock.append(time.perf_counter())
            latents = self._denoise(prompt, tokens, height, width, seed, output_type="latent", num_inference_steps=steps)
            clock.append(time.perf_counter())
            with torch.inference_mode():
                vae.decode(latents.to(vae.dtype))
            clock.append(time.perf_counter())
            times.append(np.diff(clock))
        return PartTimes(*(float(part) for part in np.median(times[1:], axis=0)))
