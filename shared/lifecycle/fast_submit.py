"""
Jobs whose work is all new, written by one statement outside of a transaction: one trip to Postgres instead of a dozen for each.

Knows rows and tables; `submit.py` makes the rows. Plain INSERTs: where a key is taken (an equal grid or image is there, or the
idempotency key), the tenant has no room for so many jobs, an endpoint wants to hear of them, or a line of a batch has its outcome already,
the statement fails and leaves nothing, and the jobs go the slow way, which finds out why.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from pydantic_core import to_json
from sqlalchemy import inspect

from shared.db import ConstraintError, Database
from shared.ids import new_id
from shared.job_document import JobImage, job_document
from shared.lifecycle.at_once import is_free
from shared.lifecycle.keys import STAMP
from shared.lifecycle.quotas import Limits
from shared.states import Stage
from shared.tables import Base, Grid, Image, Job

Row = TypeVar("Row", bound=Base)

Columns = Mapping[str, Any]
"""Values by the names of a table's columns."""
_ATTRIBUTES = {"metadata": "request_metadata"}
"""Of rows, where they differ from the columns."""

_TAKEN_OR_FULL = ("23505", "23502")
"""A unique key is taken; or `seq` is NULL, because no tenant was updated: it has no room, or other endpoints, or a stamp has changed."""
_WRITTEN = ("grid", "image", "job", "output", "idempotency_key")
"""Tables in the order of their rows' references."""
_QUEUED = "job.queued"


@dataclass(frozen=True)
class NewRows:
    """All rows of a new job but the event. Every image is drawn from one of the grids."""

    job: Columns
    grids: Sequence[Columns]
    images: Sequence[Columns]
    outputs: Sequence[Columns]
    idempotency: Columns | None = None


@dataclass(frozen=True)
class Inserted:
    """
    A job that was written.

    Attributes:
        num_queued: jobs of its tenant that are queued now.
        is_released: workers may claim its grids.
    """

    document: dict[str, Any]
    num_queued: int
    is_released: bool


def insert_new(db: Database, jobs: Sequence[NewRows], limits: Limits, stamps: Collection[tuple[str, str]] = ()) -> list[Inserted | None]:
    """
    Write the rows and the events of new jobs of one tenant; where nothing has to be chosen their work is released at once.

    Args:
        limits: jobs of the tenant that may be queued, these among them. Whose work in hand is limited, for them the dispatcher counts.
        stamps: of callers that were recalled, the id of the key and `Caller.stamp`.
    Returns:
        None for a job of which nothing was written: something of it is there, the tenant's queue is full, or a stamp has changed.
    Raises:
        DatabaseDownError
    """
    documents = [_document(rows) for rows in jobs]
    written = _write(db, jobs, documents, (), limits.max_queued, stamps, may_release=limits.max_running is None)
    if written is None:
        # It is not known which of several stands in the way.
        return [None] if len(jobs) == 1 else [insert_new(db, [rows], limits, stamps)[0] for rows in jobs]
    found = {row.job_id: row for row in written}
    inserted: list[Inserted | None] = []
    for document in documents:
        row = found[document["id"]]
        document["created_at"] = row.created_at
        inserted.append(Inserted(document, row.num_queued, row.is_released))
    return inserted


def insert_lines(db: Database, rows: Mapping[str, NewRows], max_queued: int | None) -> bool:
    """
    The same of many jobs of one tenant, each of which becomes the outcome of a line of a batch: all of them or none.

    Args:
        rows: by the id of the line, in the order in which the jobs are to be numbered.
    Returns:
        False: nothing was written.
    """
    return _write(db, list(rows.values()), [_document(entry) for entry in rows.values()], list(rows), max_queued) is not None


def _write(
    db: Database,
    jobs: Sequence[NewRows],
    documents: Sequence[Mapping[str, Any]],
    item_ids: Sequence[str],
    max_queued: int | None,
    stamps: Collection[tuple[str, str]] = (),
    *,
    may_release: bool = False,
) -> Sequence[Any] | None:
    """A row for each job, as `Inserted` needs it; or None."""
    tenant_id = jobs[0].job["tenant_id"]
    given: dict[str, list[Columns]] = {table: [] for table in _WRITTEN}
    for rows in jobs:
        given["grid"] += rows.grids
        given["image"] += rows.images
        given["job"].append(rows.job)
        given["output"] += rows.outputs
        given["idempotency_key"] += [] if rows.idempotency is None else [rows.idempotency]
    statement = _statement(tuple((table, tuple(entries[0])) for table, entries in given.items() if entries), bool(item_ids), bool(stamps))
    job_ids = [rows.job["id"] for rows in jobs]
    given["item"] = [{"id": item_id, "job_id": job_id} for item_id, job_id in zip(item_ids, job_ids, strict=False)]
    given["event"] = [
        {"id": new_id("evt"), "job_id": job_id, "position": position, "data": document}
        for position, (job_id, document) in enumerate(zip(job_ids, documents, strict=True), 1)
    ]
    # One value for everything: of fifty and more psycopg would parse the statement anew each time.
    values = {
        "given": to_json(given).decode(),
        "tenant": tenant_id,
        "count": len(jobs),
        "max_queued": max_queued,
        "may_release": may_release,
        "num_grids": len(given["grid"]),
        "keys": [key_id for key_id, _ in stamps],
        "stamps": [stamp for _, stamp in stamps],
    }
    try:
        return db.run_alone(statement, values, (tenant_id, *job_ids))
    except ConstraintError as error:
        if error.sqlstate in _TAKEN_OR_FULL:
            return None
        raise


def _document(rows: NewRows) -> dict[str, Any]:
    """The job as it will be read, but for the time at which Postgres writes it."""
    columns = {_ATTRIBUTES.get(name, name): _as_read(value) for name, value in rows.job.items()}
    job = _row(Job, columns, version=1, created_at=datetime.now(UTC))
    grids = {grid["id"]: _row(Grid, grid, attempt=0, num_rejected=0) for grid in rows.grids}
    images = [JobImage(_row(Image, image, attempt=0, previews=[], rendition_files={}), is_cached=False) for image in rows.images]
    return job_document(job, images, grids)


def _row(kind: type[Row], columns: Columns, **defaults: Any) -> Row:
    """What a document needs to see of a row. Not one of SQLAlchemy's, which watch every attribute and cost twenty times as much."""
    return cast(Row, SimpleNamespace(**{**_nothing(kind), **defaults, **columns}))


@functools.cache
def _nothing(kind: type[Base]) -> dict[str, None]:
    return dict.fromkeys(attribute.key for attribute in inspect(kind).column_attrs)


def _as_read(value: Any) -> Any:
    """JSON as Postgres gives it back: its keys in another order. Whoever reads the job gets the same bytes as whoever submitted it."""
    if isinstance(value, dict):
        return {key: _as_read(value[key]) for key in sorted(value, key=_jsonb_order)}
    return [_as_read(item) for item in value] if isinstance(value, list) else value


def _jsonb_order(key: str) -> tuple[int, bytes]:
    encoded = key.encode()
    return len(encoded), encoded


@functools.lru_cache(maxsize=256)
def _statement(written: tuple[tuple[str, tuple[str, ...]], ...], has_items: bool, has_stamps: bool) -> str:
    """The SQL for rows of these tables with these columns. One shape or two occur, and each is prepared once per connection."""
    inserts = ", ".join(_insert(table, names) for table, names in written)
    # After all of them: a tenant's row comes last in the order of locks, and is held for the shortest time.
    after = " + ".join(f"(SELECT count(*) FROM new_{table})" for table, _ in written)  # noqa: S608 - our own names, here and below
    return f"""
        WITH given AS (SELECT %(given)s::jsonb AS rows),
        free AS MATERIALIZED (
            SELECT CASE WHEN %(may_release)s::boolean THEN {is_free(Stage.AR, "%(num_grids)s::bigint")} ELSE false END AS is_free
        ),
        {inserts},
        {_TAKE_LINES if has_items else ""}
        numbered AS (
            UPDATE tenant SET event_seq = event_seq + %(count)s::bigint, num_queued = num_queued + %(count)s::bigint
            FROM (SELECT {after} AS num_written) AS written
            WHERE id = %(tenant)s AND num_written > 0
                AND (%(max_queued)s::bigint IS NULL OR num_queued + %(count)s::bigint <= %(max_queued)s::bigint)
                {_ALL_LINES if has_items else ""}
                {_ALL_STAMPS if has_stamps else ""}
                -- Endpoints are counted in the tenant's row as it is once it is locked, and looked at as they were when the statement
                -- began: one that was added meanwhile makes the two differ.
                AND num_endpoints = (
                    SELECT count(*) FROM webhook_endpoint
                    WHERE tenant_id = %(tenant)s AND status = 'enabled' AND NOT events && ARRAY['*', 'job.*', '{_QUEUED}']
                )
            RETURNING event_seq, num_queued
        )
        INSERT INTO event (id, tenant_id, seq, job_id, type, data)
        SELECT
            told.id, %(tenant)s, (SELECT event_seq FROM numbered) - %(count)s::bigint + told.position, new_job.id, '{_QUEUED}',
            told.data || jsonb_build_object(
                'created_at', to_char(new_job.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
            )
        FROM given, jsonb_to_recordset(rows->'event') AS told (id text, job_id text, position bigint, data jsonb), new_job
        WHERE new_job.id = told.job_id
        RETURNING
            job_id, data->>'created_at' AS created_at, (SELECT num_queued FROM numbered) AS num_queued,
            (SELECT is_free FROM free) AS is_released
    """  # noqa: S608 - our own names


_TAKE_LINES = """
        taken AS (
            UPDATE batch_item SET job_id = line.job_id
            FROM given, jsonb_to_recordset(rows->'item') AS line (id text, job_id text)
            WHERE batch_item.id = line.id AND batch_item.job_id IS NULL AND batch_item.error IS NULL
            RETURNING 1 AS one
        ),"""
_ALL_STAMPS = f"""
                AND cardinality(%(keys)s::text[]) = (
                    SELECT count(*) FROM unnest(%(keys)s::text[], %(stamps)s::text[]) AS known(id, stamp)
                    JOIN api_key ON api_key.id = known.id JOIN tenant ON tenant.id = api_key.tenant_id WHERE {STAMP} = known.stamp
                )"""  # noqa: S608 - our own names
_ALL_LINES = "AND (SELECT count(*) FROM taken) = %(count)s::bigint"


def _insert(table: str, names: tuple[str, ...]) -> str:
    columns = {f'"{name}"': f'"{name}"' for name in names}
    if table == "grid":
        columns |= {
            '"state"': "CASE WHEN is_free THEN 'released' ELSE state END",
            "released_at": "CASE WHEN is_free THEN statement_timestamp() END",
        }
    returned = "id, created_at" if table == "job" else "1 AS one"
    entries = f"free, jsonb_populate_recordset(NULL::{table}, rows->'{table}')"
    written, values = ", ".join(columns), ", ".join(columns.values())
    return f"new_{table} AS (INSERT INTO {table} ({written}) SELECT {values} FROM given, {entries} RETURNING {returned})"  # noqa: S608 - our own names
