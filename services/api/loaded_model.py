"""The model that the AR workers have loaded, as the ledger tells of it. Knows no HTTP."""

from __future__ import annotations

import json
import threading
import time

from shared.checkpoint import ModelInfo
from shared.db import Database
from shared.errors import GlmqError
from shared.lifecycle.workers import latest_model

_KEPT_S = 3.0
"""Workers with another checkpoint are noticed this late; every submit saves a query."""


class NoModelError(GlmqError):
    """No AR worker has ever reported what it loaded, so nothing is known of sizes and defaults."""


class LoadedModel:
    """`ModelInfo` of the newest AR worker, kept for a few seconds. Thread-safe."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._info: ModelInfo | None = None
        self._good_until = 0.0

    def find(self) -> ModelInfo | None:
        """The model, or None if no worker has reported one yet."""
        with self._lock:
            if self._info is not None and time.monotonic() < self._good_until:
                return self._info
        # Outside the lock, so that a slow database holds up only who asks it.
        reported = latest_model(self._db)
        info = None if reported is None else ModelInfo.from_json(json.dumps(reported))
        with self._lock:
            self._info, self._good_until = info, time.monotonic() + _KEPT_S
        return info

    def get(self) -> ModelInfo:
        """
        The model.

        Raises:
            NoModelError
        """
        info = self.find()
        if info is None:
            raise NoModelError("no AR worker has reported its model yet")
        return info
