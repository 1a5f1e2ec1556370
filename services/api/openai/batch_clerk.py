"""
`python -m services.api.openai.batch_clerk`: reads the lines of batches, makes jobs of them, and writes their results into files.

A process of its own, of the API's code: what a line means is a matter of the interface, and 50,000 of them would hold up every other
request of an API process. One clerk works, others stand by. It keeps nothing in memory that a crash could lose: each step begins with
what the ledger says and may be done again.
"""

from __future__ import annotations

import hashlib
import math
import signal
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import structlog

from services.api.field_errors import InvalidFieldsError
from services.api.loaded_model import NoModelError
from services.api.openai.batch_files import shown_bytes
from services.api.openai.batch_lines import read_lines, translate_line
from services.api.openai.batch_results import Results
from services.api.openai.translate import in_sent_words
from services.api.parts import Parts, make_parts
from services.api.problems import Problem
from services.api.run_time import check_deadline
from services.api.settings import ApiSettings
from services.api.sources import BusyError
from services.api.submitting import read_request
from shared.db import DatabaseDownError, LeaderLock
from shared.errors import QuotaError, RequestError, StartupError
from shared.ids import new_id
from shared.lifecycle import batch_items, batches, files
from shared.lifecycle.batches import BatchDocument
from shared.lifecycle.files import NewFile
from shared.lifecycle.quotas import Limits, OwnLimits, queue_room, read_budget
from shared.lifecycle.submit import NewJob
from shared.lifecycle.tenants import Caller, find_tenant
from shared.logs import configure_logs
from shared.settings import read_settings
from shared.states import BatchStatus
from shared.storage import StorageDownError, StorageMissingError

_LOCK = 0x676C6D71_62617463
"""Advisory lock of the one clerk at work ("glmqbatc")."""
_STANDBY_S = 1.0
_PAUSE_S = 0.5
"""Between two looks while nothing is to be done: batches are bulk work."""
_LINES_AT_ONCE = 200
"""Jobs of one statement: half a second's work, most of it spent on reading the lines."""
_PREPARE_S = 2.0
_RESULTS_AT_ONCE = 500

log = structlog.get_logger()


class Clerk:
    """Works on batches, a little at each of them in turn."""

    def __init__(self, parts: Parts, stopping: threading.Event) -> None:
        self._parts = parts
        self._stopping = stopping

    def work(self) -> bool:
        """
        Take every live batch one step further. False: there was nothing to do.

        Raises:
            DatabaseDownError, StorageDownError
        """
        has_worked = False
        for batch in batches.live_batches(self._parts.db):
            if self._stopping.is_set():
                break
            try:
                has_worked |= self._step(batch)
            except (NoModelError, BusyError) as error:
                log.info("batch_waits", batch_id=batch.id, why=str(error))
            except (DatabaseDownError, StorageDownError):
                raise
            except Exception:  # whatever is wrong with one batch, the others go on, and the next look may find it mended
                log.exception("batch_stumbled", batch_id=batch.id)
        return has_worked

    def _step(self, batch: BatchDocument) -> bool:
        match batch.status:
            case BatchStatus.VALIDATING:
                return self._validate(batch)
            case BatchStatus.RUNNING:
                if batch.expires_at <= datetime.now(UTC) and batch_items.drop_pending(self._parts.db, batch.id, batch_items.EXPIRED):
                    return True
                return self._submit_some(batch) or self._settle(batch)
            case BatchStatus.CANCELING:
                num_dropped = batch_items.drop_pending(self._parts.db, batch.id, batch_items.CANCELED)
                count, stopped = batch_items.cancel_jobs(self._parts.db, batch.id)
                # After commit, or a worker could be told to drop work that is still wanted.
                self._parts.live.flag_stop(stopped)
                return bool(num_dropped or count) or self._settle(batch)
            case _:
                return self._finalize(batch)

    def _validate(self, batch: BatchDocument) -> bool:
        db = self._parts.db
        info = self._parts.model.get()
        file = files.get_file(db, batch.tenant_id, batch.input_file_id)
        try:
            data = None if file is None else self._parts.storage.get(file.storage_key)
        except StorageMissingError:
            data = None
        if data is None:
            error = {"code": "input_file_missing", "line": None, "message": "the input file was deleted", "param": "input_file_id"}
            batches.refuse_batch(db, batch.id, [error])
            return True
        found = read_lines(data, batch.endpoint, info, self._stopping.is_set)
        if found is None:
            return False
        if found.errors:
            batches.refuse_batch(db, batch.id, found.errors)
        else:
            batches.start_batch(db, batch.id, found.items)
        return True

    def _submit_some(self, batch: BatchDocument) -> bool:
        tenant = find_tenant(self._parts.db, tenant_id=batch.tenant_id)
        caller = Caller(batch.tenant_id, "batch", frozenset(), own_limits=tenant.own_limits if tenant else OwnLimits())
        limits = self._parts.quotas.limits_of(caller)
        room = queue_room(self._parts.db, batch.tenant_id, limits)
        # One even where there is no room: what is drawn already needs none.
        count = _LINES_AT_ONCE if room is None else min(_LINES_AT_ONCE, max(1, room))
        pending = batch_items.pending_items(self._parts.db, batch.id, count)
        if not pending:
            return False
        budget = read_budget(self._parts.db, batch.tenant_id, limits)
        left_s = math.inf if budget is None else budget.left_s
        if budget is not None:
            self._parts.quotas.warn(batch.tenant_id, [("gpu_seconds_per_day", budget.most_s - budget.left_s, budget.most_s)])
        if left_s <= 0:
            log.info("batch_waits", batch_id=batch.id, why="budget_exhausted")
            return False
        ready: dict[str, NewJob | dict[str, Any]] = {}
        began = time.monotonic()
        for item in pending:
            # A line may name pictures that take seconds to come: the other batches have their turn in between.
            if self._stopping.is_set() or time.monotonic() - began > _PREPARE_S or left_s <= 0:
                break
            found = ready[item.id] = self._prepare(batch, item.custom_id, item.request)
            if isinstance(found, NewJob):
                left_s -= found.predicted_s()
        return self._submit(batch, ready, limits)

    def _submit(self, batch: BatchDocument, ready: dict[str, NewJob | dict[str, Any]], limits: Limits) -> bool:
        """Make jobs of lines; False: there is no room for more of them in the tenant's queue now."""
        try:
            count = batch_items.submit_items(self._parts.db, batch.id, ready, limits)
        except RequestError as error:
            if len(ready) > 1:
                # Some may have been made.
                self._parts.ring_for_work()
                # One by one: the others are not to suffer for it.
                return all(self._submit(batch, {item_id: job}, limits) for item_id, job in ready.items())
            if isinstance(error, QuotaError):
                log.info("batch_waits", batch_id=batch.id, why=error.code)
                return False
            return self._submit(batch, dict.fromkeys(ready, _error(error, error.param)), limits)
        if count:
            self._parts.ring_for_work()
        return True

    def _prepare(self, batch: BatchDocument, custom_id: str, request: dict[str, Any]) -> NewJob | dict[str, Any]:
        """The job of a line, or why there is none: its picture is gone, its size is not that of the model that is loaded now."""
        parts = self._parts
        caller = Caller(batch.tenant_id, "batch", frozenset({"submit"}))
        try:
            native = translate_line(request, batch.endpoint, parts.model.get())
            try:
                read = read_request(parts, caller, native)
                check_deadline(parts, read.job, len(read.sizes))
            except InvalidFieldsError as error:
                raise in_sent_words(error, native) from None
            job = replace(read.job, sources=read.store(), batch_id=batch.id, custom_id=read.job.custom_id or custom_id)
        except InvalidFieldsError as error:
            return _error(error, f"body.{error.param}")
        except RequestError as error:
            return _error(error, error.param)
        return replace(job, deadline=min(job.deadline or batch.expires_at, batch.expires_at))

    def _settle(self, batch: BatchDocument) -> bool:
        if not batch_items.is_settled(self._parts.db, batch.id):
            return False
        batches.start_finalizing(self._parts.db, batch.id)
        return True

    def _finalize(self, batch: BatchDocument) -> bool:
        results = Results()
        line = 0
        while page := batch_items.outcomes(self._parts.db, batch.id, line, _RESULTS_AT_ONCE):
            for outcome in page:
                results.add(outcome, batch.expires_at)
            line = page[-1].line
            if self._stopping.is_set():
                return False
        status = BatchStatus.COMPLETED
        if batch.canceling_at is not None:
            status = BatchStatus.CANCELED
        elif results.has_expired:
            status = BatchStatus.EXPIRED
        output, error = self._store(batch, "output", bytes(results.output)), self._store(batch, "error", bytes(results.error))
        batches.end_batch(self._parts.db, batch.id, status, output, error, results.usage())
        log.info("batch_ended", batch_id=batch.id, status=status)
        return True

    def _store(self, batch: BatchDocument, kind: str, data: bytes) -> NewFile | None:
        if not data:
            return None
        key = f"t/{batch.tenant_id}/batches/{batch.id}/{kind}.jsonl"
        self._parts.storage.put(key, data, "application/jsonl")
        return NewFile(
            id=new_id("file"),
            tenant_id=batch.tenant_id,
            purpose="batch_output",
            filename=f"{batch.id}_{kind}.jsonl",
            storage_key=key,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=shown_bytes(self._parts, data),
            content_type="application/jsonl",
            expires_s=batch.output_expires_s,
        )


def _error(error: RequestError, param: str | None) -> dict[str, Any]:
    problem = Problem.find(error.code) or Problem.INTERNAL
    return {"code": error.code, "message": error.detail, "param": param, "status": problem.openai_status}


def run(settings: ApiSettings, stopping: threading.Event) -> None:
    """Work while we are the one clerk, until `stopping` is set."""
    parts = make_parts(settings)
    lock = LeaderLock(parts.db, _LOCK)
    clerk = Clerk(parts, stopping)
    while not stopping.is_set():
        try:
            if not lock.is_held():
                stopping.wait(_STANDBY_S)
                continue
            if not clerk.work():
                stopping.wait(_PAUSE_S)
        except (DatabaseDownError, StorageDownError) as error:
            log.warning("store_away", error=type(error).__name__, why=str(error))
            stopping.wait(_STANDBY_S)
        except Exception:  # whatever is wrong with one batch, the next look may find it mended
            log.exception("clerk_stumbled")
            stopping.wait(_STANDBY_S)
    lock.drop()
    parts.close()


def main() -> None:
    """Run until SIGTERM."""
    try:
        settings = read_settings(ApiSettings)
    except StartupError as error:
        sys.exit(f"batch clerk: {error}")
    configure_logs(settings, "batch_clerk")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    run(settings, stopping)


if __name__ == "__main__":
    main()
