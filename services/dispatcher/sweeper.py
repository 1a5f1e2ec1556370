"""Deletes what was erased from S3, on a thread of its own: the store may be away, and releases do not wait for it."""

from __future__ import annotations

import threading

import structlog

from shared.db import Database, DatabaseDownError
from shared.storage import Storage, StorageDownError
from shared.sweep import sweep

_PAUSE_S = 2.0
_AWAY_S = 30.0

log = structlog.get_logger()


class Sweeper:
    """Sweeps every few seconds until `stopping` is set."""

    def __init__(self, db: Database, storage: Storage, stopping: threading.Event) -> None:
        self._db = db
        self._storage = storage
        self._stopping = stopping

    def start(self) -> None:
        """Begin to sweep."""
        threading.Thread(target=self._run, name="sweeper", daemon=True).start()

    def _run(self) -> None:
        while not self._stopping.wait(self._sweep()):
            pass

    def _sweep(self) -> float:
        """One look; seconds until the next."""
        try:
            num_gone = sweep(self._db, self._storage)
        except (DatabaseDownError, StorageDownError) as error:
            log.warning("not_swept", error=str(error))
            return _AWAY_S
        except Exception:  # what is wrong with one object must not end the thread that deletes the others
            log.exception("sweep_failed")
            return _AWAY_S
        if num_gone:
            log.info("swept", prefixes=num_gone)
        return 0 if num_gone else _PAUSE_S
