"""The cost of a step."""

from __future__ import annotations

import pytest

from shared.cost import DitSize

_PUBLISHED = DitSize(30, 4096)


@pytest.mark.parametrize(("num_patches", "tera"), [(1024, 26.6), (4096, 116.5), (16384, 661.6)])
def test_the_published_sizes(num_patches: int, tera: float) -> None:
    """512, 1024 and 2048 pixels square cost 26.6, 116.5 and 661.6 TFLOP a step, within what its glyph tokens add."""
    assert _PUBLISHED.step_flops(num_patches, 1, 0, is_guided=True) == pytest.approx(tera * 1e12, rel=0.04)


def test_references_cost_attention_alone() -> None:
    """A reference of 1024x1024 pixels makes a guided step of that size 125.9 TFLOP, for only cond reads it."""
    assert _PUBLISHED.step_flops(4096, 1, 4096, is_guided=True) == pytest.approx(125.9e12, rel=0.02)


def test_no_guidance_is_half() -> None:
    """Without guidance a step costs one pass of two."""
    assert _PUBLISHED.step_flops(4096, 1, 0, is_guided=False) * 2 == _PUBLISHED.step_flops(4096, 1, 0, is_guided=True)
