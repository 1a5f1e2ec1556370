"""The job as customers see it: rows in, JSON out, one form for the API, the events and the webhooks. Knows no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from shared.grid import TokenGrid
from shared.quoting.reference import glyph_texts
from shared.states import TERMINAL_JOB, JobStatus, Stage, WorkState
from shared.tables import Grid, Image, Job

PHASES = ("draft", "awaiting_approval", "grid", "denoise", "vae", "upload")
"""Phases of progress, in order. Image-to-image has no draft, and only jobs that ask for it wait for approval."""

WATCHED_WORK = frozenset({WorkState.RUNNING, WorkState.CANCELED})
"""Work whose live progress counts: canceled work stays where it was stopped."""

Progress = tuple[str, int, int]
"""Phase, done, total."""


@dataclass(frozen=True)
class JobImage:
    """An image of a job, which may be an image of other jobs too. `is_cached`: it was done before the job came."""

    row: Image
    is_cached: bool


def preview_entry(step: int | None, storage_key: str, height_px: int, width_px: int, made_at: datetime) -> dict[str, Any]:
    """A preview as its row keeps it; `step` is None for a draft, which comes before the first one."""
    return {"step": step, "storage_key": storage_key, "height": height_px, "width": width_px, "made_at": made_at.isoformat()}


def timestamp(at: datetime | None) -> str | None:
    """RFC 3339 in UTC, milliseconds, `Z`."""
    return None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_document(
    job: Job, images: Sequence[JobImage], grids: Mapping[str, Grid], progress: Mapping[str, Progress] | None = None
) -> dict[str, Any]:
    """
    Describe a job.

    Args:
        images: of the job, by index.
        grids: by id, all that the images name.
        progress: live progress by work id, as workers report it; without it only finished work counts.
    Returns:
        The document with paths for links and storage keys for results; `finish_document` makes URLs of both.
    """
    stage = None
    if job.status not in TERMINAL_JOB:
        stage = Stage.AR if any(image.row.state == WorkState.WAITING for image in images) else Stage.DECODER
    return {
        "id": job.id,
        "object": "job",
        "status": job.status,
        "stage": stage,
        # Of a moment, and so no part of what is kept: the API fills it in.
        "queue": None,
        "progress": _progress(job, images, grids, progress or {}),
        "model": job.model,
        "input": job.input,
        "params": job.params,
        "glyph_texts": _glyph_texts(job),
        "warnings": job.warnings,
        "seed": job.params["seed"],
        "outputs": [_output(job, index, image, grids[image.row.grid_id]) for index, image in enumerate(images)],
        "error": job.error,
        "usage": _usage(job, images, grids),
        "attempts": _attempts(job, images, grids),
        "metadata": job.request_metadata,
        "custom_id": job.custom_id,
        "batch_id": job.batch_id,
        "redecode_of": job.redecode_of,
        "priority": job.priority,
        "deadline": timestamp(job.deadline),
        "approval_deadline": timestamp(job.approval_deadline),
        "created_at": timestamp(job.created_at),
        "started_at": timestamp(job.started_at),
        "completed_at": timestamp(job.completed_at),
        "expires_at": timestamp(job.expires_at),
        "version": job.version,
        "urls": {"self": f"/v1/jobs/{job.id}", **{name: f"/v1/jobs/{job.id}/{name}" for name in ("events", "cancel", "images")}},
    }


def progress_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Of a job's document what its progress is told by, again and again: small, and without links."""
    return {name: document[name] for name in ("id", "object", "status", "stage", "progress", "version")}


def finish_document(document: dict[str, Any], base_url: str, presign: Callable[[str], str]) -> dict[str, Any]:
    """
    Make absolute links, and a presigned URL for every stored result and preview.

    What is no job has neither, nor has a job that was erased: they stay as they are.
    """
    if document["object"] != "job" or "outputs" not in document:
        return document

    def with_url(item: dict[str, Any]) -> dict[str, Any]:
        public = {name: value for name, value in item.items() if name != "storage_key"}
        return {**public, "url": presign(item["storage_key"]) if item["storage_key"] else None}

    # Events of before renditions and previews have none.
    outputs = [
        {**with_url(output), **{name: [with_url(item) for item in output.get(name, [])] for name in ("renditions", "previews")}}
        for output in document["outputs"]
    ]
    return {**document, "outputs": outputs, "urls": {name: base_url + path for name, path in document["urls"].items()}}


def has_image(job: Job, image: Image) -> bool:
    """Does this job have this image? Not what was drawn for other jobs after it ended."""
    return image.state == WorkState.DONE and not _is_late(job, image.finished_at)


def _is_late(job: Job, at: datetime | None) -> bool:
    return at is not None and job.completed_at is not None and at > job.completed_at


def _output(job: Job, index: int, image: JobImage, grid: Grid) -> dict[str, Any]:
    row = image.row
    is_there = has_image(job, row)
    return {
        "id": row.id,
        "index": index,
        "status": _customer_status(job, row),
        "cached": image.is_cached,
        "url": None,
        "storage_key": row.storage_key if is_there else None,
        "width": row.width_px,
        "height": row.height_px,
        "generated_width": TokenGrid(grid.token_h, grid.token_w).width_px,
        "generated_height": TokenGrid(grid.token_h, grid.token_w).height_px,
        "format": row.format,
        "bytes": row.size_bytes if is_there else None,
        "sha256": row.sha256 if is_there else None,
        "seed": row.seed,
        "layout_seed": grid.seed,
        "renditions": [
            _rendition(rendition, row.rendition_files.get(rendition["name"]) if is_there else None) for rendition in row.renditions
        ],
        "previews": _previews(job, row, grid) if job.wants_previews else [],
    }


def _rendition(wanted: dict[str, Any], stored: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "name": wanted["name"],
        "url": None,
        "storage_key": stored and stored["storage_key"],
        "width": wanted["width_px"],
        "height": wanted["height_px"],
        "format": wanted["format"],
        "bytes": stored and stored["size_bytes"],
        "sha256": stored and stored["sha256"],
    }


def _customer_status(job: Job, image: Image) -> JobStatus:
    if has_image(job, image):
        return JobStatus.SUCCEEDED
    if job.status in TERMINAL_JOB:
        return JobStatus(job.status)
    return JobStatus.RUNNING if image.state == WorkState.RUNNING else JobStatus.QUEUED


def _glyph_texts(job: Job) -> list[str]:
    kept: list[str] | None = job.params.get("glyph_texts")
    # Jobs of before it was kept were read by the reference's parser.
    return glyph_texts(job.params["prompt"]) if kept is None else kept


def _previews(job: Job, image: Image, grid: Grid) -> list[dict[str, Any]]:
    entries = [("draft", grid.preview)] if grid.preview else []
    entries += [("x0", entry) for entry in image.previews]
    return [
        {"kind": kind, **{name: entry[name] for name in ("step", "storage_key", "width", "height")}}
        for kind, entry in entries
        if not _is_late(job, datetime.fromisoformat(entry["made_at"]))
    ]


def _came_after(job: Job, unit: Grid | Image) -> bool:
    """Was the unit over before the job came?"""
    return unit.finished_at is not None and unit.finished_at <= job.created_at


def attempt_entry(unit: Grid | Image, state: str, ended_at: datetime | None) -> dict[str, Any]:
    """The newest attempt at a unit; once it is over, `past_attempts` of the unit keeps it in this form."""
    return {
        "attempt": unit.attempt,
        "worker": unit.worker_id,
        "state": state,
        "started_at": timestamp(unit.started_at),
        "finished_at": timestamp(ended_at),
        # Of work that goes on, the row still has the error of an earlier attempt.
        "error": unit.error if state == WorkState.FAILED else None,
    }


def _attempts(job: Job, images: Sequence[JobImage], grids: Mapping[str, Grid]) -> list[dict[str, Any]]:
    drawn = [(index, image.row) for index, image in enumerate(images) if not image.is_cached]
    found: dict[str, tuple[int | None, Grid | Image]] = {image.grid_id: (None, grids[image.grid_id]) for _, image in drawn}
    found.update({image.id: (index, image) for index, image in drawn})
    return [attempt for index, unit in found.values() if unit.attempt for attempt in _attempts_at(job, unit, index)]


def _attempts_at(job: Job, unit: Grid | Image, index: int | None) -> Iterator[dict[str, Any]]:
    """The attempts at a unit that the job waited for, oldest first. `index`: of the image; None: the unit is a grid."""
    which = {"stage": Stage.AR if index is None else Stage.DECODER, "index": index}
    came_at = timestamp(job.created_at) or ""
    for past in unit.past_attempts:
        # Text of one form: it sorts as the times do.
        if past["finished_at"] > came_at:
            yield {**which, **past}
    is_kept = any(past["attempt"] == unit.attempt for past in unit.past_attempts)
    if not is_kept and not _came_after(job, unit):
        yield {**which, **attempt_entry(unit, unit.state, unit.finished_at)}


def _usage(job: Job, images: Sequence[JobImage], grids: Mapping[str, Grid]) -> dict[str, int]:
    """What was really run for this job; work that several jobs waited for counts for each of them."""
    drawn = [image.row for image in images if not image.is_cached]
    done = [image for image in drawn if has_image(job, image)]
    layouts = [grids[grid_id] for grid_id in {image.grid_id for image in drawn}]
    written = [grid for grid in layouts if _was_written(job, grid)]
    return {
        "text_tokens": sum(grid.text_tokens or 0 for grid in written),
        "image_tokens": sum(grid.image_tokens or 0 for grid in written),
        "ar_tokens": sum(_ar_tokens(job, grid) for grid in layouts),
        "decoder_steps": sum(image.steps for image in done),
        "images": len(done),
    }


def _was_written(job: Job, grid: Grid) -> bool:
    """Was the layout written for this job, wholly?"""
    return grid.state == WorkState.DONE and not _came_after(job, grid) and not _is_late(job, grid.finished_at)


def _ar_tokens(job: Job, grid: Grid) -> int:
    totals = _phase_totals(grid)
    if _was_written(job, grid):
        return (grid.num_rejected + 1) * totals["draft"] + totals["grid"]
    if job.approval_s is None:
        return 0
    # Drafts were run, whatever came of them.
    return (grid.num_rejected + (grid.draft_token_ids is not None)) * totals["draft"]


def _phase_totals(grid: Grid) -> dict[str, int]:
    shape = TokenGrid(grid.token_h, grid.token_w)
    return {"draft": shape.num_draft_tokens(len(grid.source_file_ids)), "grid": shape.num_tokens}


def _progress(job: Job, images: Sequence[JobImage], grids: Mapping[str, Grid], live: Mapping[str, Progress]) -> dict[str, Any]:
    """
    The phase of the image that is furthest behind, and how much of that phase all images have done.

    Both only grow within an attempt: a phase ends when the last image leaves it, and an image beyond it counts as having done all of it.
    """
    rows = [image.row for image in images]
    # A job that ended early shows how far those images are that it got, if it got any.
    wanted = [row for row in rows if job.status not in TERMINAL_JOB or has_image(job, row)] or rows
    positions = [_position(job, row, grids[row.grid_id], live) for row in wanted]
    phase = min((position[0] for position in positions), key=PHASES.index)
    done = total = 0
    for image, (own_phase, own_done, own_total) in zip(wanted, positions, strict=True):
        if own_phase == phase:
            done, total = done + own_done, total + own_total
        else:
            beyond = {**_phase_totals(grids[image.grid_id]), "awaiting_approval": 1, "denoise": image.steps, "vae": 1, "upload": 1}[phase]
            done, total = done + beyond, total + beyond
    return {"phase": phase, "done": done, "total": total}


def _position(job: Job, image: Image, grid: Grid, live: Mapping[str, Progress]) -> Progress:
    if has_image(job, image):
        return "upload", 1, 1
    # What goes on for others is not the progress of a job that has ended.
    watched = {WorkState.CANCELED} if job.status in TERMINAL_JOB else WATCHED_WORK
    if image.state in watched and image.id in live:
        return live[image.id]
    if grid.state == WorkState.DONE and not _is_late(job, grid.finished_at):
        return "denoise", 0, image.steps
    if grid.state == WorkState.HELD:
        return "awaiting_approval", 0, 1
    if grid.state in watched and grid.id in live:
        return live[grid.id]
    totals = _phase_totals(grid)
    first = "draft" if totals["draft"] and (grid.needs_approval or grid.draft_token_ids is None) else "grid"
    return first, 0, totals[first]
