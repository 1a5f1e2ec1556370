"""
Pixels and token grids: in which grid a size is drawn, and how many tokens the AR model writes for it. Pure.

Height before width, always.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

TOKEN_PX = 32
"""Side of one token's square in the picture, in pixels."""

PATCH_PX = 16
"""Side of one DiT patch, in pixels: each token covers 2x2 patches."""

_DRAFT_SIDE = 16
"""Side of a square draft grid. Source: transformers processing_glm_image.py, `_build_prompt_with_target_shape`."""

SCALE_WEIGHT = 0.07
"""
What a change of area costs beside a change of aspect when a size is rounded.

Taste: 1920x1080 becomes 1920x1088 and 640x480 becomes 768x576.
"""

LETTERS_SHRINK_WEIGHT = 0.2
"""
What a loss of area costs where a model draws small pictures only, so that each token counts as a place for letters.

With sides of 64 to 256 pixels, 1536x1024 becomes 256x160 and not 192x128, 1.07 times too wide but with 16 letters a line.
"""


@dataclass(frozen=True)
class TokenGrid:
    """A target grid of `token_h x token_w` ids, and the draft grid of the same aspect that text-to-image writes first."""

    token_h: int
    token_w: int

    @classmethod
    def covering(cls, height_px: int, width_px: int) -> TokenGrid:
        """The smallest grid that covers `height_px x width_px`."""
        return cls(math.ceil(height_px / TOKEN_PX), math.ceil(width_px / TOKEN_PX))

    @classmethod
    def drawn_for(cls, height_px: int, width_px: int, min_px: int = TOKEN_PX, max_px: int | None = None) -> TokenGrid:
        """
        The grid in which a picture of this size is drawn. The only place that decides it: jobs carry it from their submit on.

        Args:
            min_px, max_px: of each side that the model draws. Without `max_px` it draws any size, and the grid covers it. Otherwise a
                size in range that is whole tokens is drawn as it is; for any other the grid has nearly its aspect and as many tokens
                as the range allows, and the picture is resized (`services/decoder_worker/rendition.py`).
        """
        if max_px is None:
            return cls.covering(height_px, width_px)
        height, width = nearest_size(height_px, width_px, min_px, max_px, shrink_weight=LETTERS_SHRINK_WEIGHT)
        return cls(height // TOKEN_PX, width // TOKEN_PX)

    @property
    def height_px(self) -> int:
        return self.token_h * TOKEN_PX

    @property
    def width_px(self) -> int:
        return self.token_w * TOKEN_PX

    @property
    def draft_h(self) -> int:
        # The reference computes in this order; another order rounds differently for some aspects.
        return int(math.sqrt(self.token_h / self.token_w) * _DRAFT_SIDE)

    @property
    def draft_w(self) -> int:
        return int(math.sqrt(1 / (self.token_h / self.token_w)) * _DRAFT_SIDE)

    @property
    def num_tokens(self) -> int:
        return self.token_h * self.token_w

    def num_draft_tokens(self, num_sources: int) -> int:
        """Image-to-image writes no draft."""
        return 0 if num_sources else self.draft_h * self.draft_w


def nearest_size(
    height_px: int, width_px: int, min_px: int, max_px: int, max_aspect: float = math.inf, shrink_weight: float = SCALE_WEIGHT
) -> tuple[int, int]:
    """
    The size (height, width) of whole tokens, each side in range, that comes nearest to this one.

    Such a size stays. Otherwise the size is scaled into the range as GLM-Image's processor scales sources, and of the sizes around
    it the one is taken that changes aspect and area least.

    Args:
        min_px, max_px: of each side; a multiple of 32 lies between them.
        max_aspect: longest side of the result over its shortest.
        shrink_weight: what a loss of area costs beside a change of aspect.
    """
    scale = max(1.0, min_px / min(height_px, width_px))
    scale = min(scale, max_px / max(height_px, width_px))
    height, width = height_px * scale, width_px * scale
    pairs = itertools.product(_sides_around(height, min_px, max_px), _sides_around(width, min_px, max_px))
    legal = [pair for pair in pairs if max(pair) <= max_aspect * min(pair)]

    def cost(size: tuple[int, int]) -> float:
        height_change, width_change = math.log(size[0] / height), math.log(size[1] / width)
        growth = height_change + width_change
        return abs(height_change - width_change) + (SCALE_WEIGHT * growth if growth > 0 else -shrink_weight * growth)

    return min(legal, key=cost)


def _sides_around(side_px: float, min_px: int, max_px: int) -> list[int]:
    """The multiples of 32 nearest to `side_px`, three to each side, as far as they are in range."""
    lowest, highest = math.ceil(min_px / TOKEN_PX), max_px // TOKEN_PX
    nearest = min(max(round(side_px / TOKEN_PX), lowest), highest)
    return [TOKEN_PX * side for side in range(max(nearest - 3, lowest), min(nearest + 3, highest) + 1)]
