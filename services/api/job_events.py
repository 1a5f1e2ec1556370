"""What event streams say: a job's state and then its events, or a tenant's events. Knows the order; knows no HTTP."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from services.api.job_access import find_job
from services.api.parts import Parts
from services.api.sse import HEARTBEAT, Frames, event_bytes
from services.api.waiting import Watch
from shared.job_document import finish_document, progress_document, timestamp
from shared.lifecycle.events import JOB_ENDS, JOB_PROGRESS
from shared.lifecycle.feed import StoredEvent, kept_events, last_event, read_events, work_ids
from shared.lifecycle.tenants import Caller
from shared.states import TERMINAL_JOB
from shared.webhooks import API_VERSION, event_object

PROGRESS_S = 0.5
"""Between two words of a job's progress."""
_PAGE = 50


def public_event(parts: Parts, base_url: str, event: StoredEvent) -> dict[str, Any]:
    """An event as customers see it, with URLs made now."""
    data = finish_document(event.data, base_url, parts.storage.presign)
    return event_object(event.id, event.type, event.created_at, event.seq, data)


class ProgressWatch:
    """Has a worker said something about a job? Asks Redis alone, at most every `PROGRESS_S`."""

    def __init__(self, parts: Parts, caller: Caller, job_id: str) -> None:
        self._parts = parts
        self._caller = caller
        self._job_id = job_id
        self._work_ids: list[str] = []
        self._said: dict[str, Any] = {}
        self._asked_at = float("-inf")

    def renew(self) -> None:
        """Find out what is drawn for the job: a retry may have changed it."""
        self._work_ids = work_ids(self._parts.db, self._caller.tenant_id, self._job_id)

    def has_moved(self) -> bool:
        """Is there another word than at the last call?"""
        if not self._work_ids or time.monotonic() - self._asked_at < PROGRESS_S:
            return False
        self._asked_at = time.monotonic()
        said = dict(self._parts.live.read_progress(self._work_ids))
        has_moved = said != self._said
        self._said = said
        return has_moved


class JobEvents:
    """
    The stream of one job: the job as it is, then every event after the cursor, and between them how far it is; it ends with the job.

    The cursor is read before the job: what happens between the two is told twice, never not at all. Clients drop the older one of two
    states by `version`.
    """

    def __init__(
        self,
        parts: Parts,
        caller: Caller,
        job_id: str,
        base_url: str,
        cursor: int | None,
        is_lost: bool,
        types: tuple[str, ...],
        tells_progress: bool,
    ) -> None:
        """
        Args:
            cursor: number of the last event that the client knows; None: it begins with what happens from now on.
            is_lost: the client named a cursor that we do not know: it is told to forget what it has.
            types: of the events to tell; none for all. The end is always told.
            tells_progress: between them, how far the job is.
        """
        self._parts = parts
        self._caller = caller
        self._job_id = job_id
        self._base_url = base_url
        self._cursor = cursor
        self._is_lost = is_lost
        self._types = types and tuple({*types, *JOB_ENDS})
        self._tells_progress = tells_progress
        self._progress: dict[str, Any] | None = None
        self._watched = ProgressWatch(parts, caller, job_id)

    def frames(self, watch: Watch) -> Frames:
        """What there is to send, and None whenever there is nothing more."""
        cursor = self._start() if self._cursor is None else self._cursor
        document = find_job(self._parts, self._caller, self._job_id)
        self._progress = document["progress"]
        end = last_event(self._parts.db, self._caller.tenant_id, self._job_id, ends_only=True)
        if document["status"] in TERMINAL_JOB and not end:
            # It ended so long ago that its events are not kept any more. With a number to come back with, and be told that it is over.
            yield self._snapshot(document, cursor, kept_events(self._parts.db, self._caller.tenant_id).newest)
            return
        yield self._snapshot(document, cursor)
        looked_at = float("-inf")
        while True:
            if watch.take() or time.monotonic() - looked_at >= self._parts.waiting.look_s():
                looked_at = time.monotonic()
                if self._tells_progress:
                    self._watched.renew()
                has_more = True
                while has_more:
                    page = read_events(self._parts.db, self._caller.tenant_id, cursor, _PAGE, self._types, self._job_id)
                    for event in page.events:
                        yield event_bytes(event.type, public_event(self._parts, self._base_url, event), event.seq)
                        # Not the end of an earlier run: a job that was retried goes on.
                        if event.type in JOB_ENDS and event.seq >= end and self._is_over():
                            return
                    cursor, has_more = page.looked_to, page.has_more
            if self._tells_progress and (moved := self._moved()) is not None:
                yield moved
            yield None

    def _start(self) -> int:
        """Where a client begins that knows nothing. It is told of an end that was before it came: with its id, it need not come again."""
        end = last_event(self._parts.db, self._caller.tenant_id, self._job_id, ends_only=True)
        newest = last_event(self._parts.db, self._caller.tenant_id, self._job_id)
        return end - 1 if end == newest else newest

    def _is_over(self) -> bool:
        return find_job(self._parts, self._caller, self._job_id)["status"] in TERMINAL_JOB

    def _snapshot(self, document: dict[str, Any], cursor: int, event_id: int | None = None) -> bytes:
        kind = "stream.reset" if self._is_lost else "job.snapshot"
        data = finish_document(document, self._base_url, self._parts.storage.presign)
        return event_bytes(kind, _passing(kind, cursor, data), event_id, is_first=True)

    def _moved(self) -> bytes | None:
        """The job's progress, if it is another one than was told last."""
        if not self._watched.has_moved():
            return None
        document = find_job(self._parts, self._caller, self._job_id)
        if document["progress"] == self._progress or document["status"] in TERMINAL_JOB:
            return None
        self._progress = document["progress"]
        return event_bytes(JOB_PROGRESS, _passing(JOB_PROGRESS, None, progress_document(document)))


class TenantEvents:
    """The stream of a tenant: every event after the cursor, without end."""

    def __init__(self, parts: Parts, caller: Caller, base_url: str, cursor: int, is_lost: bool, types: tuple[str, ...]) -> None:
        """
        Args:
            is_lost: the client named a cursor that we do not know: it has missed something, and goes on with the oldest event there is.
        """
        self._parts = parts
        self._caller = caller
        self._base_url = base_url
        self._cursor = cursor
        self._is_lost = is_lost
        self._types = types

    def frames(self, watch: Watch) -> Frames:
        """What there is to send, and None whenever there is nothing more."""
        is_first = not self._is_lost
        if self._is_lost:
            kept = kept_events(self._parts.db, self._caller.tenant_id)
            numbers = {"oldest_seq": kept.oldest, "newest_seq": kept.newest}
            yield event_bytes("stream.reset", _passing("stream.reset", self._cursor, numbers), is_first=True)
        else:
            # So that the client hears at once that it is connected.
            yield HEARTBEAT
        looked_at = float("-inf")
        cursor = self._cursor
        while True:
            if watch.take() or time.monotonic() - looked_at >= self._parts.waiting.look_s():
                looked_at = time.monotonic()
                has_more = True
                while has_more:
                    page = read_events(self._parts.db, self._caller.tenant_id, cursor, _PAGE, self._types)
                    for event in page.events:
                        yield event_bytes(event.type, public_event(self._parts, self._base_url, event), event.seq, is_first)
                        is_first = False
                    cursor, has_more = page.looked_to, page.has_more
            yield None


def _passing(kind: str, seq: int | None, data: dict[str, Any]) -> dict[str, Any]:
    """Something that is said and not kept. `seq`: up to where it includes what is kept."""
    now = datetime.now(UTC)
    event = {"object": "event", "type": kind, "timestamp": timestamp(now), "created_at": int(now.timestamp())}
    return {**event, "seq": seq, "api_version": API_VERSION, "data": data}
