"""Pixels and token grids."""

from __future__ import annotations

import pytest

from shared.grid import TokenGrid


@pytest.mark.parametrize(
    ("height", "width", "token_h", "token_w", "draft_h", "draft_w"),
    [  # the table of MODEL.md section 2.3, and sizes that are no multiples of 32
        (512, 512, 16, 16, 16, 16),
        (1024, 1152, 32, 36, 15, 16),
        (1152, 768, 36, 24, 19, 13),
        (1536, 2048, 48, 64, 13, 18),
        (1, 33, 1, 2, 11, 22),
        (500, 300, 16, 10, 20, 12),
    ],
)
def test_grid_covers_the_size(height: int, width: int, token_h: int, token_w: int, draft_h: int, draft_w: int) -> None:
    """The next multiples of 32, and the draft that the reference would make for them."""
    grid = TokenGrid.covering(height, width)
    assert (grid.token_h, grid.token_w, grid.draft_h, grid.draft_w) == (token_h, token_w, draft_h, draft_w)
    assert grid.height_px >= height
    assert grid.width_px >= width
    assert grid.num_tokens == token_h * token_w


def test_only_text_to_image_writes_a_draft() -> None:
    """With sources there is no draft."""
    assert TokenGrid(32, 32).num_draft_tokens(0) == 256
    assert TokenGrid(32, 32).num_draft_tokens(2) == 0
