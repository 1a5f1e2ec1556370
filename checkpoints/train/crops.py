"""
The pictures that the autoencoder learns from and is measured by: crops of posters, and whole posters that no training saw.

Knows no net.
"""

from __future__ import annotations

import random

import numpy as np
import torch

from checkpoints.train.posters import MAX_CELLS, PATCH_PX, Bytes, Style, draw
from checkpoints.train.prompts import sample_poster


class Crops:
    """Crops of posters, most of them with something in them; a sixth as many posters as crops are drawn anew."""

    def __init__(self, rng: random.Random, pool: int = 192) -> None:
        self._rng = rng
        self._pool = [self._poster() for _ in range(pool)]

    def mixed_batch(self, step: int) -> torch.Tensor:
        """Crops of two sizes, and now and then a whole poster of any size, whose rim is at its true place."""
        if step % 8 == 7:
            rows, columns = self._rng.randint(2, MAX_CELLS), self._rng.randint(2, MAX_CELLS)
            return to_tensor([draw(sample_poster(self._rng, rows, columns), Style.sample(self._rng))[0]])
        return self.batch(8, 64) if step % 2 else self.batch(2, 128)

    def batch(self, count: int, size: int) -> torch.Tensor:
        """(count, 3, size, size) in -1..1."""
        rng = self._rng
        for _ in range(max(1, count // 6)):
            self._pool[rng.randrange(len(self._pool))] = self._poster()
        crops: list[Bytes] = []
        while len(crops) < count:
            poster = rng.choice(self._pool)
            step = 8 if rng.random() < 0.85 else 1
            top, left = rng.randrange(0, poster.shape[0] - size + 1, step), rng.randrange(0, poster.shape[1] - size + 1, step)
            crop = poster[top : top + size, left : left + size]
            if rng.random() < 0.15 or crop[::4, ::4].std(axis=(0, 1)).max() > 12:
                crops.append(crop)
        return to_tensor(crops)

    def _poster(self) -> Bytes:
        rows, columns = self._rng.randint(4, MAX_CELLS), self._rng.randint(4, MAX_CELLS)
        return draw(sample_poster(self._rng, rows, columns), Style.sample(self._rng))[0]


def to_tensor(pictures: list[Bytes]) -> torch.Tensor:
    """Pictures of one size, (height, width, 3) each, as (count, 3, height, width) in -1..1."""
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    return (pixels / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def unseen(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Posters of 256x256, (count, 3, 256, 256), and where a patch holds a character, (count, 256, 256)."""
    pictures, letters = [], []
    for i in range(count):
        rng = random.Random(f"unseen poster {i}")
        picture, characters = draw(sample_poster(rng, MAX_CELLS, MAX_CELLS), Style.sample(rng))
        pictures.append(picture)
        letters.append(np.repeat(np.repeat(characters > 0, PATCH_PX, axis=0), PATCH_PX, axis=1))
    return to_tensor(pictures), torch.from_numpy(np.stack(letters))
