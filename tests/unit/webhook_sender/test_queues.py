"""Whose turn it is, and how much more is claimed of whom."""

from __future__ import annotations

import pytest

from services.webhook_sender.queues import Bounds, Queues
from shared.lifecycle.deliveries import Delivery, Kind, Room
from tests.fakes import make_delivery

BOUNDS = Bounds(total=200, queue=4, host=6)


def of(lane: str, count: int, first: int = 0, tenant_id: str = "ten_1", kind: Kind = "live", host: str = "") -> list[Delivery]:
    url = f"https://{host or lane + '.example'}/"
    return [make_delivery(first + number, lane, url, 1, tenant_id, kind) for number in range(count)]


def filled(deliveries: list[Delivery], bounds: Bounds = BOUNDS) -> Queues:
    queues = Queues(bounds)
    for delivery in deliveries:
        queues.add(delivery, 0.0)
    return queues


def started(queues: Queues, now: float = 1.0) -> list[str]:
    return [delivery.id for _, delivery in queues.start(now)]


def test_an_empty_sender_has_room_for_a_few_of_each() -> None:
    """Four of every queue, half of everything for one tenant."""
    assert Queues(BOUNDS).room(0.0) == Room(200, 4, 100)


def test_few_of_a_queue_are_posted_at_once() -> None:
    """The fifth waits for the first to be over; another queue does not."""
    waiting = of("a", 6)
    queues = filled([*waiting, *of("b", 1, 10)])
    assert started(queues) == ["whd_0", "whd_1", "whd_2", "whd_3", "whd_10"]
    assert started(queues) == []
    queues.posted(waiting[0], is_quick=False)
    assert started(queues) == ["whd_4"]


def test_few_to_a_host_are_posted_at_once() -> None:
    """Whoever's endpoints they are."""
    queues = filled([*of("a", 4, host="same.example"), *of("b", 4, 10, "ten_2", host="same.example")])
    assert started(queues) == ["whd_0", "whd_1", "whd_2", "whd_3", "whd_10", "whd_11"]


@pytest.mark.parametrize("kind", ["replay", "test"])
def test_replays_and_tests_go_one_by_one_beside_the_others(kind: Kind) -> None:
    """They take no place of what is new."""
    queues = filled([*of("a", 3, kind=kind), *of("a", 5, 10)])
    assert started(queues) == ["whd_0", "whd_10", "whd_11", "whd_12", "whd_13"]


def test_a_quick_queue_is_claimed_ahead() -> None:
    """Once it answers quickly, many are claimed at once; once it does not, no more than are posted."""
    (first,) = of("a", 1)
    queues = filled([first])
    started(queues)
    queues.posted(first, is_quick=True)
    assert queues.room(0.0).queues["a live"] == 255
    queues.forget(first)
    assert queues.room(0.0).queues["a live"] == 256
    queues.add(first, 0.0)
    queues.posted(first, is_quick=False)
    assert queues.room(0.0).queues["a live"] == 3


def test_what_waits_too_long_is_taken_out() -> None:
    """In order, and only what is late."""
    queues = filled(of("a", 6))
    started(queues)
    queues.add(of("a", 1, 10)[0], 5.0)
    assert [delivery.id for delivery in queues.overdue(5.0)] == ["whd_4", "whd_5"]
    assert [delivery.id for delivery in queues.take_waiting()] == ["whd_10"]
    assert queues.num_held == 7


def test_room_is_told_when_it_opens() -> None:
    """A full queue that loses one, a quick one that has lost half, a tenant that is back at half of the sender."""
    queues = filled(of("a", 4))
    assert [queues.forget(delivery) for delivery in of("a", 4)] == [True, False, False, False]
    many = of("a", 134)
    queues = filled(many)
    queues.posted(many[0], is_quick=True)
    assert [queues.forget(delivery) for delivery in many].index(True) == 6
    assert queues.num_held == 0


def test_an_overloaded_host_is_left_in_peace() -> None:
    """By all of the tenant's queues there, as long as it asks or longer each time; not by tests, and not by other tenants."""
    first, second, third = of("a", 3, host="same.example")
    foreign = of("c", 1, 30, "ten_2", host="same.example")[0]
    queues = filled([first])
    started(queues)
    queues.pause(first, 10.0, None)
    queues.pause(first, 10.5, 500)
    queues.add(second, 10.5)
    queues.add(of("b", 1, 20, host="same.example")[0], 10.5)
    queues.add(of("a", 1, 40, kind="test", host="same.example")[0], 10.5)
    queues.add(foreign, 10.5)
    assert started(queues, 10.9) == ["whd_40", "whd_30"]
    room = queues.room(10.9)
    assert [room.queues[name] for name in ("a live", "b live", "a replay", "b replay")] == [0, 0, 0, 0]
    assert started(queues, 11.0) == ["whd_1", "whd_20"]
    queues.pause(second, 12.0, None)
    queues.add(third, 12.0)
    assert started(queues, 13.9) == []
    queues.resume(second)
    assert started(queues, 13.9) == ["whd_2"]
    queues.pause(third, 14.0, 10**9)
    assert "a live" in queues.room(14.0 + 3599).queues
    assert queues.room(14.0 + 3599).queues["a live"] == 0
    assert queues.room(14.0 + 3601).queues["a live"] > 0
