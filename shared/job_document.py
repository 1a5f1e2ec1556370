"""The job as customers see it: rows in, JSON out, one form for the API, the events and the webhooks. Knows no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from shared.grid import TokenGrid
from shared.states import LIVE_WORK, TERMINAL_JOB, JobStatus, Stage, WorkState
from shared.tables import Grid, Image, Job

PHASES = ("draft", "grid", "denoise", "vae", "upload")
"""Phases of progress, in order. Image-to-image has no draft."""

WATCHED_WORK = frozenset({WorkState.RUNNING, WorkState.CANCELED})
"""Work whose live progress counts: canceled work stays where it was stopped."""

Progress = tuple[str, int, int]
"""Phase, done, total."""


def timestamp(at: datetime | None) -> str | None:
    """RFC 3339 in UTC, milliseconds, `Z`."""
    return None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_document(
    job: Job, images: Sequence[Image], grids: Mapping[str, Grid], progress: Mapping[str, Progress] | None = None
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
    running = [image for image in images if image.state in LIVE_WORK]
    stage = None
    if job.status not in TERMINAL_JOB:
        stage = Stage.AR if any(image.state == WorkState.WAITING for image in running) else Stage.DECODER
    units: list[Grid | Image] = [*dict.fromkeys(grids[image.grid_id] for image in images), *images]
    return {
        "id": job.id,
        "object": "job",
        "status": job.status,
        "stage": stage,
        "progress": _progress(images, grids, progress or {}),
        "model": job.model,
        "input": job.input,
        "params": job.params,
        "seed": job.params["seed"],
        "outputs": [_output(image, grids[image.grid_id]) for image in images],
        "error": job.error,
        "usage": _usage(images, grids),
        "attempts": [_attempt(unit) for unit in units if unit.attempt],
        "metadata": job.request_metadata,
        "custom_id": job.custom_id,
        "batch_id": job.batch_id,
        "priority": job.priority,
        "deadline": timestamp(job.deadline),
        "created_at": timestamp(job.created_at),
        "started_at": timestamp(job.started_at),
        "completed_at": timestamp(job.completed_at),
        "version": job.version,
        "urls": {"self": f"/v1/jobs/{job.id}", "cancel": f"/v1/jobs/{job.id}/cancel", "images": f"/v1/jobs/{job.id}/images"},
    }


def finish_document(document: dict[str, Any], base_url: str, presign: Callable[[str], str]) -> dict[str, Any]:
    """Make absolute links, and a presigned URL for every stored result."""
    outputs = []
    for output in document["outputs"]:
        key = output["storage_key"]
        public = {name: value for name, value in output.items() if name != "storage_key"}
        outputs.append({**public, "url": presign(key) if key else None})
    return {**document, "outputs": outputs, "urls": {name: base_url + path for name, path in document["urls"].items()}}


def _output(image: Image, grid: Grid) -> dict[str, Any]:
    return {
        "id": image.id,
        "index": image.index,
        "status": _customer_status(image),
        "url": None,
        "storage_key": image.storage_key if image.state == WorkState.DONE else None,
        "width": image.width_px,
        "height": image.height_px,
        "generated_width": TokenGrid(grid.token_h, grid.token_w).width_px,
        "generated_height": TokenGrid(grid.token_h, grid.token_w).height_px,
        "format": image.format,
        "bytes": image.size_bytes,
        "sha256": image.sha256,
        "seed": image.seed,
        "layout_seed": grid.seed,
    }


def _customer_status(image: Image) -> JobStatus:
    match WorkState(image.state):
        case WorkState.DONE:
            return JobStatus.SUCCEEDED
        case WorkState.FAILED:
            return JobStatus.FAILED
        case WorkState.CANCELED:
            return JobStatus.CANCELED
        case WorkState.RUNNING:
            return JobStatus.RUNNING
        case _:
            return JobStatus.QUEUED


def _attempt(unit: Grid | Image) -> dict[str, Any]:
    return {
        "stage": Stage.AR if isinstance(unit, Grid) else Stage.DECODER,
        "index": None if isinstance(unit, Grid) else unit.index,
        "attempt": unit.attempt,
        "state": unit.state,
        "started_at": timestamp(unit.started_at),
        "finished_at": timestamp(unit.finished_at),
        "error": unit.error,
    }


def _usage(images: Sequence[Image], grids: Mapping[str, Grid]) -> dict[str, int]:
    """What was really run for this job; a shared grid counts for each job that uses it."""
    done = {image.grid_id for image in images if grids[image.grid_id].state == WorkState.DONE}
    return {
        "ar_tokens": sum(_ar_tokens(grids[grid_id]) for grid_id in done),
        "decoder_steps": sum(image.steps for image in images if image.state == WorkState.DONE),
        "images": sum(image.state == WorkState.DONE for image in images),
    }


def _ar_tokens(grid: Grid) -> int:
    return _phase_totals(grid)["draft"] + _phase_totals(grid)["grid"]


def _phase_totals(grid: Grid) -> dict[str, int]:
    shape = TokenGrid(grid.token_h, grid.token_w)
    return {"draft": shape.num_draft_tokens(len(grid.source_file_ids)), "grid": shape.num_tokens}


def _progress(images: Sequence[Image], grids: Mapping[str, Grid], live: Mapping[str, Progress]) -> dict[str, Any]:
    """
    The phase of the image that is furthest behind, and how much of that phase all images have done.

    Both only grow within an attempt: a phase ends when the last image leaves it, and an image beyond it counts as having done all of it.
    """
    wanted = [image for image in images if image.state not in (WorkState.FAILED, WorkState.CANCELED)] or images
    positions = [_position(image, grids[image.grid_id], live) for image in wanted]
    phase = min((position[0] for position in positions), key=PHASES.index)
    done = total = 0
    for image, (own_phase, own_done, own_total) in zip(wanted, positions, strict=True):
        if own_phase == phase:
            done, total = done + own_done, total + own_total
        else:
            beyond = {**_phase_totals(grids[image.grid_id]), "denoise": image.steps, "vae": 1, "upload": 1}[phase]
            done, total = done + beyond, total + beyond
    return {"phase": phase, "done": done, "total": total}


def _position(image: Image, grid: Grid, live: Mapping[str, Progress]) -> Progress:
    if image.state == WorkState.DONE:
        return "upload", 1, 1
    if image.state in WATCHED_WORK and image.id in live:
        return live[image.id]
    if grid.state == WorkState.DONE:
        return "denoise", 0, image.steps
    if grid.state in WATCHED_WORK and grid.id in live:
        return live[grid.id]
    totals = _phase_totals(grid)
    first = "draft" if totals["draft"] else "grid"
    return first, 0, totals[first]
