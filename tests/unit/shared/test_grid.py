"""Pixels and token grids."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.grid import TokenGrid

TRAINED = (64, 256)
"""Sides that the trained miniature draws, in pixels."""


@pytest.mark.parametrize(
    ("height", "width", "token_h", "token_w", "draft_h", "draft_w"),
    [  # what diffusers makes of these sizes, and sizes that are no multiples of 32
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


@given(height=st.integers(1, 4000), width=st.integers(1, 4000))
def test_a_model_without_a_limit_draws_every_size_itself(height: int, width: int) -> None:
    """The published model draws the grid that covers the size, however large."""
    assert TokenGrid.drawn_for(height, width) == TokenGrid.covering(height, width)


@pytest.mark.parametrize("token_w", range(2, 9))
@pytest.mark.parametrize("token_h", range(2, 9))
def test_a_size_within_the_limit_is_drawn_as_it_is(token_h: int, token_w: int) -> None:
    """Whole tokens in the range that the model draws are never resized."""
    assert TokenGrid.drawn_for(32 * token_h, 32 * token_w, *TRAINED) == TokenGrid(token_h, token_w)


@pytest.mark.parametrize(
    ("height", "width", "token_h", "token_w"),
    [
        (1024, 1024, 8, 8),
        (768, 1024, 6, 8),
        (1024, 1536, 5, 8),  # and not 4x6: a sixteenth off, but with 16 letters a line instead of 12
        (1080, 1920, 4, 7),
        (1350, 1080, 8, 6),  # the nearest of the large ones to 5:4
        (60, 100, 3, 5),
        (32, 32, 2, 2),
        (64, 2048, 2, 8),  # longer than any it draws
        (2048, 32, 8, 2),
    ],
)
def test_other_sizes_are_drawn_in_nearly_their_aspect(height: int, width: int, token_h: int, token_w: int) -> None:
    """Sizes that people ask for are drawn as large as the model can, in a grid of nearly the same aspect."""
    assert TokenGrid.drawn_for(height, width, *TRAINED) == TokenGrid(token_h, token_w)


@given(height=st.integers(32, 4000), width=st.integers(32, 4000))
@settings(max_examples=300)
def test_the_drawn_size_is_in_range_and_near_the_aspect(height: int, width: int) -> None:
    """Whatever is asked for, the model draws what it can, and lying is to standing as width is to height."""
    grid = TokenGrid.drawn_for(height, width, *TRAINED)
    assert all(64 <= side <= 256 for side in (grid.height_px, grid.width_px))
    assert TokenGrid.drawn_for(width, height, *TRAINED) == TokenGrid(grid.token_w, grid.token_h)
    # Beyond 4:1 nothing comes nearer than 4:1.
    aspect = min(max(height / width, 1 / 4), 4)
    # Worst where a size lies between the smallest grids: 44x51 is drawn 64x64.
    assert abs(math.log(grid.token_h / grid.token_w / aspect)) < math.log(1.16)
