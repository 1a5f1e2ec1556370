"""
The leases a worker process holds: a thread that keeps them alive, hears of stops, and publishes progress.

Knows rows and Redis, not engines: an engine sees only `should_stop` and `on_progress`, which touch memory alone.
"""

from __future__ import annotations

import os
import threading
import time
from enum import StrEnum

import structlog

from shared.db import Database, DatabaseDownError
from shared.lifecycle import work
from shared.progress import LiveState
from shared.settings import WorkerSettings
from shared.states import Stage

_TICK_S = 0.1
"""Between two looks for stops, and between two words of progress. A stop that is rung for (`look`) is heard at once, and every look
takes the interpreter away from the engine's thread."""
_MARGIN_S = 5.0
"""Stop trusting a lease so long before it ends: another worker may hold it by the time we notice."""

_FAULT_EXIT = 70

log = structlog.get_logger()


class StopReason(StrEnum):
    """Why an engine was told to stop."""

    CANCELED = "canceled"
    """Nobody wants the work any more."""

    LOST = "lost"
    """The lease ran out or was given to another worker; write nothing."""

    SHUTDOWN = "shutdown"
    """This process ends; hand the work back."""

    TIMEOUT = "timeout"
    """It has taken longer than an attempt may."""


class HeldWork:
    """One claimed unit of work, as its engine and its task see it."""

    def __init__(self, work_id: str, attempt: int) -> None:
        self.id = work_id
        self.attempt = attempt
        self.stop_reason: StopReason | None = None
        self.progress: tuple[str, int, int] | None = None
        self.published: tuple[str, int, int] | None = None
        self.began_at = self.kept_at = self.moved_at = time.monotonic()

    def should_stop(self) -> bool:
        """Asked by the engine at every token or step."""
        return self.stop_reason is not None

    def on_progress(self, phase: str, done: int, total: int) -> None:
        """Told by the engine at every token or step; published a few times a second."""
        self.progress = (phase, done, total)
        self.moved_at = time.monotonic()

    def stop(self, reason: StopReason) -> None:
        """Ask the engine to stop; the first reason counts."""
        self.stop_reason = self.stop_reason or reason


class LeaseKeeper:
    """The leases of one worker process and the thread that keeps them."""

    def __init__(self, db: Database, live: LiveState, stage: Stage, settings: WorkerSettings) -> None:
        self._db = db
        self._live = live
        self._stage = stage
        self._settings = settings
        # By attempt too: with several slots, a unit may be lost and claimed again before its first attempt has ended.
        self._held: dict[tuple[str, int], HeldWork] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._look = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="leases", daemon=True)

    def start(self) -> None:
        """Begin to keep leases."""
        self._thread.start()

    def close(self) -> None:
        """Stop keeping leases."""
        self._closed.set()
        self._look.set()
        self._thread.join()

    def look(self) -> None:
        """Look for stops now: some may just have been flagged. Does not wait."""
        self._look.set()

    def hold(self, work_id: str, attempt: int) -> HeldWork:
        """Keep the lease of a unit that was just claimed."""
        held = HeldWork(work_id, attempt)
        with self._lock:
            self._held[work_id, attempt] = held
        return held

    def drop(self, held: HeldWork) -> None:
        """Keep it no longer: the unit is finished, failed or handed back."""
        with self._lock:
            self._held.pop((held.id, held.attempt), None)

    def stop_all(self, reason: StopReason) -> None:
        """Stop everything that is held."""
        for held in self._snapshot():
            held.stop(reason)

    def _snapshot(self) -> list[HeldWork]:
        with self._lock:
            return list(self._held.values())

    def _keep(self) -> None:
        try:
            self._keep_until_closed()
        except Exception:
            # Without this thread every lease would run out unnoticed. A new process starts clean, and the rescue returns the work.
            log.exception("leases_not_kept")
            os._exit(_FAULT_EXIT)

    def _keep_until_closed(self) -> None:
        beat_at = 0.0
        while not self._closed.is_set():
            self._look.wait(_TICK_S)
            self._look.clear()
            held = self._snapshot()
            if not held:
                continue
            now = time.monotonic()
            self._publish(held)
            flagged = self._live.read_stops([unit.id for unit in held if unit.stop_reason is None])
            if flagged or now - beat_at >= self._settings.heartbeat_s:
                beat_at = now
                self._beat(held, flagged)
            self._distrust(held)

    def _publish(self, held: list[HeldWork]) -> None:
        news = {unit.id: progress for unit in held if (progress := unit.progress) is not None and progress != unit.published}
        if news:
            self._live.write_progress(news)
            for unit in held:
                unit.published = news.get(unit.id, unit.published)

    def _beat(self, held: list[HeldWork], flagged: set[str]) -> None:
        """Extend the leases, and stop what is not ours any more. A flag is a hint to ask now: it may be late, and the work wanted again."""
        # Counted from before the call: the database may have answered long after it extended the lease.
        asked_at = time.monotonic()
        try:
            still_ours = work.heartbeat(self._db, self._stage, [(unit.id, unit.attempt) for unit in held], self._settings.lease_s)
        except DatabaseDownError as error:
            log.warning("heartbeat_failed", error=str(error))
            return
        for unit in held:
            if (unit.id, unit.attempt) in still_ours:
                unit.kept_at = asked_at
            else:
                # Canceled, or rescued from us. Either way the row is not ours to write.
                unit.stop(StopReason.CANCELED if unit.id in flagged else StopReason.LOST)
        self._live.clear_stops([unit.id for unit in held if unit.id in flagged and (unit.id, unit.attempt) in still_ours])

    def _distrust(self, held: list[HeldWork]) -> None:
        now = time.monotonic()
        for unit in held:
            if now - unit.kept_at > self._settings.lease_s - min(_MARGIN_S, self._settings.lease_s / 4):
                unit.stop(StopReason.LOST)
            if self._settings.attempt_s and now - unit.began_at > self._settings.attempt_s:
                unit.stop(StopReason.TIMEOUT)
            if now - unit.moved_at > self._settings.stall_s:
                # A hung kernel holds the engine's thread for good. Only a new process helps, and the rescue returns the work.
                log.error("stalled", work_id=unit.id, attempt=unit.attempt, progress=unit.progress)
                os._exit(_FAULT_EXIT)
