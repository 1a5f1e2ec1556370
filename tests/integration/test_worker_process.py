"""How a worker process ends an attempt, whatever its engine does; on a real Postgres and Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from infra.embedded.ports import free_port
from shared.attempts import Handler, timeout_error
from shared.db import Database
from shared.errors import EngineBrokenError, PermanentWorkError, TransientWorkError, WorkStoppedError
from shared.lease import HeldWork, LeaseKeeper, StopReason
from shared.lifecycle import claims, finish, jobs, work
from shared.lifecycle.claims import ClaimedGrid, StoredArtifact
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.submit import submit
from shared.progress import LiveState
from shared.settings import WorkerSettings
from shared.states import Stage
from shared.storage import StorageDownError
from shared.trace import TraceContext
from shared.worker import WorkerProcess
from tests.stack import wait_until

Run = Callable[[ClaimedGrid, HeldWork], Callable[[], None]]


@pytest.fixture
def settings(ledger_url: str, redis_url: str) -> WorkerSettings:
    """A worker with short leases."""
    return WorkerSettings(
        database_url=SecretStr(ledger_url),
        redis_url=SecretStr(redis_url),
        s3_endpoint="http://127.0.0.1:1",
        s3_access_key="k",
        s3_secret_key=SecretStr("s"),
        secret_key=SecretStr("x"),
        checkpoint="none",
        lease_s=2,
        heartbeat_s=0.2,
    )


@pytest.fixture
def live(redis_url: str) -> LiveState:
    """Redis."""
    return LiveState(redis_url)


def attempt(db: Database, live: LiveState, settings: WorkerSettings, run: Run) -> bool:
    """Let a worker take and end one released grid."""
    handler = Handler(Stage.AR, lambda worker_id, unit_id: claims.claim_grid(db, worker_id, settings.lease_s, unit_id), run)
    work.release(db, Stage.AR, 1)
    return WorkerProcess(settings, db, live, handler, {}, slots=1, speed=lambda: None).attempt(None)


def grid_row(db: Database) -> tuple[object, ...]:
    """State, errors and error of the only grid."""
    query = text("SELECT state, num_errors, error ->> 'code' FROM grid")
    return db.run(lambda session: tuple(session.execute(query).one()))


def raising(error: Exception) -> Run:
    """An engine that fails."""

    def run(claim: ClaimedGrid, held: HeldWork) -> Callable[[], None]:
        raise error

    return run


def test_nothing_to_do(db: Database, live: LiveState, settings: WorkerSettings) -> None:
    """Without released work there is no attempt."""
    assert not attempt(db, live, settings, raising(AssertionError()))


def test_success_is_written(db: Database, live: LiveState, settings: WorkerSettings, new_job: NewJob) -> None:
    """The write that the handler returns finishes the unit; the log tells of which trace it was."""
    trace = TraceContext("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    job_id, _ = submit(db, replace(new_job, trace=trace))
    artifact = StoredArtifact("k", "ab", 1)
    with capture_logs([merge_contextvars]) as lines:
        assert attempt(db, live, settings, lambda claim, held: lambda: finish.finish_grid(db, claim.id, claim.attempt, artifact, 1))
    assert grid_row(db) == ("done", 0, None)
    [ended] = [line for line in lines if line["event"] == "attempt_ended"]
    assert (ended["trace_id"], ended["job_ids"], ended["attempt"]) == (trace.trace_id, (job_id,), 1)


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (PermanentWorkError("unprocessable_prompt", "no"), "failed", "unprocessable_prompt"),
        (TransientWorkError("ar_oom", "no memory"), "ready", "ar_oom"),
        (StorageDownError("put"), "ready", "upload_failed"),
        (EngineBrokenError("CUDA error"), "ready", "engine_broken"),
        (ZeroDivisionError("secret prompt"), "ready", "internal"),
    ],
)
def test_failures_are_told_apart(
    db: Database, live: LiveState, settings: WorkerSettings, new_job: NewJob, error: Exception, state: str, code: str
) -> None:
    """What can help by trying again goes back to the queue; the rest fails the job. The worker lives on."""
    job_id, _ = submit(db, new_job)
    assert attempt(db, live, settings, raising(error))
    assert grid_row(db) == (state, 1, code)
    document = jobs.get_job(db, new_job.tenant_id, job_id, lambda ids: {})
    assert document is not None
    assert "secret prompt" not in str(document)


def test_what_takes_too_long_is_tried_again(db: Database, live: LiveState, settings: WorkerSettings, new_job: NewJob) -> None:
    """An attempt may take so long; then its engine is told to stop, and it counts as a failure. Another one goes on."""
    limited = settings.model_copy(update={"attempt_s": 0.3})
    submit(db, new_job)
    keeper = LeaseKeeper(db, live, Stage.AR, limited)
    keeper.start()

    def run(claim: ClaimedGrid, held: HeldWork) -> Callable[[], None]:
        # The worker of these tests runs without the thread that keeps its leases.
        assert wait_for_stop(keeper.hold(claim.id, claim.attempt)) == StopReason.TIMEOUT
        held.stop(StopReason.TIMEOUT)
        raise WorkStoppedError

    assert attempt(db, live, limited, run)
    keeper.close()
    assert grid_row(db) == ("ready", 1, "ar_timeout")
    # The decoder's have a code of their own.
    assert timeout_error(Stage.DECODER, 0.3).code == "decoder_timeout"


def test_shutdown_hands_back(db: Database, live: LiveState, settings: WorkerSettings, new_job: NewJob) -> None:
    """Work stopped for a shutdown is ready at once and counts as no failure."""

    def run(claim: ClaimedGrid, held: HeldWork) -> Callable[[], None]:
        held.stop(StopReason.SHUTDOWN)
        raise WorkStoppedError

    submit(db, new_job)
    attempt(db, live, settings, run)
    assert grid_row(db) == ("ready", 0, None)


def test_row_that_cannot_be_claimed_harms_nobody(db: Database, live: LiveState, settings: WorkerSettings) -> None:
    """Whatever a claim raises, the worker goes on looking."""

    def claim(worker_id: str, unit_id: str | None) -> ClaimedGrid | None:
        raise KeyError("file_x")

    handler = Handler(Stage.AR, claim, raising(AssertionError()))
    assert not WorkerProcess(settings, db, live, handler, {}, slots=1, speed=lambda: None).attempt(None)


def test_worker_with_a_broken_engine_takes_nothing_more(db: Database, live: LiveState, settings: WorkerSettings, new_job: NewJob) -> None:
    """A lost device fails one attempt, not everything in the queue."""
    submit(db, new_job)
    work.release(db, Stage.AR, 1)
    handler = Handler(
        Stage.AR, lambda worker_id, unit_id: claims.claim_grid(db, worker_id, 2, unit_id), raising(EngineBrokenError("CUDA error"))
    )
    worker = WorkerProcess(settings, db, live, handler, {}, slots=1, speed=lambda: None)
    assert worker.attempt(None)
    submit(db, replace(new_job, layout_seed=2))
    work.release(db, Stage.AR, 2)
    assert not worker.attempt(None)


def test_poller_fills_every_slot(db: Database, settings: WorkerSettings, new_job: NewJob) -> None:
    """Without Redis, and so without a message, as many units run at once as there are slots, and no more."""
    for number in range(5):
        submit(db, replace(new_job, layout_seed=number))
    work.release(db, Stage.AR, 5)
    running = threading.Semaphore(0)
    may_end = threading.Event()

    def run(claim: ClaimedGrid, held: HeldWork) -> Callable[[], None]:
        running.release()
        may_end.wait(60)
        return lambda: finish.finish_grid(db, claim.id, claim.attempt, StoredArtifact(claim.id, "ab", 1), 1)

    handler = Handler(Stage.AR, lambda worker_id, unit_id: claims.claim_grid(db, worker_id, 30, unit_id), run)
    nobody = LiveState(f"redis://127.0.0.1:{free_port()}/0")
    worker = WorkerProcess(settings.model_copy(update={"poll_s": 0.05}), db, nobody, handler, {}, slots=3, speed=lambda: None)
    poller = threading.Thread(target=worker.poll)
    poller.start()
    for _ in range(3):
        assert running.acquire(timeout=30)
    assert not running.acquire(timeout=0.3)
    may_end.set()
    for _ in range(2):
        assert running.acquire(timeout=30)
    wait_until(lambda: count(db, "done") == 5, 30)
    worker.begin_shutdown()
    poller.join(30)
    assert not poller.is_alive()


def count(db: Database, state: str) -> int:
    """Grids in a state."""
    query = text("SELECT count(*) FROM grid WHERE state = :state")
    return db.run(lambda session: int(session.execute(query, {"state": state}).scalar_one()))


def test_spare_work_waits_for_the_rest(db: Database, live: LiveState, settings: WorkerSettings, new_job: NewJob) -> None:
    """What idle slots do comes last, again and again until there is none; where it finds the device lost, the worker ends."""
    for number in range(2):
        submit(db, replace(new_job, layout_seed=number))
    work.release(db, Stage.AR, 2)
    told: list[str] = []

    def run(claim: ClaimedGrid, held: HeldWork) -> Callable[[], None]:
        told.append("work")
        return lambda: finish.finish_grid(db, claim.id, claim.attempt, StoredArtifact(claim.id, "ab", 1), 1)

    def idle(worker_id: str) -> bool:
        told.append("spare")
        if told.count("spare") == 2:
            raise ZeroDivisionError
        if told.count("spare") == 5:
            raise EngineBrokenError("CUDA error")
        return told.count("spare") < 4

    handler = Handler(Stage.AR, lambda worker_id, unit_id: claims.claim_grid(db, worker_id, 30, unit_id), run, idle)
    worker = WorkerProcess(settings.model_copy(update={"poll_s": 0.05}), db, live, handler, {}, slots=1, speed=lambda: None)
    poller = threading.Thread(target=worker.poll)
    poller.start()
    poller.join(30)
    assert not poller.is_alive()
    assert told[:3] == ["work", "work", "spare"]


def test_two_attempts_of_one_unit_are_kept_apart(db: Database, keeper: LeaseKeeper) -> None:
    """With several slots a unit may come back before its lost attempt has ended; dropping the old one keeps the new one."""
    old, new = keeper.hold("tok_x", 1), keeper.hold("tok_x", 2)
    keeper.drop(old)
    assert wait_for_stop(new) == StopReason.LOST
    assert old.stop_reason in (None, StopReason.LOST)


@pytest.fixture
def keeper(db: Database, live: LiveState, settings: WorkerSettings) -> Iterator[LeaseKeeper]:
    """A running lease keeper."""
    running = LeaseKeeper(db, live, Stage.AR, settings)
    running.start()
    yield running
    running.close()


def wait_for_stop(held: HeldWork) -> StopReason | None:
    """Wait until the work is told to stop, as an engine would find out."""
    give_up_at = time.monotonic() + 30
    while not held.should_stop() and time.monotonic() < give_up_at:
        threading.Event().wait(0.01)
    return held.stop_reason


def claim(db: Database, settings: WorkerSettings) -> ClaimedGrid:
    """Claim the only grid."""
    work.release(db, Stage.AR, 1)
    claimed = claims.claim_grid(db, "w", settings.lease_s)
    assert claimed is not None
    return claimed


def test_lease_is_kept(db: Database, keeper: LeaseKeeper, settings: WorkerSettings, new_job: NewJob) -> None:
    """Held work is not rescued, however much longer than its lease it takes; dropped work is."""
    submit(db, new_job)
    claimed = claim(db, settings)
    held = keeper.hold(claimed.id, claimed.attempt)
    time.sleep(settings.lease_s + 0.5)
    assert work.rescue(db, Stage.AR) == (0, [])
    assert not held.should_stop()
    keeper.drop(held)
    time.sleep(settings.lease_s + 0.3)
    assert work.rescue(db, Stage.AR) == (1, [])


def test_flag_stops_within_a_moment(db: Database, live: LiveState, settings: WorkerSettings, new_job: NewJob) -> None:
    """A cancel that is flagged in Redis arrives before the next heartbeat, also when nobody rings; a flag that is late stops nothing."""
    patient = settings.model_copy(update={"lease_s": 90.0, "heartbeat_s": 30.0})
    job_id, _ = submit(db, new_job)
    claimed = claim(db, patient)
    keeper = LeaseKeeper(db, live, Stage.AR, patient)
    keeper.start()
    held = keeper.hold(claimed.id, claimed.attempt)
    live.flag_stop([claimed.id])
    wait_until(lambda: not live.read_stops([claimed.id]), 30)
    assert not held.should_stop()
    live.flag_stop(jobs.cancel(db, new_job.tenant_id, job_id) or [])
    assert wait_for_stop(held) == StopReason.CANCELED
    keeper.close()


def test_heartbeat_finds_a_cancel(db: Database, keeper: LeaseKeeper, settings: WorkerSettings, new_job: NewJob) -> None:
    """A cancel that Redis never heard of arrives with the heartbeat."""
    job_id, _ = submit(db, new_job)
    claimed = claim(db, settings)
    held = keeper.hold(claimed.id, claimed.attempt)
    jobs.cancel(db, new_job.tenant_id, job_id)
    assert wait_for_stop(held) == StopReason.LOST


def test_progress_is_published(db: Database, live: LiveState, keeper: LeaseKeeper, settings: WorkerSettings, new_job: NewJob) -> None:
    """What the engine tells is read by others within a moment."""
    submit(db, new_job)
    claimed = claim(db, settings)
    keeper.hold(claimed.id, claimed.attempt).on_progress("draft", 3, 9)
    time.sleep(0.5)
    assert live.read_progress([claimed.id, "other"]) == {claimed.id: ("draft", 3, 9)}
