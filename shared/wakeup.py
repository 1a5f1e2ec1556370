"""
Wake-ups: one process tells others that there is something to do, so that they need not wait for their next poll.

A hint and nothing more. It may be lost, doubled or late, and without Redis there are none: whoever listens polls all the
same. Redis pub/sub and not Postgres' NOTIFY, which would be sent by the commit itself but holds a lock of the whole database through
that commit: submits would then commit one after another, each waiting for the disk alone.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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

_TRUSTED_S = 60.0
"""A line that was silent for longer may have been cut on the way, without a word."""

_SAME_S = 0.002
"""Between two words of one topic on a line."""

_MOST_UNANSWERED = 8
_MOST_IDS = 64
"""Told with one word on a line: a few kilobytes, for which there is always room in the socket's buffer."""

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


def publish_command(topic: Topic, ids: Iterable[str]) -> tuple[str, str, str]:
    """What Redis is told, with the ids that belong to it."""
    return "PUBLISH", channel(topic), " ".join(ids)


class _Line:
    """
    A connection of its own on which words go out at once: the answer to one is read when a later one goes. Waits for nothing.

    To ask a thread costs more than all else of a ring: it must get the interpreter from whoever rang, who has more to do.
    """

    def __init__(self, pool: Any) -> None:
        """
        Opens it, and may block for that.

        Args:
            pool: of redis-py. Any: its types do not tell its answers.
        Raises:
            redis.RedisError
        """
        self._pool = pool
        self._connection = pool.get_connection()
        self._num_unanswered = 0
        self._said_at: dict[Topic, float] = {}
        self._used_at = time.monotonic()

    def is_free(self, topics: Iterable[Topic]) -> bool:
        """
        May these be said now? Not if one of them just was, so that a thousand rings do not become as many messages, nor if Redis owes
        many answers.

        Raises:
            redis.RedisError: the connection is dead, or may be.
        """
        now = time.monotonic()
        while self._num_unanswered and self._connection.can_read():
            self._connection.read_response()
            self._num_unanswered -= 1
        if now - self._used_at > (_SILENCE_S if self._num_unanswered else _TRUSTED_S):
            raise redis.ConnectionError("no answer")
        is_new = all(now - self._said_at.get(topic, -math.inf) > _SAME_S for topic in topics)
        return is_new and self._num_unanswered < _MOST_UNANSWERED

    def say(self, rung: Mapping[Topic, Iterable[str]]) -> None:
        """
        Raises:
            redis.RedisError: nothing was said, or a part.
        """
        words = self._connection.pack_commands([publish_command(topic, ids) for topic, ids in rung.items()])
        self._connection.send_packed_command(words, check_health=False)
        self._num_unanswered += len(rung)
        self._used_at = time.monotonic()
        self._said_at |= dict.fromkeys(rung, self._used_at)

    def close(self) -> None:
        """Give the connection back, closed: what is owed on it must be nobody's answer."""
        self._connection.disconnect()
        self._pool.release(self._connection)


class Bell:
    """
    Rings without waiting, so a dead Redis costs its caller nothing. Thread-safe.

    On a line where there is one, or else by a thread, which opens the next line; what is rung several times before the thread gets to it
    is published once.
    """

    def __init__(self, publish: Callable[[Mapping[Topic, set[str]]], bool], pool: Any) -> None:
        """
        Args:
            publish: is given what was rung, and the ids that were told with it; may block; must not raise. Returns: was it said?
            pool: of redis-py, for a line.
        """
        self._publish = publish
        self._pool = pool
        self._line: _Line | None = None
        self._rung: dict[Topic, set[str]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def ring(self, *topics: Topic, ids: Iterable[str] = ()) -> None:
        """Publish now, or soon, or never."""
        told = set(ids)
        with self._changed:
            if not self._rung and self._say_now(topics, told):
                return
            is_awake = bool(self._rung)
            for topic in topics:
                self._rung.setdefault(topic, set()).update(told)
            if self._thread is None:
                # At the first ring: whoever never rings needs no thread.
                self._thread = threading.Thread(target=self._publish_all, name="bell", daemon=True)
                self._thread.start()
            if not is_awake:
                self._changed.notify()

    def _say_now(self, topics: Sequence[Topic], told: set[str]) -> bool:
        if self._line is None or len(told) > _MOST_IDS:
            return False
        try:
            if self._line.is_free(topics):
                self._line.say(dict.fromkeys(topics, told))
                return True
        except (redis.RedisError, OSError):
            self._line.close()
            self._line = None
        return False

    def _publish_all(self) -> None:
        while True:
            with self._changed:
                while not self._rung:
                    self._changed.wait()
                rung, self._rung = self._rung, {}
            if self._publish(rung) and self._line is None:
                self._open_line()

    def _open_line(self) -> None:
        try:
            line = _Line(self._pool)
        except (redis.RedisError, OSError) as error:
            log.warning("no_line", error=type(error).__name__)
            return
        with self._changed:
            self._line = line


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
