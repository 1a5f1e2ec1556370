"""
Erasing a job: what was asked, what was drawn for it alone and what its events and webhooks say. A row without content stays.

What other jobs of the tenant have too stays with them. Objects in S3 are doomed here, and deleted by whoever sweeps (`shared/sweep.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import ARRAY, Text, cast, delete, exists, func, select, text, update
from sqlalchemy.orm import Session

from shared.db import Database
from shared.lifecycle.ending import database_now, end_canceled
from shared.lifecycle.events import count_change
from shared.lifecycle.work import lock_units
from shared.states import TERMINAL_JOB
from shared.tables import BatchItem, DoomedObject, Event, File, Grid, Image, Job, Output, WebhookAttempt, WebhookDelivery

LATE_S = 900
"""A worker that was stopped by the erasure may still store what it was drawing; by then it has surely heard, or is dead."""

_POSTPONED_S = 60

_now = func.clock_timestamp

Unit = TypeVar("Unit", Grid, Image)


@dataclass(frozen=True)
class Erased:
    """
    A job that is erased.

    Attributes:
        stopped: ids of units that were running and are not wanted any more.
        work_ids: of units that are gone; what is cached of them is to be dropped.
        grid_hashes: the same, of the token grids' bytes.
    """

    stopped: tuple[str, ...] = ()
    work_ids: tuple[str, ...] = ()
    grid_hashes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Doomed:
    """Objects to be deleted."""

    id: int
    prefix: str


def erase(db: Database, tenant_id: str, job_id: str) -> Erased | None:
    """
    Erase a job, after it is canceled if it is not over. May be repeated.

    Returns:
        None: this tenant has no such job.
    """

    def work(session: Session) -> Erased | None:
        job = session.scalars(select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id).with_for_update()).one_or_none()
        if job is None:
            return None
        return Erased() if job.erased_at is not None else _erase(session, job)

    return db.run(work)


def erase_expired(db: Database) -> Erased | None:
    """Erase the job whose results have outlived their time for longest; None if there is none, or somebody has it in hand."""
    late = select(Job).where(Job.expires_at <= _now(), Job.expires_at.is_not(None), Job.erased_at.is_(None))
    first = late.order_by(Job.expires_at).limit(1).with_for_update(skip_locked=True)

    def work(session: Session) -> Erased | None:
        job = session.scalars(first).one_or_none()
        return None if job is None else _erase(session, job)

    return db.run(work)


def _erase(session: Session, job: Job) -> Erased:
    """Erase a job that this transaction has locked."""
    stopped = [] if job.status in TERMINAL_JOB else end_canceled(session, [job], "the job was deleted")
    images, grids = _drop_units(session, job)
    _drop_sources(session, job.tenant_id, grids)
    _blank(session, job)
    _blank_events(session, job)
    work_ids = (*(image.id for image in images), *(grid.id for grid in grids))
    return Erased(tuple(stopped), work_ids, tuple(grid.sha256 for grid in grids if grid.sha256 is not None))


def due_objects(db: Database, limit: int) -> list[Doomed]:
    """What is to be deleted now, oldest first. Several sweepers may get the same: deleting twice is no harm."""
    query = select(DoomedObject).where(DoomedObject.due_at <= _now()).order_by(DoomedObject.due_at).limit(limit)
    return db.run(lambda session: [Doomed(row.id, row.prefix) for row in session.scalars(query)])


def forget_objects(db: Database, ids: Collection[int]) -> None:
    """They are deleted."""
    if ids:
        db.run(lambda session: session.execute(delete(DoomedObject).where(DoomedObject.id.in_(ids))))


def postpone_objects(db: Database, ids: Collection[int]) -> None:
    """They could not be deleted: not again before a minute has passed."""
    if ids:
        later = update(DoomedObject).where(DoomedObject.id.in_(ids)).values(due_at=_now() + timedelta(seconds=_POSTPONED_S))
        db.run(lambda session: session.execute(later))


def _drop_units(session: Session, job: Job) -> tuple[list[Image], list[Grid]]:
    """Delete the job's outputs, then the images that no other job has, then the grids that no image is drawn from."""
    images = lock_units(session, Image, set(session.scalars(delete(Output).where(Output.job_id == job.id).returning(Output.image_id))))
    # Judged by a statement that begins after the images are locked: a submit that found one of them holds it until its job is written.
    shared = set(session.scalars(select(Output.image_id).where(Output.image_id.in_([image.id for image in images]))))
    images = [image for image in images if image.id not in shared]
    grids = lock_units(session, Grid, {image.grid_id for image in images})
    _delete(session, Image, images)
    used = set(session.scalars(select(Image.grid_id).where(Image.grid_id.in_([grid.id for grid in grids]))))
    grids = [grid for grid in grids if grid.id not in used]
    _delete(session, Grid, grids)
    _doom(session, [*map(_image_objects, images), *map(_grid_objects, grids)])
    return images, grids


def _drop_sources(session: Session, tenant_id: str, grids: Sequence[Grid]) -> None:
    """Delete the reference images that only grids had which are gone."""
    wanted = {file_id for grid in grids for file_id in grid.source_file_ids}
    if not wanted:
        return
    mine = (File.id.in_(wanted), File.tenant_id == tenant_id, File.purpose == "source")
    # Locked, as a submit locks the files that it names: of the two, the later one sees what the earlier one did.
    for file in session.scalars(select(File).where(*mine).order_by(File.id).with_for_update()).all():
        # The index has the second condition.
        in_use = exists().where(Grid.source_file_ids.op("@>")(cast([file.id], ARRAY(Text))), text("grid.source_file_ids <> '{}'"))
        if not session.scalar(select(in_use)):
            session.add(DoomedObject(prefix=file.storage_key))
            session.delete(file)
    session.flush()


def _blank(session: Session, job: Job) -> None:
    job.input = {}
    job.params = {}
    job.warnings = []
    job.request_metadata = {}
    job.custom_id = None
    job.webhook = None
    job.dialect = None
    job.trace = None
    if job.batch_id is not None:
        # By the batch first, which is what its lines are indexed by.
        mine = (BatchItem.batch_id == job.batch_id, BatchItem.job_id == job.id)
        session.execute(update(BatchItem).where(*mine).values(request={}))
    if job.error is not None:
        # Its text may quote what was asked.
        job.error = {"code": job.error["code"], "message": "erased"}
    job.erased_at = database_now(session)
    count_change(session, job)
    session.flush()


def _blank_events(session: Session, job: Job) -> None:
    """Their numbers stay: the feed has no gap. What is still to be delivered is not."""
    erased: dict[str, Any] = {"id": job.id, "object": "job", "erased": True}
    session.execute(update(Event).where(Event.job_id == job.id).values(data=erased))
    of_job = WebhookDelivery.event_id.in_(select(Event.id).where(Event.job_id == job.id))
    session.execute(update(WebhookDelivery).where(of_job).values(body=None))
    of_delivery = WebhookAttempt.delivery_id.in_(select(WebhookDelivery.id).where(of_job))
    session.execute(update(WebhookAttempt).where(of_delivery).values(reply=None))
    given_up = {"state": "exhausted", "lease_until": None, "last_error": "the job was erased"}
    session.execute(update(WebhookDelivery).where(of_job, WebhookDelivery.state == "pending").values(**given_up))


@dataclass(frozen=True)
class _Objects:
    """Where the objects of a unit are, and whether a worker may still add to them."""

    prefixes: tuple[str, ...]
    may_grow: bool


def _doom(session: Session, objects: Iterable[_Objects]) -> None:
    now = database_now(session)
    for of_unit in objects:
        for prefix in of_unit.prefixes:
            session.add(DoomedObject(prefix=prefix, due_at=now))
            if of_unit.may_grow:
                session.add(DoomedObject(prefix=prefix, due_at=now + timedelta(seconds=LATE_S)))
    session.flush()


def _image_objects(image: Image) -> _Objects:
    named = [image.storage_key, *(entry["storage_key"] for entry in image.previews)]
    return _Objects(_prefixes(image, "images", named), image.worker_id is not None)


def _grid_objects(grid: Grid) -> _Objects:
    named = [grid.storage_key, None if grid.preview is None else grid.preview["storage_key"]]
    return _Objects(_prefixes(grid, "grids", named), (grid.worker_id or grid.preview_worker_id) is not None)


def _prefixes(unit: Image | Grid, kind: str, named: Sequence[str | None]) -> tuple[str, ...]:
    """The folders in which workers store what they make, of every attempt; and what the row names, wherever that is."""
    folders = tuple(f"t/{unit.tenant_id}/{folder}/{unit.id}/" for folder in (kind, "previews"))
    return (*folders, *(key for key in named if key is not None and not key.startswith(folders)))


def _delete(session: Session, row: type[Unit], units: Iterable[Unit]) -> None:
    ids = []
    for unit in units:
        session.expunge(unit)
        ids.append(unit.id)
    session.execute(delete(row).where(row.id.in_(ids)).execution_options(synchronize_session=False))
