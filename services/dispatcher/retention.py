"""
Retention: results and files whose time is up are erased; old events, deliveries and idempotency keys are deleted.

On a thread of its own, so that releases do not wait for it; by the leader alone; in steps of milliseconds. Objects in S3 are only doomed
here: the sweeper deletes them, when the store is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from services.dispatcher.settings import DispatcherSettings
from shared.db import Database, DatabaseDownError
from shared.lifecycle.erasing import erase_expired
from shared.lifecycle.files import delete_expired_files
from shared.lifecycle.retention import prune_deliveries, prune_events, prune_keys
from shared.progress import LiveState

_STEP = 200
"""Rows of a kind that one transaction deletes: some milliseconds."""
_JOBS = 20
"""Jobs that are erased before anything else has its turn."""
_AWAY_S = 5.0

log = structlog.get_logger()


def look(db: Database, live: LiveState, settings: DispatcherSettings) -> int:
    """
    One step of everything; how much was done, 0 if nothing was left to do.

    Raises:
        DatabaseDownError
    """
    counts = {
        "jobs": _erase_some(db, live),
        "events": prune_events(db, settings.events_kept_s, _STEP),
        "deliveries": prune_deliveries(db, settings.webhook_log_s, _STEP),
        "keys": prune_keys(db, settings.idempotency_s, _STEP),
        "files": delete_expired_files(db, _STEP),
    }
    done = {name: count for name, count in counts.items() if count}
    if done:
        log.info("outlived", **done)
    return sum(counts.values())


def _erase_some(db: Database, live: LiveState) -> int:
    for count in range(_JOBS):
        erased = erase_expired(db)
        if erased is None:
            return count
        # After commit. What is cached of it ends by itself while Redis is away.
        live.forget(erased.work_ids, erased.grid_hashes)
    return _JOBS


class Retention:
    """Looks every few seconds while `leading` is set, until `stopping` is."""

    def __init__(
        self, db: Database, live: LiveState, settings: DispatcherSettings, leading: threading.Event, stopping: threading.Event
    ) -> None:
        self._look: Callable[[], int] = lambda: look(db, live, settings)
        self._pause_s = settings.retention_look_s
        self._leading = leading
        self._stopping = stopping

    def start(self) -> threading.Thread:
        """Begin to look."""
        thread = threading.Thread(target=self._run, name="retention", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        pause_s = self._pause_s
        while not self._stopping.wait(pause_s):
            pause_s = self._step() if self._leading.is_set() else self._pause_s

    def _step(self) -> float:
        """Seconds until the next one."""
        try:
            # Something is left, perhaps; the others who use the database come first.
            return 0.05 if self._look() else self._pause_s
        except DatabaseDownError as error:
            log.warning("not_pruned", error=str(error))
        except Exception:  # what is wrong with one row must not end the thread
            log.exception("retention_failed")
        return max(_AWAY_S, self._pause_s)
