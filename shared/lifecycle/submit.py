"""A request becomes rows: one job, its images, and the grids they need, new or found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select, union_all, update
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import QueueFullError, RequestError
from shared.ids import new_id
from shared.lifecycle.claims import start
from shared.lifecycle.ending import succeed
from shared.lifecycle.events import record_events
from shared.lifecycle.fast_submit import Inserted, NewRows, insert_new
from shared.lifecycle.idempotency import Idempotency, claim_key
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.new_rows import Layout, fresh_rows, grid_columns, job_columns, lane_of, new_image_columns, new_layouts
from shared.lifecycle.quotas import Limits
from shared.lifecycle.reuse import Cache, Found, find_image, find_or_add, is_kept, lock_alive
from shared.lifecycle.tries import Try, claim_try
from shared.states import LIVE_WORK, WorkState
from shared.tables import File, Grid, Image, Job, Output


@dataclass(frozen=True)
class Stored:
    """
    A job that is in the ledger.

    Attributes:
        is_replay: it was there before: the same idempotency key, or an earlier try of the request, brought it.
        document: as it was written; None where it has to be read.
        num_queued: jobs of its tenant that are queued; None where that is not known.
        is_all_new: it shares nothing with another job, so its grids come first.
        is_released: workers may claim them.
    """

    job_id: str
    is_replay: bool = False
    document: dict[str, Any] | None = None
    num_queued: int | None = None
    is_all_new: bool = False
    is_released: bool = False


def submit(db: Database, new: NewJob, idempotency: Idempotency | None = None, client_try: Try | None = None) -> tuple[str, bool]:
    """
    `store` for a tenant without limits.

    Args:
        client_try: for clients that number their tries; an idempotency key says more, and then it does not count.
    Returns:
        The job's id, and whether it was already there.
    """
    stored = store(db, new, Limits(), idempotency, client_try)
    return stored.job_id, stored.is_replay


Insert = Callable[[NewRows, Limits], Inserted | None]
"""Writes a new job of which nothing is there, within the limits of its tenant: `insert_new` for one job."""


def store(
    db: Database,
    new: NewJob,
    limits: Limits,
    idempotency: Idempotency | None = None,
    client_try: Try | None = None,
    insert: Insert | None = None,
) -> Stored:
    """
    Store a job.

    Args:
        insert: by whom a job that shares nothing is written; None: at once, by itself.
        client_try: for clients that number their tries; an idempotency key says more, and then it does not count.
    Raises:
        RequestError: `idempotency_mismatch`, the key came before with another request; `queue_full`.
    """
    job_id = new_id("job")
    new = _kept_as_long(new, limits)
    if client_try is None and may_be_all_new(new):
        rows = fresh_rows(new, job_id, idempotency)
        inserted = insert(rows, limits) if insert else insert_new(db, [rows], limits)[0]
        if inserted is not None:
            return Stored(job_id, False, inserted.document, inserted.num_queued, is_all_new=True, is_released=inserted.is_released)
    return db.run(lambda session: store_in(session, new, limits, idempotency, client_try, job_id))


def _kept_as_long(new: NewJob, limits: Limits) -> NewJob:
    """With the time that its results are kept, where it names none."""
    return new if limits.results_kept_s is None or new.expires_in_s is not None else replace(new, expires_in_s=limits.results_kept_s)


def new_rows(db: Database, jobs: Mapping[str, NewJob], limits: Limits) -> dict[str, NewRows]:
    """The rows of those of these jobs of one tenant that can be written without a look at what is there, by the names that they come by."""
    rows = {name: fresh_rows(_kept_as_long(new, limits), new_id("job"), None) for name, new in jobs.items() if may_be_all_new(new)}
    if not rows:
        return {}
    keys = {name: {str(row["key"]) for row in (*found.grids, *found.images) if row["key"] is not None} for name, found in rows.items()}
    tenant_ids, wanted = {new.tenant_id for new in jobs.values()}, set().union(*keys.values())
    there = union_all(*(select(row.key).where(row.tenant_id.in_(tenant_ids), row.key.in_(wanted)) for row in (Grid, Image)))
    taken = db.run(lambda session: set(session.scalars(there)))
    found: dict[str, NewRows] = {}
    for name in rows:
        if taken.isdisjoint(keys[name]):
            found[name] = rows[name]
        # Equal ones among themselves: the second one shares the work of the first.
        taken |= keys[name]
    return found


def may_be_all_new(new: NewJob) -> bool:
    """Not of jobs that take, put aside or have to hold what is there, nor of those whose webhook is to hear of the first event."""
    hears_at_once = new.webhook is not None and "job.queued" in new.webhook["events"]
    return new.redecode_of is None and new.cache is not Cache.REFRESH and not new.sources and not hears_at_once


def submit_in(session: Session, new: NewJob, idempotency: Idempotency | None, client_try: Try | None = None) -> tuple[str, bool]:
    """`submit` within a transaction of the caller's."""
    stored = store_in(session, new, Limits(), idempotency, client_try)
    return stored.job_id, stored.is_replay


def store_in(
    session: Session,
    new: NewJob,
    limits: Limits,
    idempotency: Idempotency | None,
    client_try: Try | None = None,
    job_id: str | None = None,
) -> Stored:
    """`store` within a transaction of the caller's. With a `job_id`, the job may have been written under it already."""
    if job_id is not None and session.get(Job, job_id) is not None:
        # A connection died after its statement had been done; the repetition met the first one's rows.
        return Stored(job_id)
    new = _kept_as_long(new, limits)
    job = Job(**job_columns(new, job_id or new_id("job")))
    session.add(job)
    session.flush()
    earlier = None
    if idempotency is not None:
        earlier = claim_key(session, job, idempotency)
    elif client_try is not None:
        earlier = claim_try(session, job, client_try)
    if earlier is not None:
        # Only the claim stays: the job that was not needed goes.
        session.delete(job)
        session.flush()
        return Stored(earlier, is_replay=True)
    if new.sources:
        _hold_sources(session, new)
    outputs = _Outputs(session, new, job)
    for index in range(new.num_images):
        outputs.add(index)
    num_queued = record_events(session, [job], "job.queued")
    if outputs.are_all_done:
        succeed(session, job)
    elif outputs.is_any_running:
        start(session, [job])
    elif limits.max_queued is not None and num_queued > limits.max_queued:
        # Judged under the lock of the tenant's row: of many submits at once exactly as many get in as there is room for.
        raise QueueFullError(limits.max_queued)
    return Stored(job.id)


def _hold_sources(session: Session, new: NewJob) -> None:
    """
    Keep the source images from being erased with another job before this one is written.

    Raises:
        RequestError: one of them just was.
    """
    ids = {source.id for source in new.sources}
    held = session.scalars(select(File.id).where(File.id.in_(ids)).order_by(File.id).with_for_update(read=True, key_share=True)).all()
    if len(held) < len(ids):
        raise RequestError("invalid_request", "images: one of them was erased meanwhile; send it once more", "images")


class _Outputs:
    """The images of a job that is being written, each with the grid it is drawn from, new or found."""

    def __init__(self, session: Session, new: NewJob, job: Job) -> None:
        self.are_all_done = True
        self.is_any_running = False
        self._session = session
        self._new = new
        self._job_id = job.id
        self._lane = lane_of(new)
        # A grid that waits for one customer's word must not hold up another job.
        salt = job.id if new.approval_s is not None else ""
        self._layouts = new_layouts(new, salt) if new.redecode_of is None else self._finished_layouts(new.redecode_of)

    def add(self, index: int) -> None:
        """Write image `index`."""
        layout = self._layouts[index]
        columns = new_image_columns(self._new, layout, index)
        key = columns["key"]
        there = find_image(self._session, self._new.tenant_id, key) if key is not None and self._new.cache is Cache.USE else None
        if there is not None and there.state == WorkState.DONE and is_kept(self._session, there.id):
            image: Found = there
        else:
            # The grid of an image that is there comes before the one of its key, which may be another one by now.
            held = there and lock_alive(self._session, Grid, there.grid_id, self._lane, self._new.deadline)
            grid = held or layout.found or self._find_grid(layout)
            if self._new.wants_previews and not grid.is_new:
                self._want_preview(grid)
            columns |= {"grid_id": grid.id, "state": WorkState.READY if grid.state == WorkState.DONE else WorkState.WAITING}
            alive = there and lock_alive(self._session, Image, there.id, self._lane, self._new.deadline)
            image = alive or find_or_add(self._session, Image, columns, self._new.cache)
            self.is_any_running |= WorkState.RUNNING in (grid.state, image.state)
        is_cached = image.state == WorkState.DONE
        self.are_all_done &= is_cached
        self._session.add(Output(job_id=self._job_id, index=index, image_id=image.id, is_cached=is_cached))

    def _finished_layouts(self, source_id: str) -> list[Layout]:
        """
        The grids of another job, locked.

        Raises:
            RequestError: `not_found`, `layout_unavailable`, or there are not enough of them.
        """
        outputs = select(Image.grid_id).join(Output, Output.image_id == Image.id).where(Output.job_id == source_id)
        grid_ids = list(self._session.scalars(outputs.where(Image.tenant_id == self._new.tenant_id).order_by(Output.index)))
        if not grid_ids:
            raise RequestError("not_found", "there is no such job")
        locked = select(Grid).where(Grid.id.in_(grid_ids)).order_by(Grid.id).with_for_update()
        grids = {grid.id: grid for grid in self._session.scalars(locked)}
        if len(set(grid_ids)) == 1:
            grid_ids = grid_ids[:1] * self._new.num_images
        if self._new.num_images > len(grid_ids):
            raise RequestError("invalid_request", f"n: the job has {len(grid_ids)} layouts (got {self._new.num_images})", "n")
        layouts = []
        for grid in [grids[grid_id] for grid_id in grid_ids[: self._new.num_images]]:
            if grid.state != WorkState.DONE:
                state = "not finished yet" if grid.state in LIVE_WORK else grid.state
                raise RequestError("layout_unavailable", f"the job has no finished layout to draw from: one of them is {state}")
            # What nobody may find has no image that anybody may find.
            layouts.append(Layout(None if self._new.cache is Cache.OFF else grid.key, grid.seed, Found(grid.id, grid.state)))
        return layouts

    def _find_grid(self, layout: Layout) -> Found:
        found = find_or_add(self._session, Grid, grid_columns(self._new, layout), self._new.cache)
        # Images of one layout share its grid, also where no other job may.
        self._layouts = [replace(other, found=found) if other.seed == layout.seed else other for other in self._layouts]
        return found

    def _want_preview(self, grid: Found) -> None:
        """Its draft may have been written for jobs that wanted no picture of it."""
        undrawn = (Grid.draft_token_ids.is_not(None), Grid.preview.is_(None), Grid.state.in_(LIVE_WORK))
        self._session.execute(update(Grid).where(Grid.id == grid.id, *undrawn).values(wants_preview=True))
