"""Calls that come while one is under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from services.api.together import Together

pytestmark = pytest.mark.timeout(30)


class Slow:
    """What is called: it waits for its gate, and notes what came together."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.groups: list[list[int]] = []
        self.begun = threading.Semaphore(0)

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.groups.append(list(items))
        self.begun.release()
        self.gate.wait()
        if -1 in items:
            raise ValueError("one of them is bad")
        return [2 * item for item in items]


def await_num_waiting(together: Together[int, int], number: int) -> None:
    while together.num_waiting < number:
        time.sleep(0.001)


@pytest.fixture
def slow() -> Slow:
    return Slow()


def test_lone_call_is_made_at_once(slow: Slow) -> None:
    """Nobody waits for company."""
    slow.gate.set()
    together = Together(slow, most=8)
    assert [together(1), together(2)] == [2, 4]
    assert slow.groups == [[1], [2]]


def test_calls_meanwhile_are_made_as_one(slow: Slow) -> None:
    """What comes while a call is under way is made after it, so many at a time, and each gets its own result."""
    together = Together(slow, most=3)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(together, 0)
        slow.begun.acquire()
        others = [pool.submit(together, number) for number in range(1, 6)]
        await_num_waiting(together, 5)
        slow.gate.set()
        assert (first.result(), sorted(other.result() for other in others)) == (0, [2, 4, 6, 8, 10])
    assert sorted(map(len, slow.groups)) == [1, 2, 3]
    # All are told, and the next one is alone again.
    assert together(7) == 14


def test_what_it_raises_all_raise(slow: Slow) -> None:
    """An error reaches every one of the calls that were made together, and none of the others."""
    together = Together(slow, most=8)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(together, 0)
        slow.begun.acquire()
        others = [pool.submit(together, number) for number in (1, -1, 3)]
        await_num_waiting(together, 3)
        slow.gate.set()
        wait([first, *others])
        assert first.result() == 0
        assert [str(other.exception()) for other in others] == 3 * ["one of them is bad"]
    slow.gate.set()
    assert together(4) == 8
