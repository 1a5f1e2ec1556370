"""Deleting from S3 what the ledger has doomed. Safe to repeat, and to be interrupted: what was not deleted is still doomed."""

from __future__ import annotations

from shared.db import Database
from shared.lifecycle.erasing import due_objects, forget_objects, postpone_objects
from shared.storage import Storage, StorageDownError

_BATCH = 50
_MAX_FAILED = 2
"""Then it is not the prefix but the store."""


def sweep(db: Database, storage: Storage) -> int:
    """
    Delete some of what is due.

    Returns:
        How many prefixes are gone; 0: nothing was due.
    Raises:
        DatabaseDownError
        StorageDownError: some could not be deleted; they stay doomed.
    """
    gone: list[int] = []
    failed: list[int] = []
    away: StorageDownError | None = None
    for doomed in due_objects(db, _BATCH):
        try:
            storage.delete_all(doomed.prefix)
            gone.append(doomed.id)
        except StorageDownError as error:
            away = error
            failed.append(doomed.id)
            if len(failed) > _MAX_FAILED:
                break
    forget_objects(db, gone)
    # Behind the others, so that one that cannot be deleted does not keep them from it.
    postpone_objects(db, failed)
    if away is not None:
        raise away
    return len(gone)
