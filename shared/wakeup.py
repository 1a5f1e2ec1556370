"""
Wake-ups: one process tells others that there is something to do, so that they need not wait for their next poll.

A hint and nothing more. It may be lost, doubled or late, and without Redis there are none: whoever listens polls all the
same. Redis pub/sub and not Postgres' NOTIFY, which would be sent by the commit itself but holds a lock of the whole database through
that commit: submits would then commit one after another, each waiting for the disk alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any

import redis
import structlog

from shared.states import Stage

_SILENCE_S = 5.0
"""After so long without a word Redis is asked for one, and after as long again the connection is taken for dead."""

_WAIT_S = 0.5
"""How long one wait for a message lasts, and so how long closing takes."""

_AGAIN_S = 1.0

log = structlog.get_logger()


class Topic(StrEnum):
    """What there is to do."""

    GRIDS_READY = "grids-ready"
    """For the dispatcher: grids may be released, or AR workers have room."""

    IMAGES_READY = "images-ready"
    """For the dispatcher: images may be released, or decoder workers have room."""

    GRIDS_RELEASED = "grids-released"
    """For AR workers with a free slot."""

    IMAGES_RELEASED = "images-released"
    """For decoder workers with a free slot."""

    DELIVERIES_DUE = "deliveries-due"
    """For webhook senders."""

    STOPS = "stops"
    """For workers: some work was flagged to stop."""

    SPARE_WORK = "spare-work"
    """For decoder workers with a free slot: something that is done only where nothing else waits, such as a preview."""

    CHANGES = "changes"
    """For API processes, in whose requests somebody may wait: ids of the jobs that have changed, and of their tenants."""


READY = {Stage.AR: Topic.GRIDS_READY, Stage.DECODER: Topic.IMAGES_READY}
RELEASED = {Stage.AR: Topic.GRIDS_RELEASED, Stage.DECODER: Topic.IMAGES_RELEASED}


def channel(topic: Topic) -> str:
    """The name under which Redis knows a topic."""
    return f"glmq:wake:{topic}"


class Bell:
    """
    Rings without waiting: a thread publishes, so a dead Redis costs its caller nothing. Thread-safe.

    What is rung several times before the thread gets to it is published once.
    """

    def __init__(self, publish: Callable[[Mapping[Topic, set[str]]], None]) -> None:
        """
        Args:
            publish: is given what was rung, and the ids that were told with it; may block; must not raise.
        """
        self._publish = publish
        self._rung: dict[Topic, set[str]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def ring(self, *topics: Topic, ids: Iterable[str] = ()) -> None:
        """Publish soon, or never."""
        with self._changed:
            is_awake = bool(self._rung)
            for topic in topics:
                self._rung.setdefault(topic, set()).update(ids)
            if self._thread is None:
                # At the first ring: whoever never rings needs no thread.
                self._thread = threading.Thread(target=self._publish_all, name="bell", daemon=True)
                self._thread.start()
            if not is_awake:
                self._changed.notify()

    def _publish_all(self) -> None:
        while True:
            with self._changed:
                while not self._rung:
                    self._changed.wait()
                rung, self._rung = self._rung, {}
            self._publish(rung)


class Listener:
    """A thread that hears what is rung, until it is closed; while Redis is away it hears nothing and tries again."""

    def __init__(self, client: Any, wake: Mapping[Topic, Callable[[frozenset[str] | None], object]]) -> None:
        """
        Args:
            client: of Redis. Any: redis-py's types do not tell its answers.
            wake: called on the listener's thread at every ring, with the ids that were told; and with None when it begins to hear:
                something may have been missed.
        """
        self._client = client
        self._wake = {channel(topic).encode(): call for topic, call in wake.items()}
        self._closed = threading.Event()
        self._is_hearing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="wake-ups", daemon=True)
        self._thread.start()

    @property
    def is_hearing(self) -> bool:
        """Would a ring be heard now? May be wrong for `2 * _SILENCE_S` after a connection died without a word."""
        return self._is_hearing.is_set()

    def end(self) -> None:
        """Hear nothing more, soon."""
        self._closed.set()

    def close(self) -> None:
        """Hear nothing more."""
        self.end()
        self._thread.join()

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                self._hear()
            except redis.RedisError as error:
                log.warning("wake_ups_away", error=type(error).__name__)
            self._is_hearing.clear()
            self._closed.wait(_AGAIN_S)

    def _hear(self) -> None:
        with self._client.pubsub() as pubsub:
            pubsub.subscribe(*self._wake)
            heard_at = time.monotonic()
            was_asked = False
            while not self._closed.is_set():
                message = pubsub.get_message(timeout=_WAIT_S)
                silent_s = time.monotonic() - heard_at
                if message is None:
                    if silent_s > 2 * _SILENCE_S:
                        raise redis.ConnectionError("no answer")
                    if silent_s > _SILENCE_S and not was_asked:
                        pubsub.ping()
                        was_asked = True
                    continue
                heard_at = time.monotonic()
                was_asked = False
                if message["type"] in ("subscribe", "message"):
                    self._is_hearing.set()
                    ids = frozenset(message["data"].decode().split()) if message["type"] == "message" else None
                    self._wake[message["channel"]](ids)
