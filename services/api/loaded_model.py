"""The model that the AR workers have loaded, as the ledger tells of it. Knows no HTTP."""

from __future__ import annotations

import json

from services.api.kept import Kept
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
        # Not that there is none: the first worker is noticed at once.
        self._kept = Kept(lambda: _read(db), _KEPT_S, is_worth=lambda info: info is not None)

    def find(self) -> ModelInfo | None:
        """The model, or None if no worker has reported one yet."""
        return self._kept.get()

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

    def forget(self) -> None:
        """Ask anew at the next `get`."""
        self._kept.forget()


def _read(db: Database) -> ModelInfo | None:
    reported = latest_model(db)
    return None if reported is None else ModelInfo.from_json(json.dumps(reported))
