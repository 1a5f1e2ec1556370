"""
What a source image may be, and the size it is resized to. Pure.

The AR processor rescales a source by its own rule and the DiT does not; the two agree on every size whose sides are multiples
of 32 within the checkpoint's range, and on few others. So a source is brought to such a size once.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import SourceImageError
from shared.grid import SCALE_WEIGHT, nearest_size


@dataclass(frozen=True)
class SourceLimits:
    """
    What a source picture may be. `min_px` and `max_px` bound each side of the normalised picture and come from the checkpoint.

    Args:
        shrink_weight: what a loss of area costs beside a change of aspect when a size is rounded.
        max_pixels: of the upload; a 48-megapixel phone photo passes.
        max_side_px: of the upload; WebP itself ends at 16,383.
    """

    min_px: int = 512
    max_px: int = 2048
    max_aspect: float = 4.0
    shrink_weight: float = SCALE_WEIGHT
    max_bytes: int = 20 << 20
    max_pixels: int = 50_000_000
    max_side_px: int = 16_384


def legal_size(height_px: int, width_px: int, limits: SourceLimits) -> tuple[int, int]:
    """
    The size (height, width) that a source of this size is resized to.

    The nearest legal one.

    Raises:
        SourceImageError: the aspect is beyond what the AR processor takes.
    """
    if max(height_px, width_px) > limits.max_aspect * min(height_px, width_px):
        raise SourceImageError(
            "invalid_image",
            f"The image's aspect is {width_px}:{height_px}; the long side may be at most {limits.max_aspect:g} times the short side.",
        )
    return nearest_size(height_px, width_px, limits.min_px, limits.max_px, limits.max_aspect, limits.shrink_weight)
