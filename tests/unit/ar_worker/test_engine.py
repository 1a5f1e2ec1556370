"""The engine serves, survives and closes. That its tokens are right is proved beside the reference, in integration."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import wait

import pytest
import torch
from PIL import Image

from services.ar_worker.engine import ArEngine, GridRequest
from services.ar_worker.weights import ArModel
from shared.errors import PermanentWorkError, TransientWorkError, WorkStoppedError
from shared.grid import TokenGrid

# Image-to-image writes no draft, so this is four tokens.
QUICK = GridRequest("A cat", TokenGrid(2, 2), seed=1, temperature=0.9, top_p=0.75, sources=(Image.new("RGB", (64, 64), (9, 99, 200)),))


@pytest.fixture
def engine(ar_model: ArModel) -> Iterator[ArEngine]:
    engine = ArEngine(ar_model)
    engine.start()
    yield engine
    engine.close()


def ignore(phase: str, done: int, total: int) -> None:
    """A progress callback for tests that look elsewhere."""


def never() -> bool:
    return False


def test_a_bad_request_fails_alone(engine: ArEngine) -> None:
    """Between two good requests, one that cannot be served gets its own error."""
    requests = [QUICK, GridRequest("<sop>", QUICK.grid, 1, 0.9, 0.75), GridRequest("A cat", QUICK.grid, 1, -1.0, 0.75), QUICK]
    first, bad_prompt, bad_temperature, last = (engine.submit(request, ignore, never) for request in requests)

    assert first.result(timeout=60) == last.result(timeout=60)
    assert isinstance(bad_prompt.exception(), PermanentWorkError)
    assert isinstance(bad_temperature.exception(), PermanentWorkError)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), MemoryError()])
def test_out_of_memory_may_be_tried_again(engine: ArEngine, error: Exception) -> None:
    """Whatever runs out of memory inside a request, the request is told to come back and the engine goes on."""

    def fail(phase: str, done: int, total: int) -> None:
        raise error

    with pytest.raises(TransientWorkError) as caught:
        engine.submit(QUICK, fail, never).result(timeout=60)

    assert caught.value.code == "ar_oom"
    assert len(engine.submit(QUICK, ignore, never).result(timeout=60).token_ids) == 2


def test_a_callback_that_fails_fails_only_its_request(engine: ArEngine) -> None:
    """The error arrives at the one who made it."""

    def fail(phase: str, done: int, total: int) -> None:
        raise KeyError("progress")

    with pytest.raises(KeyError):
        engine.submit(QUICK, fail, never).result(timeout=60)

    assert engine.submit(QUICK, ignore, never).result(timeout=60).token_ids


def test_work_that_is_stopped_before_it_starts_runs_nothing(engine: ArEngine) -> None:
    """A cancel that came while the request waited costs no token."""
    seen: list[int] = []
    future = engine.submit(QUICK, lambda phase, done, total: seen.append(done), lambda: True)

    with pytest.raises(WorkStoppedError):
        future.result(timeout=60)
    assert seen == []


def test_a_cancelled_future_is_skipped(engine: ArEngine) -> None:
    """The one behind it is served."""
    in_first, go_on = threading.Event(), threading.Event()

    def hold(phase: str, done: int, total: int) -> None:
        in_first.set()
        go_on.wait(60)

    first = engine.submit(QUICK, hold, never)
    in_first.wait(60)
    second, third = engine.submit(QUICK, ignore, never), engine.submit(QUICK, ignore, never)

    assert second.cancel()
    go_on.set()

    assert third.result(timeout=60) == first.result(timeout=60)
    assert second.cancelled()


def test_closing_stops_the_running_and_the_waiting(ar_model: ArModel) -> None:
    """No future is left hanging, the thread ends, and later requests are turned away."""
    engine = ArEngine(ar_model)
    engine.start()
    started = threading.Event()
    long_request = GridRequest("A cat", TokenGrid(16, 16), 1, 0.9, 0.75)
    running = engine.submit(long_request, lambda *_: started.set(), never)
    waiting = engine.submit(QUICK, ignore, never)
    started.wait(60)

    engine.close()

    late = engine.submit(QUICK, ignore, never)
    wait([running, waiting, late], timeout=60)
    assert all(isinstance(future.exception(timeout=0), WorkStoppedError) for future in (running, waiting, late))
    assert not any(thread.name == "ar-engine" and thread.is_alive() for thread in threading.enumerate())


def test_an_engine_that_never_started_can_be_closed(ar_model: ArModel) -> None:
    """A worker whose start failed half-way still shuts down cleanly."""
    ArEngine(ar_model).close()
