"""How an attempt ends: its artifact is stored and the row says so, or it failed. Every write is fenced by the attempt."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import MappingProxyType, SimpleNamespace
from typing import Any, TypeVar, cast

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from shared.db import NOT_SYNCED, Database, read_rows
from shared.errors import StaleAttemptError, WorkError
from shared.lifecycle.at_once import is_free
from shared.lifecycle.claims import StoredArtifact, start
from shared.lifecycle.drawn import OF_GRID
from shared.lifecycle.ending import database_now, end_work, live_jobs, succeed_if_complete
from shared.lifecycle.events import record_changes
from shared.lifecycle.past_attempts import keep_attempt
from shared.lifecycle.work import held_unit, requeue
from shared.states import TERMINAL_JOB, JobStatus, Stage, WorkState
from shared.tables import Grid, Image, Job

Unit = TypeVar("Unit", Grid, Image)

_TELL_S = 5.0
"""A worker tells of its finished grid at once; after so long it must have died."""

MAX_ERRORS = 5
"""Attempts that may end in a retryable error before the unit fails. With 1, 2, 4, 8 s between them: a store's restart."""


@dataclass(frozen=True)
class PromptTokens:
    """What the AR model read before it wrote: tokens of text (the chat template's too), and of source images."""

    text: int
    image: int


def finish_grid(
    db: Database,
    grid_id: str,
    attempt: int,
    artifact: StoredArtifact,
    num_tokens: int,
    read: PromptTokens | None = None,
    *,
    tell_later: bool = False,
) -> bool:
    """
    The grid is done; its waiting images become ready. A single one is released at once, where nothing has to be chosen.

    Args:
        num_tokens: that were sampled since the grid was last held: without the draft if it was given to the attempt.
        read: the prompt as the model counted it.
        tell_later: the caller calls `tell_tokens` once the images are on their way: the finish alone is one trip to Postgres, and its
            commit waits for no disk. If it is lost with the server, so that `tell_tokens` fails, both are to be repeated.
    Returns:
        Was an image released?
    Raises:
        StaleAttemptError: this attempt does not hold the grid any more.
    """
    counted = {"text_tokens": read and read.text, "image_tokens": read and read.image}
    values = _finish_values(grid_id, attempt, artifact, num_tokens) | counted
    finished = db.run_alone(_finish_statement("grid"), values)
    if not finished:
        db.run(lambda session: _check_finished(session, Grid, grid_id, attempt, artifact))
    if not tell_later:
        tell_tokens(db, grid_id)
    return bool(finished) and finished[0].is_released


def tell_tokens(db: Database, grid_id: str) -> None:
    """
    The event of a finished grid for the jobs that wait for it, and their images that `finish_grid` could not see. May be repeated; what a
    crash leaves untold, the rescue tells.

    Raises:
        DatabaseDownError
    """

    def work(session: Session) -> None:
        grid = session.get(Grid, grid_id, with_for_update=True)
        if grid is None or grid.is_told:
            return
        grid.is_told = True
        if grid.state == WorkState.DONE:
            # Of a submit that held the grid while it ended: the finish waited for it, but sees only what was there when it began.
            session.execute(update(Image).where(Image.grid_id == grid_id, Image.state == WorkState.WAITING).values(state=WorkState.READY))
        jobs = session.scalars(live_jobs(grid)).all()
        start(session, jobs, grid.started_at)
        record_changes(session, jobs, "job.tokens_ready")

    db.run(work)


def untold_grids(db: Database, limit: int) -> list[str]:
    """Grids that were done for a while, and whose jobs have not been told."""
    late = Grid.finished_at < func.clock_timestamp() - timedelta(seconds=_TELL_S)
    query = select(Grid.id).where(Grid.is_told.is_(False), Grid.state == WorkState.DONE, late).order_by(Grid.finished_at).limit(limit)
    return db.run(lambda session: list(session.scalars(query)))


def finish_image(
    db: Database,
    image_id: str,
    attempt: int,
    artifact: StoredArtifact,
    num_steps: int | None = None,
    renditions: Mapping[str, StoredArtifact] = MappingProxyType({}),
) -> None:
    """
    The image is stored; every job succeeds whose last one it was.

    Args:
        renditions: its other files by name.
        num_steps: that this attempt took, fewer where it went on from a checkpoint; None for all of them.
    Raises:
        StaleAttemptError: this attempt does not hold the image any more.
    """

    files = json.dumps({name: asdict(file) for name, file in renditions.items()})
    values = _finish_values(image_id, attempt, artifact, num_steps) | {"renditions": files}

    def work(session: Session) -> None:
        finished = read_rows(session, _finish_statement("image"), values)
        if not finished:
            _check_finished(session, Image, image_id, attempt, artifact)
            return
        # A statement of its own, which begins after the image is locked: a submit that found it drawing holds it until its job is written.
        jobs = [_as_job(row) for row in read_rows(session, _LIVE_JOBS_OF_IMAGE, {"image": image_id})]
        if any(job.status == JobStatus.QUEUED for job in jobs):
            # Nobody has told of their start yet.
            jobs = list(session.scalars(select(Job).where(Job.id.in_([job.id for job in jobs])).order_by(Job.id)))
            start(session, jobs, finished[0].started_at)
            session.expunge_all()
        if jobs:
            succeed_if_complete(session, jobs, finished[0])

    db.run(work)


def fail(db: Database, stage: Stage, work_id: str, attempt: int, error: WorkError, retryable: bool) -> list[str]:
    """
    The attempt failed. Retryable: back to ready with back-off, `MAX_ERRORS` times; otherwise the unit and its jobs fail.

    Returns:
        The ids of other running work that nobody wants any more.
    Raises:
        StaleAttemptError: this attempt does not hold the unit any more.
    """

    def work(session: Session) -> list[str]:
        unit = held_unit(session, stage, work_id, attempt)
        if unit is None:
            raise StaleAttemptError(f"{work_id}: attempt {attempt} is over")
        unit.num_errors += 1
        unit.error = {"code": error.code, "message": error.detail}
        if retryable and unit.num_errors < MAX_ERRORS:
            # Jitter, so that work that failed together does not come back together.
            requeue(session, unit, delay_s=2 ** (unit.num_errors - 1) * random.uniform(0.8, 1.2))  # noqa: S311 - not a secret
            return []
        return end_work(session, unit, unit.error)

    return db.run(work)


def redraw_grid(db: Database, image_id: str, attempt: int, grid_sha256: str, reason: str) -> None:
    """
    The finished grid of a running image is gone from every store, or broken: draw it again. The image waits for it.

    Args:
        grid_sha256: the artifact that could not be used; a newer one is left alone.

    Raises:
        StaleAttemptError: this attempt does not hold the image any more.
    """

    def work(session: Session) -> None:
        image = held_unit(session, Stage.DECODER, image_id, attempt)
        if not isinstance(image, Image):
            raise StaleAttemptError(f"{image_id}: attempt {attempt} is over")
        grid = session.get_one(Grid, image.grid_id, with_for_update=True)
        image.num_errors += 1
        lost = {"code": "artifact_lost", "message": f"the token grid could not be used: {reason}"}
        if image.num_errors >= MAX_ERRORS or grid.state in (WorkState.FAILED, WorkState.CANCELED):
            end_work(session, image, lost)
            return
        now = database_now(session)
        image.error = lost
        keep_attempt(image, now)
        image.worker_id = image.lease_until = None
        if grid.state == WorkState.DONE and grid.sha256 != grid_sha256:
            image.state = WorkState.READY
            return
        image.state = WorkState.WAITING
        if grid.state == WorkState.DONE:
            keep_attempt(grid, now)
            grid.state = WorkState.READY
            grid.storage_key = grid.sha256 = grid.size_bytes = grid.finished_at = None
            # Others that were about to read the same lost grid wait with it.
            session.execute(
                update(Image)
                .where(Image.grid_id == grid.id, Image.state.in_([WorkState.READY, WorkState.RELEASED]))
                .values(state=WorkState.WAITING, released_at=None)
            )
        record_changes(session, session.scalars(live_jobs(grid)).all(), "job.requeued")

    db.run(work)


def _finish_values(unit_id: str, attempt: int, artifact: StoredArtifact, num_units: int | None) -> dict[str, Any]:
    return {"unit": unit_id, "attempt": attempt, "units": num_units, **asdict(artifact)}


def _check_finished(session: Session, row: type[Unit], unit_id: str, attempt: int, artifact: StoredArtifact) -> None:
    """Of a unit that could not be finished: is this very artifact there already, because an unknown commit is being repeated?"""
    unit = session.get(row, unit_id, populate_existing=True)
    if unit is None:
        raise StaleAttemptError(f"{unit_id}: attempt {attempt} is over, its job was erased")
    if unit.state != WorkState.DONE or unit.storage_key != artifact.storage_key:
        raise StaleAttemptError(f"{unit_id}: attempt {attempt} is over, it is {unit.state} at attempt {unit.attempt}")


@functools.cache
def _finish_statement(table: str) -> str:
    """
    Mark as done, write down what it cost, and of a grid make the waiting images ready: one trip, in plain SQL.

    `units` are the tokens or steps that this attempt took; NULL for all steps of an image.
    """
    if table == "grid":
        counts = ", ".join(f"{name} = coalesce(%({name})s, {name})" for name in ("text_tokens", "image_tokens"))
        own = f"is_told = false, {counts}"
        stage, all_units = Stage.AR, "0"
        # One image in the place of one grid is not more than its tenant had in hand.
        ready = f""", waiting AS MATERIALIZED (
            SELECT id FROM image WHERE grid_id IN (SELECT id FROM done) AND state = 'waiting'
        ), free AS MATERIALIZED (
            SELECT CASE WHEN (SELECT count(*) FROM waiting) = 1 THEN {is_free(Stage.DECODER, "1")} ELSE false END AS is_free
        ), made_ready AS (
            UPDATE image SET
                state = CASE WHEN is_free THEN 'released' ELSE 'ready' END, not_before = clock_timestamp(),
                released_at = CASE WHEN is_free THEN statement_timestamp() END
            FROM free WHERE id IN (SELECT id FROM waiting) AND state = 'waiting'
        )"""  # noqa: S608 - our own names
        told = f"(SELECT is_free FROM free) AS is_released, {NOT_SYNCED} AS not_synced FROM done"  # noqa: S608 - our own names
    else:
        own = "rendition_files = %(renditions)s::jsonb"
        stage, all_units, ready, told = Stage.DECODER, "steps", "", f"done.*, {OF_GRID} FROM done JOIN grid ON grid.id = done.grid_id"
    # Locked before the time is read: a cancel that holds the row for a moment may have ended a job which this unit came too late for.
    return f"""
        WITH held AS (
            SELECT id FROM {table} WHERE id = %(unit)s AND attempt = %(attempt)s AND state = 'running' FOR UPDATE
        ), done AS (
            UPDATE {table}
            SET state = 'done', storage_key = %(storage_key)s, sha256 = %(sha256)s, size_bytes = %(size_bytes)s,
                lease_until = NULL, error = NULL, finished_at = clock_timestamp(), {own}
            WHERE id IN (SELECT id FROM held)
            RETURNING *
        ), used AS (
            INSERT INTO usage (tenant_id, stage, work_id, units, seconds)
            SELECT tenant_id, '{stage}', id, coalesce(%(units)s, {all_units}), coalesce(extract(epoch FROM finished_at - started_at), 0)
            FROM done
        ){ready}
        SELECT {told}
    """  # noqa: S608 - our own names


_LIVE_JOBS_OF_IMAGE = f"""
    SELECT * FROM job WHERE id IN (SELECT job_id FROM output WHERE image_id = %(image)s)
    AND status NOT IN ({", ".join(f"'{status}'" for status in sorted(TERMINAL_JOB))}) ORDER BY id FOR UPDATE
"""  # noqa: S608 - our own names
"""`live_jobs` of an image."""


def _as_job(row: Any) -> Job:
    """What is to be seen of a job. Not one of SQLAlchemy's rows, which watch every attribute and cost twenty times as much."""
    columns = row._asdict()
    return cast(Job, SimpleNamespace(**columns, request_metadata=columns["metadata"]))
