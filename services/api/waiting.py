"""
Where requests wait for jobs to change, without holding up those that need not wait. Knows ids and threads; knows no route.

A request that is worked on has one of few *turns*; while it waits it gives its turn back and holds one of many *places*. So a hundred
long polls and streams cost a hundred sleeping threads, and the next request still begins at once. All are woken by one connection to
Redis (`LiveState.hear_changes`); while that is away, or a message was lost, they look for themselves.

    with parts.waiting.place(caller.tenant_id), parts.waiting.watch(job_id) as watch:
        while True:
            watch.take()
            <look, and leave if it is enough>
            watch.wait(seconds_left)

or, for the document of a job, `wait_until`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shared.errors import GlmqError
from shared.progress import LiveState
from shared.states import TERMINAL_JOB
from shared.wakeup import Listener

_LOOK_S = 1.0
"""Between two looks while no changes are heard of."""
_SELDOM_S = 5.0
"""Between two looks while they are: a hint may be lost."""

Document = dict[str, Any]


class NoPlaceError(GlmqError):
    """So many requests wait already that this one may not."""


class Watch:
    """A wait for changes of some jobs or tenants. Of one thread."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._rung = threading.Event()

    def ring(self) -> None:
        """Something has changed."""
        self._rung.set()

    def take(self) -> bool:
        """Was there a ring since this was last asked? To be asked before a look, never after it."""
        was_rung = self._rung.is_set()
        self._rung.clear()
        return was_rung

    def wait(self, most_s: float) -> bool:
        """
        Wait for a ring, at once if there was one, and no longer than `most_s`; gives the request's turn back meanwhile.

        Returns:
            False: the process ends; wait no more.
        """
        if not self._waiting.is_closed:
            with self._waiting.aside():
                self._rung.wait(max(0.0, min(most_s, self._waiting.look_s())))
        return not self._waiting.is_closed


class Waiting:
    """All waits of a process. Thread-safe."""

    def __init__(self, live: LiveState, turns: int, places: int) -> None:
        """
        Args:
            turns: requests that are worked on at once.
            places: requests that may wait besides. One tenant gets half of them, so that the others can wait too.
        """
        self._live = live
        self._turns = threading.BoundedSemaphore(turns)
        self._own = threading.local()
        self._num_places = places
        self._places: Counter[str] = Counter()
        self._watches: dict[str, set[Watch]] = {}
        self._lock = threading.Lock()
        self._listener: Listener | None = None
        self.is_closed = False

    def wrap(self, wsgi: Callable[..., Any]) -> Callable[..., Any]:
        """The application, whose requests are worked on in turn. What it streams is beyond its turn: see `turn`."""

        def in_turn(environ: Any, start_response: Any) -> Any:
            with self.turn():
                return wsgi(environ, start_response)

        return in_turn

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Work on a request, as soon as fewer than `turns` are worked on. Within itself it has no effect."""
        if getattr(self._own, "has_turn", False):
            yield
            return
        self._turns.acquire()
        self._own.has_turn = True
        try:
            yield
        finally:
            self._own.has_turn = False
            self._turns.release()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let other requests have this one's turn, if it has one."""
        if not getattr(self._own, "has_turn", False):
            yield
            return
        self._own.has_turn = False
        self._turns.release()
        try:
            yield
        finally:
            self._turns.acquire()
            self._own.has_turn = True

    @contextmanager
    def place(self, tenant_id: str) -> Iterator[None]:
        """
        Hold one of the places.

        Raises:
            NoPlaceError
        """
        self.take_place(tenant_id)
        try:
            yield
        finally:
            self.leave_place(tenant_id)

    def take_place(self, tenant_id: str) -> None:
        """
        Hold one of the places until `leave_place`, as a stream does that begins after its request.

        Raises:
            NoPlaceError
        """
        with self._lock:
            if self._places.total() >= self._num_places or self._places[tenant_id] >= max(1, self._num_places // 2):
                raise NoPlaceError("too many requests wait for jobs already; poll, or try again")
            self._places[tenant_id] += 1

    def leave_place(self, tenant_id: str) -> None:
        """Give a place back."""
        with self._lock:
            self._places[tenant_id] -= 1
            if not self._places[tenant_id]:
                del self._places[tenant_id]

    @contextmanager
    def watch(self, *ids: str) -> Iterator[Watch]:
        """Watch jobs or tenants. Look once after it has begun: what changed before was not heard."""
        watch = Watch(self)
        with self._lock:
            if self._listener is None and not self.is_closed:
                # At the first wait: an API that nobody waits at needs no connection for it.
                self._listener = self._live.hear_changes(self._hear)
            for changed in ids:
                self._watches.setdefault(changed, set()).add(watch)
        try:
            yield watch
        finally:
            with self._lock:
                for changed in ids:
                    self._watches[changed].discard(watch)
                    if not self._watches[changed]:
                        del self._watches[changed]

    def wait_until(
        self,
        tenant_id: str,
        job_id: str,
        look: Callable[[], Document],
        is_enough: Callable[[Document], bool],
        timeout_s: float,
        sees_progress: bool = False,
    ) -> Document:
        """
        The job's document as soon as it is enough, or as it is after `timeout_s`.

        Args:
            look: reads the document; what it raises ends the wait.
            sees_progress: the job's progress counts too, which nobody is told of: look for it every second.
        Raises:
            NoPlaceError: it is not enough yet, and nobody else may wait.
        """
        document = look()
        if is_enough(document) or timeout_s <= 0 or self.is_closed:
            return document
        ends_at = time.monotonic() + timeout_s
        with self.place(tenant_id), self.watch(job_id) as watch:
            goes_on = True
            while True:
                watch.take()
                document = look()
                left_s = ends_at - time.monotonic()
                if is_enough(document) or left_s <= 0 or not goes_on:
                    return document
                goes_on = watch.wait(min(left_s, _LOOK_S) if sees_progress else left_s)

    def look_s(self) -> float:
        """Seconds after which whoever waits should look although nothing was heard."""
        listener = self._listener
        return _SELDOM_S if listener is not None and listener.is_hearing else _LOOK_S

    def close(self) -> None:
        """End every wait. Sets flags only: signal handlers call it."""
        self.is_closed = True
        # A copy, and no lock: the thread that a signal interrupts may hold it.
        for watches in list(self._watches.values()):
            for watch in list(watches):
                watch.ring()
        if self._listener is not None:
            self._listener.end()

    def _hear(self, ids: frozenset[str] | None) -> None:
        with self._lock:
            found = self._watches.values() if ids is None else [self._watches[changed] for changed in ids if changed in self._watches]
            rung = {watch for watches in found for watch in watches}
        for watch in rung:
            watch.ring()


def has_ended(document: Document) -> bool:
    """Is the job over?"""
    return document["status"] in TERMINAL_JOB
