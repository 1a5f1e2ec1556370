"""What every batching engine does with its tickets, shown with one that counts."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from concurrent.futures import wait

import pytest

from shared.engine import BatchEngine, Ticket
from shared.errors import EngineBrokenError, WorkStoppedError

_TIMEOUT_S = 20


class Counter(BatchEngine[int, int, str, int]):
    """
    Counts each request down, two at a time, one step a turn.

    A negative one cannot be taken up, 13 breaks a whole turn, 7 cannot be let go of, 99 cannot be prepared.
    """

    def __init__(self) -> None:
        super().__init__("counter", "counter_oom")
        self.left: dict[Ticket[int, str, int], int] = {}
        self.most_live = 0
        self.prepared_on: list[threading.Thread] = []

    def prepare(self, request: int) -> int:
        self.prepared_on.append(threading.current_thread())
        if request == 99:
            raise ValueError("cannot prepare 99")
        return request

    def live(self) -> Collection[Ticket[int, str, int]]:
        return self.left

    def drop(self, ticket: Ticket[int, str, int]) -> None:
        self.left.pop(ticket, None)
        if ticket.work == 7:
            raise RuntimeError("seven")

    def turn(self) -> None:
        for ticket in self.take_waiting(2 - len(self.left)):
            if ticket.work < 0:
                self.fail(ticket, ValueError(f"cannot count {ticket.work}"))
            else:
                self.left[ticket] = ticket.work
        self.most_live = max(self.most_live, len(self.left))
        for ticket in list(self.left):
            if self.stopped(ticket):
                continue
            if self.left[ticket] == 13:
                raise RuntimeError("thirteen")
            if self.left[ticket] == 0:
                self.finish(ticket, f"counted {ticket.work}")
                continue
            self.left[ticket] -= 1
            if self.show(ticket, self.left[ticket]):
                self.tell(ticket, "count", ticket.work - self.left[ticket], ticket.work)


@pytest.fixture
def engine() -> Iterator[Counter]:
    engine = Counter()
    engine.start()
    yield engine
    engine.close()


def silent(phase: str, done: int, total: int) -> None:
    """Progress for tests that look elsewhere."""


def never() -> bool:
    return False


def test_requests_are_prepared_by_those_who_submit(engine: Counter) -> None:
    """Not on the engine's thread; what cannot be prepared fails, and the engine never sees it."""
    bad, good = engine.submit(99, silent, never), engine.submit(3, silent, never)

    with pytest.raises(ValueError, match="cannot prepare"):
        bad.result(timeout=_TIMEOUT_S)
    assert good.result(timeout=_TIMEOUT_S) == "counted 3"
    assert engine.prepared_on == [threading.current_thread()] * 2


def test_requests_are_served_side_by_side(engine: Counter) -> None:
    """Many requests, room for two: each gets its own result, and two live at once."""
    futures = [engine.submit(count, silent, never) for count in (5, 3, 0, 8, 2)]

    assert [future.result(_TIMEOUT_S) for future in futures] == [f"counted {count}" for count in (5, 3, 0, 8, 2)]
    assert engine.most_live == 2


def test_a_request_that_cannot_be_taken_up_fails_alone(engine: Counter) -> None:
    """Its neighbours never hear of it."""
    good, bad, last = (engine.submit(count, silent, never) for count in (4, -1, 4))

    assert isinstance(bad.exception(_TIMEOUT_S), ValueError)
    assert good.result(_TIMEOUT_S) == last.result(_TIMEOUT_S) == "counted 4"


def test_a_broken_turn_fails_who_was_in_it_and_nobody_else(engine: Counter) -> None:
    """The engine goes on with those who come later."""
    broken = engine.submit(13, silent, never)

    assert isinstance(broken.exception(_TIMEOUT_S), RuntimeError)
    assert engine.submit(3, silent, never).result(_TIMEOUT_S) == "counted 3"


@pytest.mark.parametrize("which", ["on_progress", "should_stop", "on_interim"])
def test_a_callable_that_fails_fails_only_its_request(engine: Counter, which: str) -> None:
    """Whichever of the three it is."""

    def broken(*_: object) -> bool:
        raise KeyError(which)

    callables = {"on_progress": silent, "should_stop": never, "on_interim": lambda _: None, which: broken}
    bad, good = engine.submit(4, **callables), engine.submit(4, silent, never)

    assert isinstance(bad.exception(_TIMEOUT_S), KeyError)
    assert good.result(_TIMEOUT_S) == "counted 4"


def test_run_handles_what_comes_before_the_end_on_the_caller_s_thread(engine: Counter) -> None:
    """All of it, in order, before the result."""
    seen: list[int] = []
    threads: set[int] = set()

    def handle(left: int) -> None:
        seen.append(left)
        threads.add(threading.get_ident())

    assert engine.run(4, silent, never, handle) == "counted 4"
    assert seen == [3, 2, 1, 0]
    assert threads == {threading.get_ident()}


def test_run_stops_a_request_whose_handler_fails(engine: Counter) -> None:
    """The error reaches the caller, and the request does not run on for nobody."""

    def handle(left: int) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        engine.run(10**9, silent, never, handle)
    assert engine.submit(2, silent, never).result(_TIMEOUT_S) == "counted 2"


def test_stopping_and_cancelling_reach_the_waiting_too(engine: Counter) -> None:
    """Stopped before its turn a request costs nothing; a cancelled future is passed over."""
    hold = threading.Event()
    running = [engine.submit(1, lambda *_: bool(hold.wait(_TIMEOUT_S)), never) for _ in range(2)]
    stopped, cancelled, last = engine.submit(5, silent, lambda: True), engine.submit(5, silent, never), engine.submit(5, silent, never)
    assert cancelled.cancel()
    hold.set()

    assert isinstance(stopped.exception(_TIMEOUT_S), WorkStoppedError)
    assert [future.result(_TIMEOUT_S) for future in [*running, last]] == ["counted 1", "counted 1", "counted 5"]


@pytest.mark.parametrize("is_stopped", [True, False])
def test_what_cannot_be_let_go_of_ends_the_engine(is_stopped: bool) -> None:
    """As on a lost device: whoever lives, waits or comes later hears at once that the engine is broken."""
    engine = Counter()
    futures = [
        engine.submit(7, silent, lambda: is_stopped and len(engine.left) == 2),
        *(engine.submit(1000, silent, never) for _ in range(3)),
    ]
    engine.start()
    for future in futures:
        assert isinstance(future.exception(_TIMEOUT_S), EngineBrokenError)
    assert isinstance(engine.submit(1, silent, never).exception(_TIMEOUT_S), EngineBrokenError)
    engine.close()


def test_closing_ends_everything() -> None:
    """Live and waiting requests are told, the thread ends, and later requests are turned away."""
    engine = Counter()
    engine.start()
    started = threading.Event()
    futures = [engine.submit(10**9, lambda *_: started.set(), never) for _ in range(4)]
    assert started.wait(_TIMEOUT_S)

    engine.close()

    assert not wait(futures, _TIMEOUT_S).not_done
    assert all(isinstance(future.exception(), WorkStoppedError) for future in futures)
    assert isinstance(engine.submit(1, silent, never).exception(), WorkStoppedError)
