"""
Lines of batches become jobs, and jobs that failed another run, as far as their tenants' limits go.

Knows no step of a batch (`batch_clerk.py`).
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from typing import Any

import structlog

from services.api.batch_answers import JOBS
from services.api.field_errors import InvalidFieldsError
from services.api.openai.batch_lines import translate_line
from services.api.openai.translate import in_sent_words
from services.api.parts import Parts
from services.api.problem_catalogue import Problem
from services.api.request_body import RequestBody
from services.api.run_time import check_deadline
from services.api.submitting import read_request
from shared.errors import QuotaError, RequestError
from shared.lifecycle import batch_items
from shared.lifecycle.batch_values import BatchDocument
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.quotas import Limits, OwnLimits, queue_room, read_budget
from shared.lifecycle.retry import retry
from shared.lifecycle.tenants import Caller, find_tenant

_LINES_AT_ONCE = 200
"""Jobs of one statement: half a second's work, most of it spent on reading the lines."""
_PREPARE_S = 2.0

log = structlog.get_logger()


class Submitter:
    """Takes batches a little further each time."""

    def __init__(self, parts: Parts, stopping: threading.Event) -> None:
        self._parts = parts
        self._stopping = stopping

    def go_on(self, batch: BatchDocument, failed: list[str]) -> bool:
        """
        Make jobs of some lines, or begin another run of some. False: there is nothing to do, or not now.

        Args:
            failed: ids of jobs that are to run once more; they come before lines that have none.
        """
        tenant = find_tenant(self._parts.db, batch.tenant_id)
        caller = Caller(batch.tenant_id, "batch", frozenset(), own_limits=tenant.own_limits if tenant else OwnLimits())
        limits = self._parts.quotas.limits_of(caller)
        room = queue_room(self._parts.db, batch.tenant_id, limits)
        # One line even where there is no room: what is drawn already needs none.
        count = _LINES_AT_ONCE if room is None else min(_LINES_AT_ONCE, max(1, room))
        pending = [] if failed else batch_items.pending_items(self._parts.db, batch.id, count)
        if not pending and not failed:
            return False
        budget = read_budget(self._parts.db, batch.tenant_id, limits)
        left_s = math.inf if budget is None else budget.left_s
        if budget is not None:
            self._parts.quotas.warn(batch.tenant_id, [("gpu_seconds_per_day", budget.most_s - budget.left_s, budget.most_s)])
        if left_s <= 0:
            log.info("batch_waits", batch_id=batch.id, why="budget_exhausted")
            return False
        if failed:
            return self._retry(batch, failed if room is None else failed[: max(0, room)])
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

    def _retry(self, batch: BatchDocument, job_ids: list[str]) -> bool:
        is_any_retried = False
        for job_id in job_ids:
            if self._stopping.is_set():
                break
            try:
                retried = retry(self._parts.db, batch.tenant_id, job_id, batch.expires_at)
            except RequestError as error:
                # Its owner was quicker, who retried it or erased it: it is not found again.
                log.info("not_retried", batch_id=batch.id, job_id=job_id, why=error.code)
                continue
            is_any_retried = True
            # Before anybody is told that there is work: a worker would take the old flag for a new one.
            self._parts.live.clear_stops(retried.work_ids if retried else ())
            self._parts.ring_for_work()
        return is_any_retried

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
            native = self._native(batch, request)
            try:
                read = read_request(parts, caller, native)
                check_deadline(parts, read.job, len(read.sizes))
            except InvalidFieldsError as error:
                raise error if batch.input_file_id is None else in_sent_words(error, native) from None
            job = replace(read.job, sources=read.store(), batch_id=batch.id, custom_id=read.job.custom_id or custom_id)
        except InvalidFieldsError as error:
            return _error(error, error.param if batch.input_file_id is None else f"body.{error.param}")
        except RequestError as error:
            return _error(error, error.param)
        return replace(job, deadline=min(job.deadline or batch.expires_at, batch.expires_at))

    def _native(self, batch: BatchDocument, request: dict[str, Any]) -> RequestBody:
        """What a line asks for: of a native batch, what stands there."""
        return RequestBody(request) if batch.endpoint == JOBS else translate_line(request, batch.endpoint, self._parts.model.get())


def _error(error: RequestError, param: str | None) -> dict[str, Any]:
    problem = Problem.find(error.code) or Problem.INTERNAL
    return {"code": error.code, "message": error.detail, "param": param, "status": problem.openai_status, "retryable": problem.retryable}
