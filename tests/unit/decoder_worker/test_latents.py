"""Noise and prior tokens."""

from __future__ import annotations

import pytest
import torch
from diffusers import GlmImagePipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from services.decoder_worker.latents import check_token_ids, starting_noise, upsample_prior_tokens
from shared.errors import TokenGridError
from shared.grid import TokenGrid

_CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_noise_follows_from_the_seed_alone(seed: int) -> None:
    """The same seed gives the same noise, whatever the global generator did in between."""
    grid = TokenGrid(2, 3)
    first = starting_noise(seed, grid, 16, 8, torch.float32, _CPU)
    torch.rand(7)
    assert torch.equal(first, starting_noise(seed, grid, 16, 8, torch.float32, _CPU))
    assert first.shape == (1, 16, 8, 12)


def test_noise_is_drawn_in_the_dtype_of_the_model() -> None:
    """bfloat16 noise is drawn as such, as the reference does, and not rounded from float32."""
    grid = TokenGrid(1, 1)
    drawn = starting_noise(3, grid, 16, 8, torch.bfloat16, _CPU)
    assert torch.equal(drawn, torch.randn((1, 16, 4, 4), generator=torch.Generator().manual_seed(3), dtype=torch.bfloat16))


def test_token_ids_are_taken_row_by_row() -> None:
    """Rows are joined in order, and the first and last id of the codebook are welcome."""
    assert check_token_ids([[0, 1, 2], [3, 4, 255]], TokenGrid(2, 3), 256).tolist() == [[0, 1, 2, 3, 4, 255]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "0x0"),
        ([[1, 2]], "1x2"),
        ([[1, 2], [3]], "2x1/2"),
        ([[1, 2], [3, 4], [5, 6]], "3x2"),
        ([[1, 2, 3], [4, 5, 6]], "2x3"),
        ([[1, 2], [3, 256]], "256"),
        ([[1, -1], [3, 4]], "-1"),
        ([[1, 2**70], [3, 4]], str(2**70)),
    ],
)
def test_ids_that_do_not_fit_are_refused(rows: list[list[int]], said: str) -> None:
    """A wrong shape or an id outside the codebook is refused with the shape or id that offended."""
    with pytest.raises(TokenGridError, match=said):
        check_token_ids(rows, TokenGrid(2, 2), 256)


@settings(deadline=None)
@given(token_h=st.integers(1, 9), token_w=st.integers(1, 9))
def test_upsampling_equals_the_reference(token_h: int, token_w: int) -> None:
    """Each id lands on the four patches of its square, as in the reference."""
    ids = torch.randint(0, 16384, (1, token_h * token_w))
    ours = upsample_prior_tokens(ids, TokenGrid(token_h, token_w))
    assert torch.equal(ours, GlmImagePipeline._upsample_token_ids(ids, token_h, token_w))


def test_upsampling_a_wrong_count_is_refused() -> None:
    """Five ids are not a grid of 2x3."""
    with pytest.raises(TokenGridError):
        upsample_prior_tokens(torch.zeros((1, 5), dtype=torch.int64), TokenGrid(2, 3))
