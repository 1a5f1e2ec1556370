"""
What requests cost: tokens of the AR stage, floating-point operations of the decoder's, and seconds of a worker, which a meter tells. Pure.

Knows the architecture's formula and two numbers of a checkpoint; no tensors. Good enough to order pictures by: prompts, the VAE and
the encoding of references are left out, for they are a few steps' worth at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.grid import TOKEN_PX, TokenGrid

MAX_GLYPH_TOKENS = 2048
"""Of one text, its end mark included; the rest is cut. Source: diffusers, `max_sequence_length`."""

_REMEMBERED_S = 60.0
"""Work that is so old counts for a third in an engine's speed."""

_PATCHES_PER_TOKEN = 4
"""A token stands for 32x32 pixels, a patch of the DiT for 16x16."""


@dataclass(frozen=True)
class DitSize:
    """The depth and width of a DiT."""

    num_layers: int
    width: int

    @classmethod
    def from_config(cls, config: Any) -> DitSize:
        """Read both from a diffusers transformer config."""
        return cls(int(config.num_layers), int(config.num_attention_heads * config.attention_head_dim))

    def forward_flops(self, num_patches: int, num_glyph_tokens: int, num_reference_tokens: int) -> float:
        """One call of the DiT: its matrix products over image and glyph tokens, and their attention to one another and to references."""
        num_tokens = num_patches + num_glyph_tokens
        products = 2 * num_tokens * self.num_layers * 12 * self.width**2
        attention = 4 * self.num_layers * self.width * num_tokens * (num_tokens + num_reference_tokens)
        return float(products + attention)

    def step_flops(self, num_patches: int, num_glyph_tokens: int, num_reference_tokens: int, *, is_guided: bool) -> float:
        """One step of one picture: cond, and with guidance uncond, which has one glyph token and reads no references."""
        uncond = self.forward_flops(num_patches, 1, 0) if is_guided else 0.0
        return self.forward_flops(num_patches, num_glyph_tokens, num_reference_tokens) + uncond


@dataclass(frozen=True)
class Speed:
    """
    How fast a worker was lately.

    Attributes:
        seconds_per_unit: of its engine's time for a unit of work, an AR token or a floating-point operation of the DiT.
        seconds_per_turn: of a turn, in which each request that it holds gets one token or, in its turn, one step.
    """

    seconds_per_unit: float
    seconds_per_turn: float


class SpeedMeter:
    """Sums of seconds, turns and work that fade with the seconds worked. Written by one thread, read by any."""

    def __init__(self) -> None:
        self._turn_units = 0.0
        self._sums = (0.0, 0.0, 0.0)

    def count(self, units: float) -> None:
        """Work that this turn did."""
        self._turn_units += units

    def end_turn(self, seconds: float) -> None:
        """The turn is over, and took so long."""
        # Turns that did nothing countable, such as one that reads a prompt, cost their time all the same.
        kept = math.exp(-seconds / _REMEMBERED_S)
        all_seconds, turns, units = self._sums
        self._sums = kept * all_seconds + seconds, kept * turns + bool(self._turn_units), kept * units + self._turn_units
        self._turn_units = 0.0

    def speed(self) -> Speed | None:
        """None: nothing was done yet."""
        seconds, turns, units = self._sums
        return Speed(seconds / units, seconds / turns) if units else None


def num_ar_tokens(grid: TokenGrid, num_sources: int) -> int:
    """Tokens that one AR run samples: the draft, if there is one, and the grid."""
    return grid.num_draft_tokens(num_sources) + grid.num_tokens


def image_flops(
    dit: DitSize, grid: TokenGrid, steps: int, texts: Sequence[str], source_grids: Sequence[tuple[int, int]], *, is_guided: bool
) -> float:
    """
    All steps of one picture.

    Args:
        texts: its glyph texts.
        source_grids: height and width of each source, in pixels.
    """
    num_reference_tokens = sum(_PATCHES_PER_TOKEN * (height // TOKEN_PX) * (width // TOKEN_PX) for height, width in source_grids)
    num_patches = _PATCHES_PER_TOKEN * grid.num_tokens
    return steps * dit.step_flops(num_patches, num_glyph_tokens(texts), num_reference_tokens, is_guided=is_guided)


def num_glyph_tokens(texts: Sequence[str]) -> int:
    """Tokens of the glyph encoder: the bytes and the end mark of each text, and a pad before each where their number is even."""
    rows = [min(len(text.encode()) + 1, MAX_GLYPH_TOKENS) for text in texts] or [1]
    return sum(rows) + len(rows) * ((len(rows) + 1) % 2)
