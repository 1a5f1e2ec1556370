"""The rows of a new job: what decides its grids and images, and under what keys others find them. Knows no transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.ids import new_id
from shared.lifecycle.fast_submit import NewRows
from shared.lifecycle.idempotency import Idempotency, key_columns
from shared.lifecycle.new_job import NUM_SEEDS, NewJob
from shared.lifecycle.reuse import Cache, Found, grid_key, image_key
from shared.lora import lora_to_json
from shared.states import JobStatus, Priority, WorkState


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


def grid_columns(new: NewJob, layout: Layout) -> dict[str, Any]:
    """The grid of a layout, with its key; ready to be written."""
    return {
        "tenant_id": new.tenant_id,
        "key": layout.key,
        "state": WorkState.READY,
        "lane": lane_of(new),
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


def new_image_columns(new: NewJob, layout: Layout, index: int) -> dict[str, Any]:
    """Image `index`, without its grid and its state."""
    return image_columns(new, layout, index) | {
        "lane": lane_of(new),
        "cost_s": new.image_cost_s,
        "deadline": new.deadline,
        "trace": new.trace and new.trace.headers(),
    }


def lane_of(new: NewJob) -> int:
    """The lane of the work: 0 is the most urgent one."""
    return list(Priority).index(new.priority)


def fresh_rows(new: NewJob, job_id: str, idempotency: Idempotency | None) -> NewRows:
    """The rows of a job that shares nothing with another one."""
    # A grid that waits for one customer's word must not hold up another job.
    layouts = new_layouts(new, job_id if new.approval_s is not None else "")
    grids = {layout.seed: {"id": new_id("tok"), **grid_columns(new, layout)} for layout in layouts}
    images = [
        {"id": new_id("img"), **new_image_columns(new, layout, index), "grid_id": grids[layout.seed]["id"], "state": WorkState.WAITING}
        for index, layout in enumerate(layouts)
    ]
    outputs = [{"job_id": job_id, "index": index, "image_id": image["id"], "is_cached": False} for index, image in enumerate(images)]
    once = None if idempotency is None else key_columns(new.tenant_id, job_id, idempotency)
    columns = job_columns(new, job_id)
    columns["metadata"] = columns.pop("request_metadata")
    return NewRows(columns, list(grids.values()), images, outputs, once)


def job_columns(new: NewJob, job_id: str) -> dict[str, Any]:
    """The job itself, by the names of the row's attributes."""
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
