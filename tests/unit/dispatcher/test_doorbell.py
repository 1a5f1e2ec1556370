"""The dispatcher answers every ring, and those that come together once."""

from __future__ import annotations

import time

from services.dispatcher.doorbell import Doorbell
from shared.states import Stage


def test_rings_are_taken_once() -> None:
    """Rings of one stage count once, and what was taken is not taken again."""
    doorbell = Doorbell()
    for stage in (Stage.AR, Stage.AR, Stage.DECODER):
        doorbell.ring(stage)
    assert doorbell.take() == {Stage.AR, Stage.DECODER}
    assert doorbell.take() == set()


def test_a_ring_before_the_wait_is_not_missed() -> None:
    """Who is rung for between taking and waiting does not wait."""
    doorbell = Doorbell()
    doorbell.take()
    doorbell.ring(Stage.DECODER)
    started = time.monotonic()
    doorbell.wait(10)
    assert time.monotonic() - started < 8
    assert doorbell.take() == {Stage.DECODER}


def test_a_wait_ends_without_a_ring() -> None:
    """The next tick comes also when nobody rings, and at once when it is due already."""
    doorbell = Doorbell()
    started = time.monotonic()
    doorbell.wait(0.05)
    doorbell.wait(-1)
    assert time.monotonic() - started < 8
    assert doorbell.take() == set()
