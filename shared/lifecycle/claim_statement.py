"""The SQL by which a worker takes a unit of work, and reads all that it has to know of it."""

from __future__ import annotations

import functools

from shared.lifecycle.workers import ALIVE_S
from shared.states import LIVE_WORK, Priority, Stage

_HEAD_START_S = 10
"""
Seconds by which work is claimed before what was released earlier, in the next lane. Two lanes' worth of it is well below `work.RELEASE_S`:
what is released in its turn is claimed before it would be taken back.
"""


@functools.cache
def claim_statement(table: str, is_any: bool, is_choosy: bool) -> str:
    """One trip: the conditional UPDATE, and all that a worker reads of the unit, its grid, its sources and its jobs."""
    made_for = "grid.model_revision" if table == "grid" else "(SELECT model_revision FROM grid WHERE grid.id = image.grid_id)"
    is_mine = f"AND {_is_for_me(table, made_for)}" if is_choosy else ""
    released = f"FROM {table} WHERE state = 'released' {is_mine}"
    which = _next_released(released) if is_any else f"SELECT id {released} AND id = %(unit)s LIMIT 1 FOR UPDATE SKIP LOCKED"
    if table == "grid":
        shown = "claimed.*, claimed.source_file_ids AS named"
        grid = ""
        of_grid = "SELECT output.job_id FROM output JOIN image ON image.id = output.image_id WHERE image.grid_id = shown.id"
        waiting = f"{of_grid} AND image.state IN ({_LIVE})"
    else:
        shown = """
            claimed.*, grid.prompt, grid.glyph_texts, grid.token_h, grid.token_w, grid.model_revision, grid.lora,
            grid.storage_key AS grid_key, grid.sha256 AS grid_sha256, grid.size_bytes AS grid_bytes, grid.source_file_ids AS named
        """
        grid = "JOIN grid ON grid.id = claimed.grid_id"
        waiting = "SELECT output.job_id FROM output WHERE output.image_id = shown.id"
    # The scalar subquery is computed once, and with it the limit holds.
    return f"""
        WITH claimed AS (
            UPDATE {table}
            SET state = 'running', attempt = attempt + 1, worker_id = %(holder)s, lease_until = clock_timestamp() + %(lease)s,
                released_at = NULL, started_at = clock_timestamp()
            WHERE id = ({which})
            RETURNING *
        ), shown AS (SELECT {shown} FROM claimed {grid})
        SELECT
            shown.*,
            (
                SELECT jsonb_agg(jsonb_build_array(job.id, job.status = 'queued', job.wants_previews) ORDER BY job.id)
                FROM job WHERE job.status IN ('queued', 'running') AND job.id IN ({waiting})
            ) AS jobs,
            (
                SELECT jsonb_agg(jsonb_build_array(file.storage_key, file.sha256) ORDER BY place)
                FROM unnest(shown.named) WITH ORDINALITY AS source(id, place) JOIN file ON file.id = source.id
            ) AS sources
        FROM shown
    """  # noqa: S608 - our own names


def _next_released(released: str) -> str:
    """
    SQL: the unit that a free slot takes: the first of the lane whose turn it is. If others are taking that, the first that nobody takes.

    Each lane's first is looked at by index and unlocked; one order over all lanes would be a sort of everything that is released.
    """
    oldest_first = "ORDER BY released_at, created_at, id LIMIT 1"
    lanes = ", ".join(f"({lane})" for lane in range(len(Priority)))
    return f"""
        SELECT COALESCE((
            SELECT id {released} AND lane = (
                SELECT lanes.lane FROM (VALUES {lanes}) AS lanes (lane)
                CROSS JOIN LATERAL (SELECT released_at {released} AND lane = lanes.lane {oldest_first}) AS head
                ORDER BY head.released_at + lanes.lane * interval '{_HEAD_START_S} s' LIMIT 1
            ) {oldest_first} FOR UPDATE SKIP LOCKED
        ), (
            SELECT id {released} ORDER BY lane, released_at, created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED
        ))
    """  # noqa: S608 - our own names


def _is_for_me(table: str, made_for: str) -> str:
    """SQL: the unit is for workers of this revision, or no live worker is of the one that it is for."""
    stage = Stage.AR if table == "grid" else Stage.DECODER
    live = f"SELECT FROM worker WHERE stage = '{stage}' AND stopped_at IS NULL AND seen_at > clock_timestamp() - interval '{ALIVE_S} s'"
    # First what is asked once for all rows: hardly ever do workers of several revisions live.
    return f"""(
        NOT EXISTS ({live} AND model->>'revision' <> %(revision)s)
        OR {made_for} = %(revision)s
        OR NOT EXISTS ({live} AND model->>'revision' = {made_for})
    )"""


_LIVE = ", ".join(f"'{state}'" for state in sorted(LIVE_WORK))
