"""
Server-sent events (WHATWG): one event as bytes, and a response that streams them.

Knows the format and what holds a stream; knows no job.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from flask import Response

from services.api.waiting import Waiting, Watch
from shared.db import DatabaseDownError
from shared.errors import RequestError

MEDIA_TYPE = "text/event-stream"
STREAM_SCHEMA = {"description": "Server-sent events; the page of the route says which."}
"""For the OpenAPI document. Without a type: some tools hold the whole text against it, others each event."""
RETRY_MS = 2000
HEARTBEAT = b": hb\n\n"

log = structlog.get_logger()


def event_bytes(event: str | None, data: Mapping[str, Any] | str, event_id: int | str | None = None, is_first: bool = False) -> bytes:
    """
    One event.

    Args:
        event: its type; None: it has none.
        event_id: where to go on from after a lost connection; None for what is not kept.
        is_first: it tells the client when to come back. Never in a block of its own: some clients take that for an event.
    """
    lines = [f"retry: {RETRY_MS}"] if is_first else []
    lines += [] if event_id is None else [f"id: {event_id}"]
    # In ASCII: some clients take U+2028 or U+0085 for the end of a line.
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    lines += [] if event is None else [f"event: {event}"]
    lines += [*(f"data: {line}" for line in text.split("\n"))]
    # Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes a question mark.
    return ("\n".join(lines) + "\n\n").encode("utf-8", "replace")


Frames = Generator[bytes | None, None, None]
"""Bytes to send; None: nothing to send now, wait for a change."""


@dataclass(frozen=True)
class Pace:
    """
    What a stream does when, in seconds.

    Attributes:
        look_s: between two looks for what nobody tells of.
        heartbeat_s: of silence before a comment is sent.
        most_s: until it ends.
    """

    look_s: float
    heartbeat_s: float
    most_s: float


class EventStream:
    """
    The body of a streaming response. It holds a place while it lives, and a turn while it looks; it sends in neither.

    An object and no generator: a generator that was never begun does not run its `finally`.
    """

    def __init__(self, waiting: Waiting, tenant_id: str, watched: str, frames: Callable[[Watch], Frames], pace: Pace) -> None:
        """
        Args:
            watched: id of the job or tenant whose changes wake the stream.
            frames: looks, and yields what there is to send; a turn is held while it runs.
        Raises:
            NoPlaceError
        """
        waiting.take_place(tenant_id)
        self._has_place = True
        self._waiting = waiting
        self._tenant_id = tenant_id
        self._sent = self._send(watched, frames, pace)

    def __iter__(self) -> Iterator[bytes]:
        return self._sent

    def close(self) -> None:
        """Called by whoever serves the response, at its end or when the client is gone."""
        self._sent.close()
        if self._has_place:
            self._has_place = False
            self._waiting.leave_place(self._tenant_id)

    def _send(self, watched: str, frames: Callable[[Watch], Frames], pace: Pace) -> Generator[bytes, None, None]:
        ends_at = time.monotonic() + pace.most_s
        with self._waiting.watch(watched) as watch:
            looking = frames(watch)
            sent_at = time.monotonic()
            while time.monotonic() < ends_at:
                try:
                    with self._waiting.turn():
                        found = next(looking)
                except StopIteration:
                    return
                except (DatabaseDownError, RequestError) as error:
                    # The client comes back, and hears of it by a status.
                    log.warning("stream_ended", error=type(error).__name__)
                    return
                if found is None:
                    left_s = sent_at + pace.heartbeat_s - time.monotonic()
                    if left_s > 0:
                        if not watch.wait(min(pace.look_s, left_s)):
                            return
                        continue
                    found = HEARTBEAT
                sent_at = time.monotonic()
                yield found


def stream_response(chunks: Iterable[bytes], mimetype: str = MEDIA_TYPE) -> Response:
    """The response that sends what comes as it comes."""
    response = Response(chunks, mimetype=mimetype)
    # nginx keeps back what it is not told to pass on.
    response.headers["X-Accel-Buffering"] = "no"
    return response
