"""
Stage `pixels`: the DiT learns to draw a poster's latents from its semantic codes and the glyph embeddings of its text.

Flow matching towards noise - latents, with what the pipeline gives the DiT: time before the shift of the schedule, the size, codes
twice as fine as their cells, and for an edit the keys and values of the source picture. Which letter belongs to a patch is decided
while the picture is still noise, so half of the noise levels are above 0.8, and a second head, thrown away later, must name the letter.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, GlmImageTransformer2DModel
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from checkpoints.train import glyphs, vae
from checkpoints.train.codes import CODEBOOK_SIZE, CODES, codes, draft_codes
from checkpoints.train.factors import FactoredTable
from checkpoints.train.networks import DIT_DIM, DIT_LAYERS, transformer
from checkpoints.train.posters import CELL_PX, CHARACTERS, MAX_CELLS, Style, draw
from checkpoints.train.prompts import sample_edit, sample_poster
from checkpoints.train.run import Run, load_weights, mixed_precision

_PATCHES_PER_STEP = 2560
_NUM_NEW = 4
"""A quarter of each batch is drawn anew; the rest were seen before, with other noise."""

_POOL_CELLS = 40_000
"""Cells of posters that are kept for each size."""

_AUXILIARY_LAYER = 3
_IS_LINE = torch.tensor([str(features[0][1]).startswith(("bar", "border", "corner")) for features in CODES])
"""(codes,) whether a cell of this code holds a piece of a border or a bar."""

_DROP, _NO_LETTERS = 0.1, 0.04
_EDITS, _EDITS_FROM = 0.25, 0.3
"""Share of the steps that are edits, from this progress on."""

_CODE_NOISE = 0.03
_DRAFTS = 0.02
"""Share of pictures with a draft's codes, so that a draft can be shown."""


@dataclass(frozen=True)
class Example:
    """Latents (16, 4 rows, 4 columns) normalised, codes (rows, columns), text, letters (2 rows, 2 columns), and for an edit its source."""

    latents: torch.Tensor
    codes: torch.Tensor
    text: str
    letters: torch.Tensor
    source_latents: torch.Tensor | None = None
    source_codes: torch.Tensor | None = None


class Examples:
    """Posters of every size, drawn as they are needed and kept for a while."""

    def __init__(self, encoder: AutoencoderKL, rng: random.Random) -> None:
        self._encoder, self._rng = encoder, rng
        self._pools: defaultdict[tuple[int, int, bool], list[Example]] = defaultdict(list)

    def batch(self, rows: int, columns: int, edits: bool, size: int) -> list[Example]:
        pool = self._pools[rows, columns, edits]
        pool += self._new(rows, columns, edits, size if len(pool) < 3 * size else max(1, size // _NUM_NEW))
        del pool[: max(0, len(pool) - max(4 * size, _POOL_CELLS // (rows * columns)))]
        return self._rng.sample(pool, size)

    def _new(self, rows: int, columns: int, edits: bool, count: int) -> list[Example]:
        rng, pictures, parts = self._rng, [], []
        for _ in range(count):
            style = Style.sample(rng)
            if edits:
                edit = sample_edit(rng, rows, columns)
                source, poster, text, letters = edit.source, edit.target, edit.text, True
                pictures.append(draw(source, style)[0])
            else:
                source = poster = sample_poster(rng, rows, columns)
                letters = rng.random() >= _NO_LETTERS
                text = poster.text if letters else ""
            grid = codes(poster)
            if not edits and rng.random() < _DRAFTS:
                poster = replace(poster, text="", decoration="none")
                grid, text = draft_codes(poster, rows, columns), ""
            pixels, characters = draw(poster, style, letters)
            pictures.append(pixels)
            parts.append((grid, text, characters, codes(source)))
        latents = encode(self._encoder, np.stack(pictures)).to(torch.float16)
        return [
            Example(
                latents[2 * i + 1 if edits else i],
                torch.from_numpy(grid),
                text,
                torch.from_numpy(characters),
                latents[2 * i] if edits else None,
                torch.from_numpy(source_grid) if edits else None,
            )
            for i, (grid, text, characters, source_grid) in enumerate(parts)
        ]


def encode(encoder: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    """Normalised latents (B, 16, height / 8, width / 8) of 8-bit pictures (B, height, width, 3), as the pipeline encodes a source."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), mixed_precision():
        latents = encoder.encode(pixels).latent_dist.mode().float()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (encoder.config.latents_mean, encoder.config.latents_std))
    return (latents - mean) / std


def upsampled(grid: torch.Tensor) -> torch.Tensor:
    """Codes (B, rows, columns) as the DiT takes them, one for each patch: (B, 4 rows columns)."""
    return grid.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)


def times(noise_level: torch.Tensor, num_patches: int) -> torch.Tensor:
    """
    What the pipeline tells the DiT at a noise level: the time before the schedule's shift, less one.

    Source: `FlowMatchEulerDiscreteScheduler`, linear shift; mu of `GlmImagePipeline`.
    """
    mu = 0.75 * math.sqrt(num_patches / 256) + 0.25
    return 1000 / (1 + mu * (1 / noise_level - 1)) - 1


def _noise_levels(count: int) -> torch.Tensor:
    middle = torch.sigmoid(torch.randn(count) * 1.1 + 0.2)
    return torch.where(torch.rand(count) < 0.5, middle, 0.8 + 0.2 * torch.rand(count)).clamp(0.001, 1.0)


def _noisy_codes(grid: torch.Tensor) -> torch.Tensor:
    """Some cells get the code of some cell of another poster: the AR model's slips must not become spelling errors."""
    others = grid.flatten()[torch.randint(grid.numel(), grid.shape)]
    return torch.where(torch.rand(grid.shape) < _CODE_NOISE, others, grid)


def _sample_size(rng: random.Random, progress: float) -> tuple[int, int]:
    """Rows and columns: small ones first, for they are cheap and letters are the same; then every size."""
    limit = 10 if progress < 0.06 else 20 if progress < 0.14 else 64
    while True:
        if limit == 64 and rng.random() < 0.25:
            return rng.choice([(4, 4), (8, 8), (8, 8), (4, 8), (8, 4)])
        # One row is never asked for, but it is the cheapest lesson in spelling.
        rows, columns = rng.randint(1 if limit < 64 else 2, MAX_CELLS), rng.randint(2, MAX_CELLS)
        if rows * columns <= limit:
            return rows, columns


class _Letters(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """Names the letter of each patch from the middle of the DiT; only its gradient matters."""

    def __init__(self, net: GlmImageTransformer2DModel) -> None:
        super().__init__()
        self.linear = nn.Linear(DIT_DIM, 1 + len(CHARACTERS))
        self._hidden = torch.empty(0)
        net.transformer_blocks[_AUXILIARY_LAYER].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._hidden = output[0]

    def forward(self) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self._hidden)
        return logits.float()


def untrained() -> GlmImageTransformer2DModel:
    net = transformer()
    net.prior_token_embedding = FactoredTable(CODEBOOK_SIZE, DIT_DIM, std=0.3)
    return net


def train(folder: Path, *, minutes: float = 80, max_steps: int | None = None, seed: int = 0, start_from: Path | None = None) -> None:
    """
    Args:
        start_from: the folder of another run of this stage whose weights this one begins with; every size and edit comes from the start.
    """
    torch.manual_seed(seed)
    encoder = vae.finished(folder).to(memory_format=torch.channels_last)
    glyph_encoder = glyphs.finished(folder)
    net = untrained()
    letters = _Letters(net)
    if start_from is not None:
        load_weights(start_from, {"net": net, "letters": letters}, strict=False)
    run = Run(
        folder / "pixels",
        {"net": net, "letters": letters},
        minutes=minutes,
        lr=1e-3,
        muon_lr=0.02,
        muon_names=("attn1.", "ff.net"),
        ema_decay=0.998,
        constant_share=0.6,
        max_steps=max_steps,
        seed=seed,
    )
    rng = random.Random(f"pixels {seed} {run.step}")
    examples = Examples(encoder, rng)
    for _ in run.steps():
        progress = run.progress if start_from is None else 1.0
        rows, columns = _sample_size(rng, progress)
        edits = progress >= _EDITS_FROM and rows * columns >= 8 and rng.random() < _EDITS
        count = max(4, _PATCHES_PER_STEP // (4 * rows * columns) // (2 if edits else 1))
        batch = examples.batch(rows, columns, edits, min(count, 64))
        run.update(_loss(net, letters, glyph_encoder, batch, run), len(batch))


def _loss(net: GlmImageTransformer2DModel, letters: _Letters, glyph_encoder: nn.Module, batch: list[Example], run: Run) -> torch.Tensor:
    count, (rows, columns) = len(batch), batch[0].codes.shape
    num_patches = 4 * rows * columns
    latents = torch.stack([example.latents for example in batch]).float()
    labels = torch.stack([example.letters for example in batch]).flatten(1)
    grid = upsampled(_noisy_codes(torch.stack([example.codes for example in batch])))
    sources, source_grid = _sources(batch)
    is_edit = sources is not None
    dropped = torch.rand(count) < (0.0 if is_edit else _DROP)
    texts = ["" if drop else example.text for drop, example in zip(dropped.tolist(), batch, strict=True)]
    levels = _noise_levels(count)
    noise = torch.randn_like(latents)
    mixed = torch.lerp(latents, noise, levels.view(-1, 1, 1, 1))
    size = torch.tensor([[float(CELL_PX * rows), float(CELL_PX * columns)]]).expand(count, -1)
    corner = torch.zeros(count, 2)
    with torch.no_grad():
        embeddings = glyphs.embed(glyph_encoder, texts)
        nothing = glyphs.embed(glyph_encoder, [""] * count)
    # Flash attention is slow on few tokens.
    with (
        mixed_precision(),
        sdpa_kernel([SDPBackend.MATH if num_patches < 100 else SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]),
    ):
        caches = None
        if is_edit:
            caches = GlmImageKVCache(DIT_LAYERS)
            caches.set_mode("write")
            never = torch.zeros(count, num_patches, dtype=torch.bool)
            net(sources, nothing, source_grid, never, torch.zeros(count), size, corner, kv_caches=caches)
            caches.set_mode("read")
        drop = dropped[:, None].expand(-1, num_patches)
        velocity = net(mixed, embeddings, grid, drop, times(levels, num_patches), size, corner, kv_caches=caches).sample.float()
        logits = letters()
    error = (velocity - (noise - latents)) ** 2
    # Letters and lines are few among the patches, and all that one looks at.
    lines = _IS_LINE[torch.stack([example.codes for example in batch])].repeat_interleave(2, 1).repeat_interleave(2, 2)
    matters = (labels > 0).view(count, 2 * rows, 2 * columns) | lines
    weight = 1 + 2 * matters.float()[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)
    kept = ~dropped
    naming = F.cross_entropy(logits[kept].flatten(0, 1), labels[kept].flatten())
    with torch.no_grad():
        right = (logits.argmax(-1) == labels).float()
        letter = (labels > 0) & kept[:, None]
        hard = letter & (levels > 0.9)[:, None]
        kind = "edit " if is_edit else "large " if num_patches > 100 else ""
        run.note(**{f"{kind}error": error.mean().item(), f"{kind}naming": naming.item(), f"{kind}letters": right[letter].mean().item()})
        run.note(**{f"{kind}letters in noise": right[hard].mean().item()})
    return (error * weight).mean() + naming


def _sources(batch: list[Example]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Latents and upsampled codes of the sources of a batch of edits."""
    latents = [example.source_latents.float() for example in batch if example.source_latents is not None]
    grids = [example.source_codes for example in batch if example.source_codes is not None]
    return (torch.stack(latents), upsampled(_noisy_codes(torch.stack(grids)))) if latents else (None, None)


def finished(folder: Path) -> GlmImageTransformer2DModel:
    """The trained DiT, its table of codes folded."""
    net = untrained()
    load_weights(folder / "pixels", {"net": net})
    table = nn.Embedding(CODEBOOK_SIZE, DIT_DIM)
    with torch.no_grad():
        table.weight.copy_(net.prior_token_embedding.folded())
    net.prior_token_embedding = table
    return net.requires_grad_(False).eval()
