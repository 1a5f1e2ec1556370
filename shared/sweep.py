"""Deleting from S3 what the ledger has doomed. Safe to repeat, and to be interrupted: what was not deleted is still doomed."""

from __future__ import annotations

from shared.db import Database
from shared.lifecycle.erasing import due_objects, forget_objects
from shared.storage import Storage

_BATCH = 50


def sweep(db: Database, storage: Storage) -> int:
    """
    Delete some of what is due.

    Returns:
        How many prefixes are gone; 0: nothing was due.
    Raises:
        DatabaseDownError
        StorageDownError: the rest stays doomed.
    """
    gone: list[int] = []
    try:
        for doomed in due_objects(db, _BATCH):
            storage.delete_all(doomed.prefix)
            gone.append(doomed.id)
    finally:
        forget_objects(db, gone)
    return len(gone)
