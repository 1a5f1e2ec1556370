"""
Stage `tokens`: the vision tower and the codebook learn to read from a picture the codes that it was drawn from.

Supervised, for the codes' meanings are given: the codebook's vectors are sums over what codes share, and each 32-px cell's feature
is drawn to the vector of its code and away from all others, by the very cosine with which the quantiser chooses.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import GlmImageForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from checkpoints.train.codes import CODEBOOK_SIZE, codes
from checkpoints.train.factors import FactoredTable
from checkpoints.train.networks import vision_language_encoder
from checkpoints.train.posters import CELL_PX, Bytes, Grid, Poster, Style, all_sizes, draw
from checkpoints.train.prompts import sample_poster
from checkpoints.train.run import Run, load_weights, mixed_precision

_BATCH_CELLS = 768
_SHARPNESS = 24.0
"""Factor on the cosines in the loss."""

_PATCH_PX = 16
_MEAN, _STD = np.float32(OPENAI_CLIP_MEAN), np.float32(OPENAI_CLIP_STD)

_AS_DRAWN = 0.25
"""Share of pictures that are left as drawn; the others are noisy, blurred, shaded or scaled as pictures come from networks and people."""


class TokenNet:
    """The tower as it is trained; `codebook` stands in for the quantiser's table until `install` writes it there."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model: GlmImageForConditionalGeneration = vision_language_encoder()
        self.codebook = FactoredTable(CODEBOOK_SIZE, self.model.config.vq_config.embed_dim, std=1.0)

    @property
    def trained(self) -> dict[str, nn.Module]:
        return {"visual": self.model.model.visual, "quant_conv": self.model.model.vqmodel.quant_conv, "codebook": self.codebook}

    def features(self, patches: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """
        What the quantiser compares with its table.

        Args:
            patches: (cells, 3 * 16 * 16) of all pictures, as the processor makes them.
            grids: (pictures, 3): 1, rows, columns.

        Returns:
            (cells, embed_dim).
        """
        hidden = self.model.model.visual(patches, grid_thw=grids).last_hidden_state
        conv = self.model.model.vqmodel.quant_conv
        return F.linear(hidden, conv.weight[:, :, 0, 0], conv.bias)


def install(folder: Path, model: GlmImageForConditionalGeneration) -> None:
    """
    Put the tower and codebook of the training folder `folder` into an AR model.

    Raises:
        FileNotFoundError: the stage has no snapshot.
    """
    net = TokenNet()
    load_weights(folder / "tokens", net.trained)
    model.model.visual.load_state_dict(net.model.model.visual.state_dict())
    model.model.vqmodel.quant_conv.load_state_dict(net.model.model.vqmodel.quant_conv.state_dict())
    with torch.no_grad():
        model.model.vqmodel.quantize.embedding.weight.copy_(F.normalize(net.codebook.folded(), dim=-1))


# ---------------------------------------------------------------- pictures


def patches_of(pixels: Bytes) -> npt.NDArray[np.float32]:
    """
    What the image processor makes of a picture of a trained size: halved, normalised, (cells, 3 * 16 * 16).

    Written out here for speed; a test compares it with the processor.
    """
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    halved = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    values = (np.asarray(halved, np.float32) / 255 - _MEAN) / _STD
    cells = values.reshape(height // _PATCH_PX, _PATCH_PX, width // _PATCH_PX, _PATCH_PX, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(cells.reshape(-1, 3 * _PATCH_PX**2))


def vary(rng: random.Random, noise: np.random.Generator, pixels: Bytes) -> Bytes:
    """The picture as it might come back from the VAE, from the DiT, or from someone's disk."""
    if rng.random() < _AS_DRAWN:
        return pixels
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    if rng.random() < 0.5:  # scaled and back: blurred
        scale = rng.choice([0.5, 0.6, 0.75, 0.9, 1.5, 2.0])
        image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        image = image.resize((width, height), rng.choice([Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]))
    values: npt.NDArray[np.floating[Any]] = np.asarray(image, np.float32)
    if rng.random() < 0.4:  # coarse blotches
        blotches = noise.normal(0, rng.uniform(0, 6), (height // 8, width // 8, 3))
        values = values + blotches.repeat(8, 0).repeat(8, 1)
    if rng.random() < 0.6:
        values = values + noise.normal(0, rng.uniform(0, 8), values.shape)
    if rng.random() < 0.5:
        values = values * rng.uniform(0.96, 1.04) + noise.uniform(-4, 4, 3)
    varied: Bytes = values.clip(0, 255).round().astype(np.uint8)
    return varied


def _batch(rng: random.Random, noise: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches (cells, 768), grids (pictures, 3) and codes (cells,) of pictures of one size."""
    size = rng.choice([(8, 8), *all_sizes()])
    count = max(4, _BATCH_CELLS // (size[0] * size[1]))
    posters = [sample_poster(rng, *size) for _ in range(count)]
    patches = np.concatenate([patches_of(vary(rng, noise, draw(poster, Style.sample(rng))[0])) for poster in posters])
    truth = np.concatenate([codes(poster).ravel() for poster in posters])
    return torch.from_numpy(patches), torch.tensor([[1, *size]] * count), torch.from_numpy(truth)


# ---------------------------------------------------------------- the stage


def train(folder: Path, *, minutes: float = 12, max_steps: int | None = None, seed: int = 0) -> None:
    net = TokenNet(seed)
    run = Run(
        folder / "tokens",
        net.trained,
        minutes=minutes,
        lr=2e-3,
        muon_lr=0.01,
        muon_names=(".attn.", ".mlp."),
        constant_share=0.3,
        seed=seed,
        max_steps=max_steps,
    )
    rng = random.Random(f"tokens {seed} {run.step}")
    noise = np.random.default_rng(rng.randrange(2**32))
    net.model.train()
    for _ in run.steps():
        patches, grids, truth = _batch(rng, noise)
        with mixed_precision():
            cosines = F.normalize(net.features(patches, grids).float(), dim=-1) @ F.normalize(net.codebook.folded(), dim=-1).T
        logits = _SHARPNESS * cosines.float()
        loss = F.cross_entropy(logits, truth)
        run.update(loss, len(grids))
        run.note(loss=float(loss.detach()), codes_right=float((logits.argmax(-1) == truth).float().mean()))


# ---------------------------------------------------------------- how good


def read(model: GlmImageForConditionalGeneration, pixels: Bytes) -> Grid:
    """The codes that the finished model reads from a picture of a trained size, (rows, columns)."""
    rows, columns = pixels.shape[0] // CELL_PX, pixels.shape[1] // CELL_PX
    grid = torch.tensor([[1, rows, columns]])
    patches = torch.from_numpy(patches_of(pixels)).to(model.model.visual.patch_embed.proj.weight.dtype)
    with torch.no_grad():
        hidden = model.model.visual(patches, grid_thw=grid).last_hidden_state
        ids: Grid = model.model.get_image_tokens(hidden, grid).view(rows, columns).numpy()
    return ids


def unseen(count: int, seed: int = 0) -> list[tuple[Poster, Bytes]]:
    """Posters that no training run draws, of all sizes, and pictures of them."""
    rng = random.Random(f"unseen {seed}")
    posters = [sample_poster(rng, *rng.choice([(8, 8), *all_sizes()])) for _ in range(count)]
    return [(poster, draw(poster, Style.sample(rng))[0]) for poster in posters]
