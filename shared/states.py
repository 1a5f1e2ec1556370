"""
Every state glmq's rows can be in, what it means, and every move between them. Pure.

Three machines: *grid* and *image*, the two kinds of work, and *job*. The migration builds the database's own check of the moves
from these tables, so a move that is not listed here fails in Postgres too.
"""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """Which engine does the work."""

    AR = "ar"
    DECODER = "decoder"


class WorkState(StrEnum):
    """State of one unit of work: a grid (AR) or an image (decoder)."""

    WAITING = "waiting"
    """An image whose grid is not done. A crash leaves it so; `finish_grid` moves it on."""

    READY = "ready"
    """May be released from `not_before` on. A crash leaves it so; the dispatcher picks it up."""

    RELEASED = "released"
    """May be claimed: its id was sent to Celery, or idle workers were rung for. What is lost of that leaves it so; an idle worker or the
    rescue finds it."""

    RUNNING = "running"
    """A worker holds the lease until `lease_until`. A dead worker leaves it so; the rescue takes it back."""

    HELD = "held"
    """A grid whose draft waits for its customer's word. A crash leaves it so; approval, rejection or the end of its job moves it on."""

    DONE = "done"
    """The artifact is stored and its key, hash and size stand in the row. Final, unless a grid's artifact is lost."""

    FAILED = "failed"
    """`error` says why. Final, unless its job is retried."""

    CANCELED = "canceled"
    """Nobody wants it any more. Final, unless its job is retried."""


class JobStatus(StrEnum):
    """What the customer sees."""

    QUEUED = "queued"
    """Accepted; no stage has started, or its draft is being made or waits for approval."""

    RUNNING = "running"
    """At least one stage of one image has started."""

    SUCCEEDED = "succeeded"
    """Every image is stored. Final."""

    FAILED = "failed"
    """An image failed for good; `error` says why. Final, unless the customer retries it."""

    CANCELED = "canceled"
    """The customer canceled it before its last image was stored. Final, unless the customer retries it."""

    EXPIRED = "expired"
    """Its deadline passed first. Final, unless the customer retries it."""


class BatchStatus(StrEnum):
    """What the customer sees of a batch. The jobs of a batch have statuses of their own."""

    VALIDATING = "validating"
    """Its lines are being checked; nothing runs. A crash leaves it so, and they are checked again."""

    RUNNING = "running"
    """Its lines become jobs, and jobs end. A crash leaves it so; the lines that have no job yet go on."""

    CANCELING = "canceling"
    """The customer wants no more of it; its jobs are being canceled. A crash leaves it so."""

    FINALIZING = "finalizing"
    """Every line has an outcome, and they are being written into files. A crash leaves it so, and they are written again."""

    COMPLETED = "completed"
    """Every line has an outcome, good or bad. Final."""

    FAILED = "failed"
    """Some line could not be understood, so nothing was run; `errors` says which. Final."""

    CANCELED = "canceled"
    """The customer canceled it; its files hold what there was. Final."""

    EXPIRED = "expired"
    """Its time was up first; its files hold what there was. Final."""


class Priority(StrEnum):
    """Lane of release, most urgent first."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BULK = "bulk"


GRID_MOVES: dict[WorkState, frozenset[WorkState]] = {
    WorkState.READY: frozenset({WorkState.RELEASED, WorkState.CANCELED}),
    WorkState.RELEASED: frozenset({WorkState.RUNNING, WorkState.READY, WorkState.CANCELED}),
    WorkState.RUNNING: frozenset({WorkState.DONE, WorkState.HELD, WorkState.READY, WorkState.FAILED, WorkState.CANCELED}),
    # Approved, it goes on from its draft; rejected, it makes another one.
    WorkState.HELD: frozenset({WorkState.READY, WorkState.CANCELED}),
    # A finished grid whose artifact is gone from every store is drawn again.
    WorkState.DONE: frozenset({WorkState.READY}),
    # Only by a retry of its job, here and below.
    WorkState.FAILED: frozenset({WorkState.READY}),
    WorkState.CANCELED: frozenset({WorkState.READY}),
}

IMAGE_MOVES: dict[WorkState, frozenset[WorkState]] = {
    # Released at once, here and of new grids: nothing waits, and a worker has a free slot.
    WorkState.WAITING: frozenset({WorkState.READY, WorkState.RELEASED, WorkState.FAILED, WorkState.CANCELED}),
    # Back to waiting, here and below: its grid turned out to be lost.
    WorkState.READY: frozenset({WorkState.RELEASED, WorkState.WAITING, WorkState.CANCELED}),
    WorkState.RELEASED: frozenset({WorkState.RUNNING, WorkState.READY, WorkState.WAITING, WorkState.CANCELED}),
    WorkState.RUNNING: frozenset({WorkState.DONE, WorkState.READY, WorkState.WAITING, WorkState.FAILED, WorkState.CANCELED}),
    WorkState.DONE: frozenset(),
    WorkState.FAILED: frozenset({WorkState.WAITING, WorkState.READY}),
    WorkState.CANCELED: frozenset({WorkState.WAITING, WorkState.READY}),
}

JOB_MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    # Straight to succeeded: another job's work, done or running, was all it wanted.
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.EXPIRED}),
    JobStatus.RUNNING: frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.EXPIRED}),
    JobStatus.SUCCEEDED: frozenset(),
    # A retry, and nothing else: it begins another run of the job.
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELED: frozenset({JobStatus.QUEUED}),
    JobStatus.EXPIRED: frozenset({JobStatus.QUEUED}),
}

NEW_GRID = frozenset({WorkState.READY, WorkState.RELEASED})
NEW_IMAGE = frozenset({WorkState.WAITING, WorkState.READY})
"""How work may begin: an image whose grid is already done is ready at once."""

LIVE_WORK = frozenset({WorkState.WAITING, WorkState.READY, WorkState.RELEASED, WorkState.RUNNING, WorkState.HELD})
"""Work that may still change by itself; the rest is final, but for a grid that was lost and for a retry."""

TERMINAL_JOB = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.EXPIRED})
"""Statuses that never change again, unless the customer retries the job."""

RETRYABLE_JOB = TERMINAL_JOB - {JobStatus.SUCCEEDED}
"""Statuses from which a job may begin another run."""
