"""
One attempt of a claimed unit, from the claim to the write that ends it, whatever becomes of it.

Knows rows and errors, and what the work is by a `Handler`; not where claims come from, nor how many run at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import structlog

from shared.db import Database, DatabaseDownError
from shared.errors import EngineBrokenError, PermanentWorkError, StaleAttemptError, TransientWorkError, WorkError, WorkStoppedError
from shared.lease import HeldWork, LeaseKeeper, StopReason
from shared.lifecycle import finish, work
from shared.progress import LiveState
from shared.states import Stage
from shared.storage import StorageDownError
from shared.trace import TraceContext

_WRITE_FOR_S = 60.0
"""How long the end of an attempt is retried while Postgres is away. Longer than a failover; the fence makes a late write harmless."""

log = structlog.get_logger()


class Claim(Protocol):
    """A claimed unit: `ClaimedGrid` or `ClaimedImage`."""

    @property
    def id(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def trace(self) -> TraceContext | None: ...
    @property
    def job_ids(self) -> tuple[str, ...]: ...


ClaimT = TypeVar("ClaimT", bound=Claim)


@dataclass(frozen=True)
class Handler(Generic[ClaimT]):
    """What a stage does with its work."""

    stage: Stage
    claim: Callable[[str, str | None], ClaimT | None]
    """Worker id and unit id, or None for any released unit."""
    run: Callable[[ClaimT, HeldWork], Callable[[], None]]
    """Do the work and store its artifact; returns the write that finishes the unit, which may be repeated."""
    idle: Callable[[str], bool] | None = None
    """Worker id -> was there anything to do? Done only by a free slot while nothing is released, such as a preview."""


class Attempts(Generic[ClaimT]):
    """Runs the claimed units of one worker process, each on the thread that brings it."""

    def __init__(
        self,
        db: Database,
        live: LiveState,
        keeper: LeaseKeeper,
        handler: Handler[ClaimT],
        attempt_s: float,
        stopping: threading.Event,
        end_worker: Callable[[], None],
    ) -> None:
        """
        Args:
            attempt_s: how long an attempt may take, as the keeper has it.
            stopping: set once the process is to end: what is held is handed back.
            end_worker: called when the device is lost, to whatever comes next as well.
        """
        self._db = db
        self._live = live
        self._keeper = keeper
        self._handler = handler
        self._attempt_s = attempt_s
        self._stopping = stopping
        self._end_worker = end_worker

    def run(self, claim: ClaimT) -> None:
        """Run a claimed unit to its end, whatever it is."""
        held = self._keeper.hold(claim.id, claim.attempt)
        if self._stopping.is_set():
            held.stop(StopReason.SHUTDOWN)
        about = {"work_id": claim.id, "stage": self._handler.stage, "attempt": claim.attempt, "job_ids": claim.job_ids}
        trace = {} if claim.trace is None else {"trace_id": claim.trace.trace_id}
        # Of the thread: what the task and the stores log on the way names the attempt, too.
        with structlog.contextvars.bound_contextvars(**about, **trace):
            started = time.monotonic()
            try:
                self._end(claim, held)
            finally:
                self._keeper.drop(held)
            log.info("attempt_ended", seconds=round(time.monotonic() - started, 3), stop_reason=held.stop_reason)

    def _end(self, claim: ClaimT, held: HeldWork) -> None:
        """Run a claimed unit and write down how it went."""
        try:
            self._write(self._handler.run(claim, held))
        except WorkStoppedError:
            if held.stop_reason == StopReason.SHUTDOWN:
                self._write(lambda: work.hand_back(self._db, self._handler.stage, claim.id, claim.attempt))
            elif held.stop_reason == StopReason.TIMEOUT:
                self._fail(claim, timeout_error(self._handler.stage, self._attempt_s))
        except StaleAttemptError as error:
            log.warning("stale_attempt", error=str(error))
        except DatabaseDownError as error:
            # The lease will end and the rescue will return the unit.
            log.error("result_not_written", error=str(error))
        except Exception as error:  # whatever went wrong with one unit, the worker lives on
            self._fail(claim, error)

    def _fail(self, claim: ClaimT, error: Exception) -> None:
        if isinstance(error, StorageDownError):
            reason: WorkError = TransientWorkError("upload_failed", "the object store did not answer")
        elif isinstance(error, EngineBrokenError):
            reason = TransientWorkError("engine_broken", "the device failed")
            # Or every unit in the queue would fail on this device within seconds. The supervisor starts a new process.
            self._end_worker()
        elif isinstance(error, WorkError):
            reason = error
        else:
            log.exception("attempt_crashed")
            reason = TransientWorkError("internal", f"unexpected {type(error).__name__}")
        log.warning("attempt_failed", code=reason.code, error=reason.detail)
        stage, retryable = self._handler.stage, not isinstance(reason, PermanentWorkError)
        try:
            self._write(lambda: self._live.flag_stop(finish.fail(self._db, stage, claim.id, claim.attempt, reason, retryable)))
        except (StaleAttemptError, DatabaseDownError) as again:
            log.warning("failure_not_written", error=str(again))
        except Exception:  # the lease will end and the rescue will return the unit
            log.exception("failure_not_written")

    def _write(self, write: Callable[[], object]) -> None:
        """Do a lifecycle write, again and again while Postgres is away."""
        give_up_at = time.monotonic() + _WRITE_FOR_S
        while True:
            try:
                write()
            except DatabaseDownError:
                if time.monotonic() > give_up_at or self._stopping.wait(0.5):
                    raise
            else:
                return


def timeout_error(stage: Stage, attempt_s: float) -> TransientWorkError:
    """What an attempt fails with that has taken longer than it may."""
    detail = f"it was not done after {attempt_s:g} s"
    return TransientWorkError("ar_timeout", detail) if stage is Stage.AR else TransientWorkError("decoder_timeout", detail)
