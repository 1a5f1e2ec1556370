"""
Pixels and token grids: how large a grid a size needs, and how many tokens the AR model writes for it. Pure.

Height before width, always.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TOKEN_PX = 32
"""Side of one token's square in the picture, in pixels."""

PATCH_PX = 16
"""Side of one DiT patch, in pixels: each token covers 2x2 patches."""

_DRAFT_SIDE = 16
"""Side of a square draft grid. Source: transformers processing_glm_image.py, `_build_prompt_with_target_shape`."""


@dataclass(frozen=True)
class TokenGrid:
    """A target grid of `token_h x token_w` ids, and the draft grid of the same aspect that text-to-image writes first."""

    token_h: int
    token_w: int

    @classmethod
    def covering(cls, height_px: int, width_px: int) -> TokenGrid:
        """The smallest grid that covers `height_px x width_px`."""
        return cls(math.ceil(height_px / TOKEN_PX), math.ceil(width_px / TOKEN_PX))

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
