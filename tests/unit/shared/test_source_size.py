"""Every size a source is resized to is one that the AR processor and the DiT cut into the same grid."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shared.errors import SourceImageError
from shared.source_size import SourceLimits, legal_size

PUBLISHED = SourceLimits()
MINIATURE = SourceLimits(min_px=64, max_px=512)


def ar_grid(height: int, width: int, limits: SourceLimits) -> tuple[int, int]:
    """
    Tokens of a source in the AR model, doubled to the DiT's patches.

    Source: transformers image_processing_glm_image.py `smart_resize` (factor 16), then the doubling of
    diffusers pipeline_glm_image.py `_upsample_token_ids`.
    """
    factor = 16
    assert max(height, width) / min(height, width) <= 4
    scale = 1.0
    if min(height, width) < limits.min_px:
        scale = limits.min_px / min(height, width)
    if max(height, width) * scale > limits.max_px:
        scale = limits.max_px / max(height, width)
    h_bar = max(factor, round(height // 2 * scale / factor) * factor)
    w_bar = max(factor, round(width // 2 * scale / factor) * factor)
    if max(h_bar, w_bar) > limits.max_px:
        beta = max(h_bar, w_bar) / limits.max_px
        h_bar = max(factor, math.floor(h_bar / beta / factor) * factor)
        w_bar = max(factor, math.floor(w_bar / beta / factor) * factor)
    return h_bar // factor * 2, w_bar // factor * 2


def dit_grid(height: int, width: int) -> tuple[int, int]:
    """Patches of a source in the DiT. Source: diffusers pipeline_glm_image.py `__call__`: floor to 16, never scaled."""
    return height // 16, width // 16


def test_every_legal_size_gives_both_stages_the_same_grid() -> None:
    """On all 2,401 sizes of multiples of 32 in 512..2048 the two rules agree, and the size stays."""
    sides = range(512, 2049, 32)
    sizes = [(height, width) for height in sides for width in sides]
    assert len(sizes) == 2401
    for size in sizes:
        assert legal_size(*size, PUBLISHED) == size
        assert ar_grid(*size, PUBLISHED) == dit_grid(*size)


@pytest.mark.parametrize("size", [(1008, 1008), (720, 1280), (480, 640), (300, 300), (2000, 3000)])
def test_the_rules_disagree_on_ordinary_sizes(size: tuple[int, int]) -> None:
    """Without the resize the reference crashes on ordinary photos, so the resize is not a nicety."""
    assert ar_grid(*size, PUBLISHED) != dit_grid(*size)


@pytest.mark.parametrize("limits", [PUBLISHED, MINIATURE], ids=["published", "miniature"])
@given(height=st.integers(1, 6000), width=st.integers(1, 6000))
@settings(max_examples=300, deadline=None)
def test_any_size_is_brought_to_one_both_stages_read_alike(limits: SourceLimits, height: int, width: int) -> None:
    """Whatever the size, the grids agree, the size is legal, a second pass changes nothing, and the aspect hardly moves."""
    assume(max(height, width) <= 4 * min(height, width))
    size = legal_size(height, width, limits)
    assert all(side % 32 == 0 and limits.min_px <= side <= limits.max_px for side in size)
    assert max(size) <= 4 * min(size)
    assert ar_grid(*size, limits) == dit_grid(*size)
    assert legal_size(*size, limits) == size
    # One multiple of 32 is 6 % of the smallest published side and half of the miniature's.
    assert abs(math.log(size[0] / size[1] * width / height)) < 20 / limits.min_px


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((720, 1280), (736, 1312)),
        ((1080, 1920), (1088, 1920)),
        ((480, 640), (576, 768)),
        ((3024, 4032), (1536, 2048)),
        ((300, 300), (512, 512)),
        ((1, 1), (512, 512)),
        ((500, 2000), (512, 2048)),
    ],
)
def test_common_photos_keep_their_aspect(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Sizes of real cameras land where a person would put them."""
    height, width = legal_size(*size, PUBLISHED)
    assert (height, width) == expected
    assert legal_size(size[1], size[0], PUBLISHED) == (width, height)


def test_too_long_a_picture_is_refused_by_its_aspect() -> None:
    """More than 4:1 is an error that names the aspect; the AR processor would raise."""
    with pytest.raises(SourceImageError, match=r"401:100.*4 times") as caught:
        legal_size(100, 401, PUBLISHED)
    assert caught.value.code == "invalid_image"
