"""
What a source image may be, and the size it is resized to. Pure.

The AR processor rescales a source by its own rule and the DiT does not; the two agree on every size whose sides are multiples
of 32 within the checkpoint's range, and on few others (MODEL.md section 3.2). So a source is brought to such a size once.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from shared.errors import SourceImageError
from shared.grid import TOKEN_PX

_SCALE_WEIGHT = 0.07
"""
What a change of area costs beside a change of aspect when a size is rounded.

Taste: 1920x1080 becomes 1920x1088 and 640x480 becomes 768x576.
"""


@dataclass(frozen=True)
class SourceLimits:
    """
    What a source picture may be. `min_px` and `max_px` bound each side of the normalised picture and come from the checkpoint.

    Args:
        max_pixels: of the upload; a 48-megapixel phone photo passes.
        max_side_px: of the upload; WebP itself ends at 16,383.
    """

    min_px: int = 512
    max_px: int = 2048
    max_aspect: float = 4.0
    max_bytes: int = 20 << 20
    max_pixels: int = 50_000_000
    max_side_px: int = 16_384


def legal_size(height_px: int, width_px: int, limits: SourceLimits) -> tuple[int, int]:
    """
    The size (height, width) that a source of this size is resized to.

    A legal size stays. Otherwise the picture is scaled into the range as the AR processor would scale it, and of the sizes
    around the one is taken that changes aspect and area least.

    Raises:
        SourceImageError: the aspect is beyond what the AR processor takes.
    """
    if max(height_px, width_px) > limits.max_aspect * min(height_px, width_px):
        raise SourceImageError(
            "invalid_image",
            f"The image's aspect is {width_px}:{height_px}; the long side may be at most {limits.max_aspect:g} times the short side.",
        )
    scale = max(1.0, limits.min_px / min(height_px, width_px))
    scale = min(scale, limits.max_px / max(height_px, width_px))
    height, width = height_px * scale, width_px * scale
    pairs = itertools.product(_sides_around(height, limits), _sides_around(width, limits))
    legal = [pair for pair in pairs if max(pair) <= limits.max_aspect * min(pair)]

    def cost(size: tuple[int, int]) -> float:
        height_change, width_change = math.log(size[0] / height), math.log(size[1] / width)
        return abs(height_change - width_change) + _SCALE_WEIGHT * abs(height_change + width_change)

    return min(legal, key=cost)


def _sides_around(side_px: float, limits: SourceLimits) -> list[int]:
    """The multiples of 32 nearest to `side_px`, three to each side, as far as they are in range."""
    lowest, highest = math.ceil(limits.min_px / TOKEN_PX), limits.max_px // TOKEN_PX
    nearest = min(max(round(side_px / TOKEN_PX), lowest), highest)
    return [TOKEN_PX * side for side in range(max(nearest - 3, lowest), min(nearest + 3, highest) + 1)]
