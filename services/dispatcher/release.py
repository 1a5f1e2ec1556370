"""Release: keep a small window of work in Celery, chosen at the last moment. Knows no order of its own yet: lane, then age."""

from __future__ import annotations

import time
from typing import Any

import structlog

from services.dispatcher.settings import DispatcherSettings
from shared.db import Database
from shared.lifecycle import work, workers
from shared.queue import BrokerDownError, send_work
from shared.states import Stage

_SLOTS_FOR_S = 1.0
"""How long a count of slots is believed. Workers come and go in seconds."""

log = structlog.get_logger()


class Releaser:
    """Releases both stages, tick by tick."""

    def __init__(self, db: Database, celery: Any, settings: DispatcherSettings) -> None:
        self._db = db
        self._celery = celery
        self._window_per_slot = settings.window_per_slot
        self._slots: dict[Stage, int] = {}
        self._counted_at = float("-inf")

    def tick(self) -> None:
        """
        Release what fits into the window of each stage.

        Raises:
            DatabaseDownError
        """
        if time.monotonic() - self._counted_at > _SLOTS_FOR_S:
            self._slots = {stage: workers.count_slots(self._db, stage) for stage in Stage}
            self._counted_at = time.monotonic()
        for stage, slots in self._slots.items():
            if slots and (ids := work.release(self._db, stage, slots * self._window_per_slot)):
                # After commit, or a worker may look for the row before it is visible.
                self._send(stage, ids)

    def _send(self, stage: Stage, ids: list[str]) -> None:
        try:
            send_work(self._celery, stage, ids)
        except BrokerDownError as error:
            # The rows are released: idle workers find them within their poll interval.
            log.warning("broker_away", stage=stage, units=len(ids), error=str(error))
