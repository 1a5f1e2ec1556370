"""
Requests that are held until their job has ended, and streams that show it on its way. Events of these streams have no `id:` and no
`retry:`, ever: openai-python takes a frame that has those and no data for an event, and fails on it.

The job is in the ledger before the wait begins: whatever becomes of the connection, it goes on, and can be asked for by its id.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from flask import Request, Response, jsonify, request, stream_with_context

from services.api.job_access import find_job
from services.api.openai.answers import Document, error_member
from services.api.parts import Parts
from services.api.problems import problem_response
from services.api.sse import HEARTBEAT, MEDIA_TYPE, event_bytes, stream_response
from services.api.unfinished import UnfinishedError
from services.api.waiting import NoPlaceError
from shared.db import DatabaseDownError
from shared.errors import RequestError
from shared.lifecycle.tenants import Caller
from shared.lifecycle.tries import note_answer
from shared.states import TERMINAL_JOB
from shared.storage import StorageDownError, StorageMissingError

_LOOK_UP_S = 2.0
"""How often a request that waits looks whether its client is still there."""

log = structlog.get_logger()

_SPACE = b" "


def watch_job(parts: Parts, caller: Caller, job_id: str, timeout_s: float, pause_s: float) -> Iterator[Document | None]:
    """
    The job now and after each of its changes, until it has ended, the time is up or the process ends; None when nothing came for `pause_s`.

    Raises:
        RequestError: `not_found`, it was erased meanwhile.
        DatabaseDownError
    """
    give_up_at = time.monotonic() + timeout_s
    seen = 0
    with parts.waiting.watch(job_id) as watch:
        goes_on = True
        while True:
            watch.take()
            with parts.waiting.turn():
                document = find_job(parts, caller, job_id)
            left_s = give_up_at - time.monotonic()
            yield document if document["version"] > seen else None
            seen = document["version"]
            if document["status"] in TERMINAL_JOB or left_s <= 0 or not goes_on:
                return
            goes_on = watch.wait(min(pause_s, left_s))


def hold(parts: Parts, caller: Caller, job_id: str, place: Place, answer: Callable[[Document], dict[str, Any]]) -> Response:
    """
    What a request is answered that waits for a job to end.

    Where the operator wants requests kept alive (`sync_keep_alive_s`), one that waits longer is sent 200 and a space, more spaces, and then
    its JSON. Until the first space every status is a true one.

    Args:
        answer: makes the body of the job that has ended; may raise what is wrong with it.
    Raises: as `watch_job` and `answer`; and
        UnfinishedError: the time was up first, or the client went away.
        NoPlaceError: the process ends; the request may be repeated.
    """
    settings = parts.settings
    is_kept_alive = 0 < settings.sync_keep_alive_s < settings.sync_max_s
    last, is_there = _wait(parts, caller, job_id, settings.sync_keep_alive_s if is_kept_alive else settings.sync_max_s)
    if last["status"] in TERMINAL_JOB:
        note_answer(parts.db, job_id)
        return jsonify(answer(last))
    if is_kept_alive and is_there and not parts.waiting.is_closed:
        # With the request's context: a problem says which request it was.
        return place.stream(stream_with_context(_kept_alive(parts, caller, job_id, answer)), "application/json")
    raise _cut_short(parts, job_id)


def _wait(parts: Parts, caller: Caller, job_id: str, timeout_s: float) -> tuple[Document, bool]:
    """The job, if it can be as it has ended; and whether its client is still there."""
    last: Document = {}
    for document in watch_job(parts, caller, job_id, timeout_s, _LOOK_UP_S):
        last = document or last
        if document is None and _is_gone(request):
            log.info("client_gone", job_id=job_id)
            return last, False
    return last, True


def _kept_alive(parts: Parts, caller: Caller, job_id: str, answer: Callable[[Document], dict[str, Any]]) -> Iterator[bytes]:
    """Spaces until the job has ended, and the answer. What goes wrong is a problem with its own `status`: the 200 is long gone."""
    pause_s = parts.settings.sync_keep_alive_s
    yield _SPACE
    try:
        for document in watch_job(parts, caller, job_id, parts.settings.sync_max_s - pause_s, pause_s):
            if document is not None and document["status"] in TERMINAL_JOB:
                with parts.waiting.turn():
                    note_answer(parts.db, job_id)
                    found = jsonify(answer(document))
                yield found.get_data()
                return
            yield _SPACE
        raise _cut_short(parts, job_id)
    except Exception as error:
        yield problem_response(error, parts.base_url()).get_data()


def stream_job(parts: Parts, caller: Caller, job_id: str, new_events: Callable[[Document], Iterator[bytes]]) -> Iterator[bytes]:
    """
    The events of a job until it has ended. Whatever goes wrong is told in the stream: its status was sent with the first byte.

    Args:
        new_events: what a document of the job has that those before it had not.
    """
    # At once, so that the client sees that its request was taken.
    yield HEARTBEAT
    try:
        for document in watch_job(parts, caller, job_id, parts.settings.sync_max_s, parts.settings.stream_heartbeat_s):
            if document is None:
                yield HEARTBEAT
                continue
            # What is read from the stores is work, as it is within a request; what is sent to a slow client is not.
            with parts.waiting.turn():
                found = list(new_events(document))
            yield from found
            if document["status"] in TERMINAL_JOB:
                note_answer(parts.db, job_id)
                return
        raise _cut_short(parts, job_id)
    except RequestError as error:
        yield error_event(error, job_id)
    except NoPlaceError as error:
        yield error_event(RequestError("engine_unavailable", str(error)), job_id)
    except (DatabaseDownError, StorageDownError, StorageMissingError) as error:
        log.warning("stream_cut", job_id=job_id, error=type(error).__name__)
        yield error_event(RequestError("engine_unavailable", f"a store does not answer; job {job_id} goes on"), job_id)


def _cut_short(parts: Parts, job_id: str) -> UnfinishedError | NoPlaceError:
    """Why a wait has ended before its job."""
    if parts.waiting.is_closed:
        return NoPlaceError(f"the server is being restarted; job {job_id} goes on")
    return UnfinishedError("deadline", f"the images are not ready after {parts.settings.sync_max_s:g} s; job {job_id} goes on", job_id)


class Place:
    """A place to wait in, of one request; a stream keeps it until it is over."""

    def __init__(self, parts: Parts, caller: Caller) -> None:
        self._parts = parts
        self._caller = caller
        self.is_kept = False

    def leave(self) -> None:
        """Give it back."""
        self._parts.waiting.leave_place(self._caller.tenant_id)

    def stream(self, chunks: Iterator[bytes], mimetype: str = MEDIA_TYPE) -> Response:
        """What is sent as it comes."""
        response = stream_response(chunks, mimetype)
        response.call_on_close(self.leave)
        self.is_kept = True
        return response


@contextmanager
def waiting_place(parts: Parts, caller: Caller) -> Iterator[Place]:
    """
    A place to wait in. To be taken before anything is stored.

    Raises:
        NoPlaceError
    """
    parts.waiting.take_place(caller.tenant_id)
    place = Place(parts, caller)
    try:
        yield place
    finally:
        if not place.is_kept:
            place.leave()


def error_event(error: RequestError, job_id: str) -> bytes:
    """The end of a stream that has failed."""
    return event_bytes(None, {"error": error_member(error), "job_id": job_id})


def _is_gone(request: Request) -> bool:
    """Has the client closed its connection? Only where the server hands us the socket; otherwise we do not know."""
    connection = request.environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket):
        return False
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
