"""A request becomes rows: one job, its images, and the grids they need, new or found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select, union_all, update
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import QueueFullError, RequestError
from shared.grid import TokenGrid
from shared.ids import new_id
from shared.lifecycle.claims import start
from shared.lifecycle.ending import succeed
from shared.lifecycle.events import record_events
from shared.lifecycle.fast_submit import Inserted, NewRows, insert_new
from shared.lifecycle.idempotency import Idempotency, claim_key, key_columns
from shared.lifecycle.quotas import Limits
from shared.lifecycle.reuse import Cache, Found, find_image, find_or_add, grid_key, image_key, is_kept, lock_alive
from shared.lifecycle.tries import Try, claim_try
from shared.lora import Lora, lora_to_json
from shared.quoting.reference import glyph_texts
from shared.rendition import Rendition
from shared.states import LIVE_WORK, JobStatus, Priority, WorkState
from shared.tables import File, Grid, Image, Job, Output
from shared.trace import TraceContext

NUM_SEEDS = 2**63
"""Seeds are 0 … 2^63-1: what Postgres and both engines can hold."""


@dataclass(frozen=True)
class SourceFile:
    """A stored source image."""

    id: str
    sha256: str


@dataclass(frozen=True)
class NewJob:
    """
    A validated request with every default and seed filled in.

    Attributes:
        height_px, width_px: of the result; `grid` is what the model draws, to be resized if it is another size.
        quality: of the file, as `max_bytes`; `is_fast` is about the drawing.
        renditions: more files of each image.
        expires_in_s: how long the results are kept; None: as long as the limits it is stored with say.
        approval_s: how long drafts wait for the customer's approval; None: they need none.
        glyph_texts: what the pictures are to say; None: what the reference's parser finds in the prompt.
        warnings: about the request, for its writer.
        grid_cost_s: seconds of an AR worker that each grid will take, as far as known; `image_cost_s` is of the decoder.
        redecode_of: the job whose finished layouts are drawn once more. What decides them must be as it is there.
        dialect: what the interface that the request came by needs to answer in its own words.
        trace: which trace of the customer's the request belongs to.
    """

    tenant_id: str
    input: dict[str, Any]
    prompt: str
    height_px: int
    width_px: int
    grid: TokenGrid
    num_images: int
    seed: int
    layout_seed: int
    same_layout: bool
    steps: int
    guidance_scale: float
    temperature: float
    top_p: float
    format: str
    quality: int | None
    sources: tuple[SourceFile, ...]
    model_name: str
    model_revision: str
    priority: Priority = Priority.STANDARD
    webhook: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    custom_id: str | None = None
    deadline: datetime | None = None
    lora: Lora = ()
    is_fast: bool = False
    cache: Cache = Cache.USE
    wants_previews: bool = True
    approval_s: float | None = None
    redecode_of: str | None = None
    glyph_texts: tuple[str, ...] | None = None
    max_bytes: int | None = None
    renditions: tuple[Rendition, ...] = ()
    expires_in_s: int | None = None
    grid_cost_s: float | None = None
    image_cost_s: float | None = None
    warnings: list[dict[str, Any]] = field(default_factory=list)
    batch_id: str | None = None
    dialect: dict[str, Any] | None = None
    trace: TraceContext | None = None

    def predicted_s(self) -> float:
        """Seconds of workers that it takes if nothing of it is there already, as far as known."""
        num_grids = 1 if self.same_layout else self.num_images
        return num_grids * (self.grid_cost_s or 0.0) + self.num_images * (self.image_cost_s or 0.0)

    def params(self) -> dict[str, Any]:
        """What the engines follow, as the customer sees it."""
        return {
            "prompt": self.prompt,
            "glyph_texts": glyph_texts(self.prompt) if self.glyph_texts is None else list(self.glyph_texts),
            "size": f"{self.width_px}x{self.height_px}",
            "n": self.num_images,
            "seed": self.seed,
            "layout_seed": self.layout_seed,
            "same_layout": self.same_layout,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "format": self.format,
            "format_options": {"quality": self.quality, "max_bytes": self.max_bytes},
            "renditions": [_rendition_params(rendition) for rendition in self.renditions],
            "expires_in": self.expires_in_s,
            "quality": "fast" if self.is_fast else "exact",
            "lora": lora_to_json(self.lora),
            "images": [{"file_id": source.id} for source in self.sources],
            "cache": self.cache,
            "approve": self.approval_s is not None,
            "previews": self.wants_previews,
        }


def _rendition_params(rendition: Rendition) -> dict[str, Any]:
    return {
        "name": rendition.name,
        "size": f"{rendition.width_px}x{rendition.height_px}",
        "format": rendition.format,
        "format_options": {"quality": rendition.quality, "max_bytes": rendition.max_bytes},
        "fit": rendition.fit,
    }


@dataclass(frozen=True)
class Stored:
    """
    A job that is in the ledger.

    Attributes:
        is_replay: it was there before: the same idempotency key, or an earlier try of the request, brought it.
        document: as it was written; None where it has to be read.
        num_queued: jobs of its tenant that are queued; None where that is not known.
        is_all_new: it shares nothing with another job, so its grids come first.
    """

    job_id: str
    is_replay: bool = False
    document: dict[str, Any] | None = None
    num_queued: int | None = None
    is_all_new: bool = False


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


Insert = Callable[[NewRows, int | None], Inserted | None]
"""Writes a new job of which nothing is there, within so many queued ones of its tenant: `insert_new` for one job."""


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
        rows = _new_rows(new, job_id, idempotency)
        inserted = insert(rows, limits.max_queued) if insert else insert_new(db, [rows], limits.max_queued)[0]
        if inserted is not None:
            return Stored(job_id, document=inserted.document, num_queued=inserted.num_queued, is_all_new=True)
    return db.run(lambda session: store_in(session, new, limits, idempotency, client_try, job_id))


def _kept_as_long(new: NewJob, limits: Limits) -> NewJob:
    """With the time that its results are kept, where it names none."""
    return new if limits.results_kept_s is None or new.expires_in_s is not None else replace(new, expires_in_s=limits.results_kept_s)


def new_rows(db: Database, jobs: Mapping[str, NewJob], limits: Limits) -> dict[str, NewRows]:
    """The rows of those of these jobs of one tenant that can be written without a look at what is there, by the names that they come by."""
    rows = {name: _new_rows(_kept_as_long(new, limits), new_id("job"), None) for name, new in jobs.items() if may_be_all_new(new)}
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
    job = Job(**_job_columns(new, job_id or new_id("job")))
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
        succeed(session, [job])
    elif outputs.is_any_running:
        start(session, [job])
    elif limits.max_queued is not None and num_queued > limits.max_queued:
        # Judged under the lock of the tenant's row: of many submits at once exactly as many get in as there is room for.
        raise QueueFullError(limits.max_queued)
    return Stored(job.id)


def _new_rows(new: NewJob, job_id: str, idempotency: Idempotency | None) -> NewRows:
    """The rows of a job that shares nothing with another one."""
    # A grid that waits for one customer's word must not hold up another job.
    layouts = new_layouts(new, job_id if new.approval_s is not None else "")
    grids = {layout.seed: {"id": new_id("tok"), **_new_grid(new, layout)} for layout in layouts}
    images = [
        {"id": new_id("img"), **_new_image(new, layout, index), "grid_id": grids[layout.seed]["id"], "state": WorkState.WAITING}
        for index, layout in enumerate(layouts)
    ]
    outputs = [{"job_id": job_id, "index": index, "image_id": image["id"], "is_cached": False} for index, image in enumerate(images)]
    once = None if idempotency is None else key_columns(new.tenant_id, job_id, idempotency)
    columns = _job_columns(new, job_id)
    columns["metadata"] = columns.pop("request_metadata")
    return NewRows(columns, list(grids.values()), images, outputs, once)


def _job_columns(new: NewJob, job_id: str) -> dict[str, Any]:
    return {
        "id": job_id,
        "tenant_id": new.tenant_id,
        "status": JobStatus.QUEUED,
        "priority": new.priority,
        "input": new.input,
        "params": new.params(),
        "model": {"name": new.model_name, "revision": new.model_revision},
        "num_images": new.num_images,
        "webhook": new.webhook,
        "request_metadata": new.metadata,
        "custom_id": new.custom_id,
        "warnings": new.warnings,
        "deadline": new.deadline,
        "expires_in_s": new.expires_in_s,
        "wants_previews": new.wants_previews,
        "approval_s": new.approval_s,
        "redecode_of": new.redecode_of,
        "batch_id": new.batch_id,
        "dialect": new.dialect,
        "trace": new.trace and new.trace.headers(),
    }


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


@dataclass(frozen=True)
class Layout:
    """A grid of the job: found already, or to be found or added once an image needs it."""

    key: str | None
    seed: int
    found: Found | None = None


def new_layouts(new: NewJob, salt: str = "") -> list[Layout]:
    """
    The layouts of a job's images, none of them looked for yet.

    Args:
        salt: makes them the job's own.
    """
    layouts = []
    for index in range(new.num_images):
        seed = new.layout_seed if new.same_layout else (new.layout_seed + index) % NUM_SEEDS
        key = grid_key(
            new.prompt,
            new.grid,
            seed,
            new.temperature,
            new.top_p,
            [source.sha256 for source in new.sources],
            new.model_revision,
            new.lora,
            salt,
            new.glyph_texts,
        )
        layouts.append(Layout(None if new.cache is Cache.OFF else key, seed))
    return layouts


def image_columns(new: NewJob, layout: Layout, index: int) -> dict[str, Any]:
    """What decides image `index`, with its key."""
    made_by: dict[str, Any] = {
        "seed": (new.seed + index) % NUM_SEEDS,
        "steps": new.steps,
        "guidance_scale": new.guidance_scale,
        "height_px": new.height_px,
        "width_px": new.width_px,
        "format": new.format,
        "quality": new.quality,
        "is_fast": new.is_fast,
        "max_bytes": new.max_bytes,
        "renditions": [rendition.to_json() for rendition in new.renditions],
    }
    key = None if layout.key is None else image_key(layout.key, **made_by)
    return {"tenant_id": new.tenant_id, "key": key, **made_by}


class _Outputs:
    """The images of a job that is being written, each with the grid it is drawn from, new or found."""

    def __init__(self, session: Session, new: NewJob, job: Job) -> None:
        self.are_all_done = True
        self.is_any_running = False
        self._session = session
        self._new = new
        self._job_id = job.id
        self._lane = _lane(new)
        # A grid that waits for one customer's word must not hold up another job.
        salt = job.id if new.approval_s is not None else ""
        self._layouts = new_layouts(new, salt) if new.redecode_of is None else self._finished_layouts(new.redecode_of)

    def add(self, index: int) -> None:
        """Write image `index`."""
        layout = self._layouts[index]
        columns = _new_image(self._new, layout, index)
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
                raise RequestError("layout_unavailable", f"the job has no finished layout to draw from: one of them is {grid.state}")
            # What nobody may find has no image that anybody may find.
            layouts.append(Layout(None if self._new.cache is Cache.OFF else grid.key, grid.seed, Found(grid.id, grid.state)))
        return layouts

    def _find_grid(self, layout: Layout) -> Found:
        found = find_or_add(self._session, Grid, _new_grid(self._new, layout), self._new.cache)
        # Images of one layout share its grid, also where no other job may.
        self._layouts = [replace(other, found=found) if other.seed == layout.seed else other for other in self._layouts]
        return found

    def _want_preview(self, grid: Found) -> None:
        """Its draft may have been written for jobs that wanted no picture of it."""
        undrawn = (Grid.draft_token_ids.is_not(None), Grid.preview.is_(None), Grid.state.in_(LIVE_WORK))
        self._session.execute(update(Grid).where(Grid.id == grid.id, *undrawn).values(wants_preview=True))


def _new_grid(new: NewJob, layout: Layout) -> dict[str, Any]:
    return {
        "tenant_id": new.tenant_id,
        "key": layout.key,
        "state": WorkState.READY,
        "lane": _lane(new),
        "cost_s": new.grid_cost_s,
        "deadline": new.deadline,
        "prompt": new.prompt,
        "token_h": new.grid.token_h,
        "token_w": new.grid.token_w,
        "seed": layout.seed,
        "temperature": new.temperature,
        "top_p": new.top_p,
        "source_file_ids": [source.id for source in new.sources],
        "lora": lora_to_json(new.lora),
        "glyph_texts": None if new.glyph_texts is None else list(new.glyph_texts),
        "model_revision": new.model_revision,
        "needs_approval": new.approval_s is not None,
        "trace": new.trace and new.trace.headers(),
    }


def _new_image(new: NewJob, layout: Layout, index: int) -> dict[str, Any]:
    return image_columns(new, layout, index) | {
        "lane": _lane(new),
        "cost_s": new.image_cost_s,
        "deadline": new.deadline,
        "trace": new.trace and new.trace.headers(),
    }


def _lane(new: NewJob) -> int:
    return list(Priority).index(new.priority)
