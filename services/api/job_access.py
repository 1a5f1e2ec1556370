"""What every dialect does with a job that is there: find it, wait for it, cancel it, erase it. Knows no route and no answer."""

from __future__ import annotations

from typing import Any

from services.api.parts import Parts
from services.api.waiting import has_ended
from shared.errors import RequestError
from shared.ids import is_id
from shared.lifecycle.erasing import erase
from shared.lifecycle.jobs import cancel, get_job
from shared.lifecycle.tenants import Caller


def find_job(parts: Parts, caller: Caller, job_id: str) -> dict[str, Any]:
    """
    The job's document, with storage keys instead of URLs.

    Raises:
        RequestError: `not_found`: malformed, unknown and foreign ids are not told apart.
    """
    document = get_job(parts.db, caller.tenant_id, job_id, parts.live.read_progress) if is_id(job_id, "job") else None
    if document is None:
        raise RequestError("not_found", "there is no such job")
    return document


def wait_for_job(parts: Parts, caller: Caller, job_id: str, timeout_s: float) -> dict[str, Any]:
    """
    The job's document once it has ended, or as it is after `timeout_s`.

    Raises:
        RequestError: as `find_job`.
        NoPlaceError: it has not ended yet, and too many requests wait already.
    """
    return parts.waiting.wait_until(caller.tenant_id, job_id, lambda: find_job(parts, caller, job_id), has_ended, timeout_s)


def cancel_job(parts: Parts, caller: Caller, job_id: str) -> None:
    """
    Cancel a job, if the caller has one of this id.

    Raises:
        RequestError: `already_terminal`.
    """
    stopped = cancel(parts.db, caller.tenant_id, job_id) if is_id(job_id, "job") else None
    # After commit, or a worker could be told to drop work that is still wanted. Without Redis it hears at its next heartbeat.
    parts.live.flag_stop(stopped or [])


def erase_job(parts: Parts, caller: Caller, job_id: str) -> None:
    """
    Erase a job of the caller's, after it is canceled if it is not over.

    Raises:
        RequestError: `not_found`.
    """
    erased = erase(parts.db, caller.tenant_id, job_id) if is_id(job_id, "job") else None
    if erased is None:
        raise RequestError("not_found", "there is no such job")
    # After commit, as a cancel does. Without Redis workers hear at their next heartbeat, and what is cached ends by itself.
    parts.live.flag_stop(erased.stopped)
    parts.live.forget(erased.work_ids, erased.grid_hashes)
