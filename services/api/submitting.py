"""
A request becomes a job, whichever dialect it came in: checked, its reference images brought, stored within the caller's limits.

`submit_job` does all of it. Knows no route and no answer.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from flask import g

from services.api.auth import require_fresh
from services.api.field_errors import ErrorCollector, validated
from services.api.idempotency import fingerprint
from services.api.new_job import check_request, new_job, requested_size
from services.api.parts import Parts
from services.api.priority import with_allowed_priority
from services.api.prompt_length import check_prompt_length
from services.api.request_body import RequestBody
from services.api.run_time import check_deadline
from services.api.schemas import JobRequest
from services.api.sources import SourceReader
from services.api.webhooks.callbacks import collect_webhook
from shared.errors import QueueFullError
from shared.lifecycle.idempotency import Idempotency, find_replay
from shared.lifecycle.new_job import NewJob, SourceFile
from shared.lifecycle.submit import may_be_all_new, store
from shared.lifecycle.tenants import Caller
from shared.lifecycle.tries import Try, find_earlier
from shared.states import Stage
from shared.wakeup import RELEASED

SUBMIT_ROUTE = "POST /v1/jobs"
RANDOM_SEEDS = 2**53 - 10
"""How many seeds we draw from. JavaScript reads whole numbers exactly up to 2^53; image 9 adds 9."""


@dataclass(frozen=True)
class Submitted:
    """
    A job that is in the ledger; a replay if the same Idempotency-Key brought it there before.

    `document` is there if the job was written just now, and need not be read again.
    """

    job_id: str
    is_replay: bool
    document: dict[str, Any] | None = None


@dataclass(frozen=True)
class Origin:
    """
    How a request came, and what a dialect says beside the translated body.

    Attributes:
        route: that Idempotency-Keys hold for.
        sent: the body before it was translated: what makes two requests the same.
        try_number: counted by clients that repeat a request by themselves; None: the client does not count.
        arrived_at: by `time.monotonic`.
        dialect: what is kept beside the job, to answer in the dialect's words.
    """

    route: str
    sent: RequestBody
    try_number: int | None = None
    arrived_at: float = 0.0
    dialect: dict[str, Any] | None = None


def submit_job(parts: Parts, caller: Caller, body: RequestBody, idempotency_key: str | None, origin: Origin) -> Submitted:
    """
    Check a request, bring its reference images, and store the job. Nothing is stored if any part is wrong.

    Raises:
        RequestError: names every wrong field; or `idempotency_mismatch`.
        QuotaError: the tenant may not ask for more now.
        NoModelError, BusyError, DatabaseDownError, StorageDownError
        UnsureCallerError: a recalled caller will not do.
    """
    parts.quotas.admit(caller)
    once = client_try = None
    # Before anything is judged: a deadline may have passed since, a source URL may have died.
    if idempotency_key is not None:
        once = Idempotency(origin.route, idempotency_key, fingerprint(origin.route, origin.sent))
        # For a recalled caller nothing is looked up: the write fails if the key was used before.
        earlier = None if caller.is_recalled else find_replay(parts.db, caller.tenant_id, once)
    elif origin.try_number is not None:
        require_fresh(caller)
        client_try = Try(fingerprint(origin.route, origin.sent), origin.try_number)
        earlier = find_earlier(parts.db, caller.tenant_id, client_try)
    else:
        earlier = None
    if earlier is not None:
        return Submitted(earlier, is_replay=True)
    read = read_request(parts, caller, body)
    check_deadline(parts, read.job, len(read.sizes))
    job, sources = read.job, read.store()
    if sources or origin.dialect is not None:
        job = replace(job, sources=sources, dialect=origin.dialect)
    if client_try is not None:
        client_try = replace(client_try, elapsed_s=time.monotonic() - origin.arrived_at)
    return store_job(parts, caller, job, once, client_try)


@dataclass(frozen=True)
class ReadRequest:
    """
    A request that was checked.

    Attributes:
        job: with the hashes of its reference images, but not their ids.
        sizes: height and width of each reference image.
        store: puts what is new of the reference images into the stores; returns them with their ids.
    """

    job: NewJob
    sizes: tuple[tuple[int, int], ...]
    store: Callable[[], tuple[SourceFile, ...]]


def read_request(parts: Parts, caller: Caller, body: RequestBody) -> ReadRequest:
    """
    Check a request, bring its reference images here, and store nothing.

    Raises: as `submit_job`, but for what is about the idempotency key.
    """
    asked = validated(JobRequest, body.fields)
    if asked.images or body.uploads or asked.webhook:
        require_fresh(caller)
    asked = with_allowed_priority(caller, asked)
    info = parts.model.get()
    errors = ErrorCollector()
    check_request(asked, info, len(body.uploads), errors)
    parts.content.check(asked, errors)
    webhook = collect_webhook(parts, caller.tenant_id, asked.webhook, body.fields.get("webhook"), errors)
    errors.raise_any()
    reader = SourceReader(parts, caller.tenant_id, info)
    ready = reader.prepare(asked.images, body.uploads)
    if body.order is not None:
        ready = [ready[index] for index in body.order]
    sizes = tuple((source.height_px, source.width_px) for source in ready)
    sources = tuple(SourceFile("", source.sha256) for source in ready)
    random_seed = secrets.randbelow(RANDOM_SEEDS)
    size = requested_size(asked, info, sizes)
    job = new_job(asked, info, caller.tenant_id, body.fields, size, sources, webhook, random_seed, parts.settings.approval_s)
    check_prompt_length(job, info)
    return ReadRequest(parts.fleet.get().priced(job, sizes), sizes, lambda: reader.store(ready))


def store_job(parts: Parts, caller: Caller, job: NewJob, once: Idempotency | None, client_try: Try | None = None) -> Submitted:
    """
    Store a checked job within the caller's limits, and have its work begin.

    Raises:
        RequestError: `idempotency_mismatch`.
        QuotaError: `queue_full` or `budget_exhausted`.
    """
    if not may_be_all_new(job):
        require_fresh(caller)
    parts.quotas.check_room(caller)
    limits = parts.quotas.limits_of(caller)
    try:
        stored = store(
            parts.db,
            job if g.trace is None else replace(job, trace=g.trace),
            limits,
            once,
            client_try,
            partial(parts.inserts.insert, caller),
        )
    except QueueFullError:
        parts.quotas.note_queued(limits.max_queued)
        raise
    if stored.is_released:
        parts.live.ring(RELEASED[Stage.AR])
    else:
        # A job that was found in parts may have its tokens already.
        parts.ring_for_work((Stage.AR,) if stored.is_all_new else Stage)
    parts.quotas.note_queued(stored.num_queued)
    parts.quotas.warn_caller(caller)
    return Submitted(stored.job_id, stored.is_replay, stored.document)
