"""How requests wait, and what waiting costs the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infra.embedded.ports import free_port
from services.api.waiting import NoPlaceError, Waiting
from shared.progress import LiveState


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    """Two turns and four places; nobody tells of changes."""
    waiting = Waiting(LiveState(f"redis://127.0.0.1:{free_port()}/0"), turns=2, places=4)
    yield waiting
    waiting.close()


def in_threads(num: int, work: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work) for _ in range(num)]
    for thread in threads:
        thread.start()
    return threads


def test_requests_take_turns(waiting: Waiting) -> None:
    """Of ten requests no more than two are worked on at once, and all are answered."""
    now, most, done = 0, 0, 0
    lock = threading.Lock()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        nonlocal now, most, done
        with lock:
            now, done = now + 1, done + 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return []

    wrapped = waiting.wrap(app)
    for thread in in_threads(10, lambda: wrapped({}, None)):
        thread.join()
    assert (most, done) == (2, 10)


def test_who_waits_lets_others_work(waiting: Waiting) -> None:
    """With every turn taken by a request that waits, the next request is worked on at once."""
    ring = threading.Event()
    entered = threading.Barrier(3)

    def long_poll() -> None:
        with waiting.turn(), waiting.watch("job_a") as watch:
            entered.wait()
            while not ring.is_set():
                watch.wait(10)

    pollers = in_threads(2, long_poll)
    entered.wait()
    started = time.monotonic()
    with waiting.turn():
        assert time.monotonic() - started < 5
    ring.set()
    waiting.close()
    for thread in pollers:
        thread.join(30)
        assert not thread.is_alive()


def test_an_exception_gives_turn_and_place_back(waiting: Waiting) -> None:
    """However a request ends, its turn and its place are free again."""
    for _ in range(10):
        with pytest.raises(ZeroDivisionError), waiting.turn(), waiting.place("ten_a"), waiting.watch("job_a"):
            raise ZeroDivisionError
    with waiting.turn(), waiting.place("ten_a"), waiting.place("ten_a"):
        pass


def test_one_tenant_leaves_places_to_the_others(waiting: Waiting) -> None:
    """A tenant has half of the places at most, and all tenants together have no more than there are."""
    with waiting.place("ten_a"), waiting.place("ten_a"):
        with pytest.raises(NoPlaceError), waiting.place("ten_a"):
            pass
        with waiting.place("ten_b"), waiting.place("ten_b"), pytest.raises(NoPlaceError), waiting.place("ten_c"):
            pass
        with waiting.place("ten_c"):
            pass


def test_without_hints_they_look_themselves(waiting: Waiting) -> None:
    """While nothing is told, a change is found by looking every second."""
    documents = iter(["queued", "queued", "running", "succeeded"])
    started = time.monotonic()
    found = waiting.wait_until("ten_a", "job_a", lambda: {"status": next(documents)}, lambda job: job["status"] == "succeeded", 10)
    assert found == {"status": "succeeded"}
    assert 1.5 < time.monotonic() - started < 30


def test_the_time_is_kept(waiting: Waiting) -> None:
    """A wait ends when its time is over, with what there is then."""
    started = time.monotonic()
    assert waiting.wait_until("ten_a", "job_a", lambda: {"status": "queued"}, lambda job: False, 0.3) == {"status": "queued"}
    assert 0.25 < time.monotonic() - started < 20


def test_a_failing_look_ends_the_wait(waiting: Waiting) -> None:
    """A job that vanishes while it is waited for is an error like any other, and leaves nothing behind."""
    answers = iter([{"status": "queued"}])
    with pytest.raises(StopIteration):
        waiting.wait_until("ten_a", "job_a", lambda: next(answers), lambda job: False, 5)
    for _ in range(4):
        waiting.take_place(f"ten_{_}")


def test_the_end_of_the_process_ends_every_wait(waiting: Waiting) -> None:
    """Whoever waits when the process is told to stop is answered at once."""
    ended: list[float] = []

    def wait() -> None:
        waiting.wait_until("ten_a", "job_a", lambda: {"status": "queued"}, lambda job: False, 50)
        ended.append(time.monotonic())

    threads = in_threads(2, wait)
    time.sleep(0.1)
    closed = time.monotonic()
    waiting.close()
    for thread in threads:
        thread.join(30)
    assert len(ended) == 2
    assert max(ended) - closed < 20
