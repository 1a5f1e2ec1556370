"""The request for a first preview."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.decoder_worker.preview import draft_request
from shared.grid import TokenGrid


def test_a_draft_is_sampled_evenly() -> None:
    """A draft of 4x8 tokens in at most 128 pixels becomes 2x4 of its tokens, from all over it."""
    rows = [[10 * row + column for column in range(8)] for row in range(4)]
    request = draft_request("a cat", rows, 128)
    assert request.grid == TokenGrid(2, 4)
    assert request.token_ids == [[11, 13, 15, 17], [31, 33, 35, 37]]
    assert request.is_preview
    assert request.guidance_scale == 1
    assert request.prompt == "a cat"


def test_a_small_draft_keeps_its_tokens() -> None:
    """A draft that fits is drawn as it is, never enlarged."""
    rows = [[1, 2, 3], [4, 5, 6]]
    assert draft_request("", rows, 2048).token_ids == rows


@settings(deadline=None)
@given(height=st.integers(1, 64), width=st.integers(1, 64), max_px=st.integers(1, 2048))
def test_a_preview_fits_and_takes_ids_of_the_draft(height: int, width: int, max_px: int) -> None:
    """Whatever the draft, the longest side fits, no side is empty, and every id is one of the draft's, in order."""
    rows = [[row * width + column for column in range(width)] for row in range(height)]
    request = draft_request("", rows, max_px)
    assert max(request.grid.height_px, request.grid.width_px) <= max(32, max_px)
    assert (len(request.token_ids), len(request.token_ids[0])) == (request.grid.token_h, request.grid.token_w)
    flat = [token_id for row in request.token_ids for token_id in row]
    assert flat == sorted(flat)
    assert 0 <= flat[0] <= flat[-1] < height * width
