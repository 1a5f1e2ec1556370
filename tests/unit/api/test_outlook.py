"""What is left of a job, in seconds, by its progress."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.api.fleet import Fleet
from services.api.outlook import work_left_s
from shared.cost import Speed
from shared.lifecycle.line import Line, Portion
from shared.lifecycle.workers import StageFleet

AR = StageFleet(1, 4, None, Speed(0.01, 0.02))
DECODER = StageFleet(1, 1, {"dit": {"num_layers": 2, "width": 64}}, Speed(1e-9, 0.1))
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def document(phase: str, done: int, total: int, n: int = 1) -> dict[str, Any]:
    params = {"n": n, "steps": 4, "guidance_scale": 1.5, "images": [], "glyph_texts": []}
    output = {"generated_height": 128, "generated_width": 128, "height": 128, "width": 128}
    return {"params": params, "outputs": [output] * n, "progress": {"phase": phase, "done": done, "total": total}}


def test_less_is_left_with_every_step() -> None:
    """From the first token of the draft to the last step what is left only shrinks; then it is nothing."""
    fleet = Fleet(AR, DECODER)
    stages = [("draft", 0, 256), ("draft", 128, 256), ("grid", 0, 16), ("grid", 8, 16), ("denoise", 0, 4), ("denoise", 3, 4), ("vae", 0, 1)]
    left = [work_left_s(document(*stage), fleet) for stage in stages]
    assert left == sorted(left, key=lambda one: -(one or 0))
    assert left[0] == pytest.approx(272 * 0.02 + (left[4] or 0))
    assert (left[5], left[6]) == (pytest.approx((left[4] or 0) / 4), 0)


def test_many_images_share_the_workers() -> None:
    """Pictures are drawn one after another by each worker."""
    one, four = (work_left_s(document("denoise", 0, 4, n), Fleet(AR, DECODER)) for n in (1, 4))
    assert four == pytest.approx(4 * (one or 0))
    two_workers = StageFleet(2, 2, DECODER.model, DECODER.speed)
    assert work_left_s(document("denoise", 0, 4, 4), Fleet(AR, two_workers)) == pytest.approx(2 * (one or 0))


@pytest.mark.parametrize(
    ("phase", "fleet"),
    [
        ("awaiting_approval", Fleet(AR, DECODER)),
        ("draft", Fleet(StageFleet(1, 4, None, None), DECODER)),
        ("denoise", Fleet(AR, StageFleet(0, 0, None, None))),
    ],
)
def test_what_nobody_knows(phase: str, fleet: Fleet) -> None:
    """A person's decision, and work of workers that are not there or have not told their speed."""
    assert work_left_s(document(phase, 0, 1), fleet) is None


def test_place_within_a_portion() -> None:
    """Lanes before one's own count whole; within a portion of one's own lane work is taken to have come evenly."""

    def portion(lane: int, first_s: float, last_s: float, cost_s: float) -> Portion:
        return Portion(lane, NOON + timedelta(seconds=first_s), NOON + timedelta(seconds=last_s), cost_s)

    line = Line((portion(0, 50, 60, 5), portion(1, 0, 10, 8), portion(1, 11, 21, 8), portion(2, 0, 1, 100)), is_known=True)
    assert [line.seconds_before(1, NOON + timedelta(seconds=second)) for second in (0, 5, 10.5, 16, 30)] == [5, 9, 13, 17, 21]
    assert line.seconds_before(0, NOON) == 0
    assert Line(line.portions, is_known=False).seconds_before(0, NOON) is None
