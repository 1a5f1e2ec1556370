"""The ledger as tests look at it, and the steps of a job's life as workers take them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import text

from shared.db import Database, DatabaseDownError
from shared.lifecycle import claims, finish, jobs, work
from shared.lifecycle.new_job import NewJob
from shared.states import Stage

LEASE_S = 30.0
ARTIFACT = claims.StoredArtifact("t/key", "ab" * 32, 100)


def execute(db: Database, statement: str, **values: Any) -> None:
    db.run(lambda session: session.execute(text(statement), values))


def query(db: Database, statement: str, **values: Any) -> list[tuple[Any, ...]]:
    return db.run(lambda session: [tuple(row) for row in session.execute(text(statement), values)])


def events(db: Database, job_id: str) -> list[str]:
    return [row[0] for row in query(db, "SELECT type FROM event WHERE job_id = :id ORDER BY seq", id=job_id)]


def document(db: Database, new: NewJob, job_id: str) -> dict[str, Any]:
    found = jobs.get_job(db, new.tenant_id, job_id, lambda ids: {})
    assert found is not None
    return found


def claim_grid(db: Database) -> claims.ClaimedGrid:
    work.release(db, Stage.AR, 10)
    claimed = claims.claim_grid(db, "w1", LEASE_S)
    assert claimed is not None
    return claimed


def claim_image(db: Database) -> claims.ClaimedImage:
    work.release(db, Stage.DECODER, 10)
    claimed = claims.claim_image(db, "w2", LEASE_S)
    assert claimed is not None
    return claimed


def finish_one_grid(db: Database) -> None:
    grid = claim_grid(db)
    finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)


def finish_one_image(db: Database) -> None:
    image = claim_image(db)
    finish.finish_image(db, image.id, image.attempt, ARTIFACT)


def finish_everything(db: Database) -> None:
    """All grids and images, whether released yet or not."""
    work.release(db, Stage.AR, 100)
    while grid := claims.claim_grid(db, "w1", LEASE_S):
        finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    work.release(db, Stage.DECODER, 100)
    while image := claims.claim_image(db, "w2", LEASE_S):
        finish.finish_image(db, image.id, image.attempt, ARTIFACT)


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """
    Run calls in threads of their own; what each returned or raised, in order.

    Those that a slow machine kept waiting for a lock or a connection for too long are made again, as their callers would.
    """
    results: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(index: int) -> None:
        start.wait()
        for _ in range(5):
            try:
                results[index] = calls[index]()
            except Exception as error:  # for the test to judge
                results[index] = error
            if not isinstance(results[index], DatabaseDownError):
                return

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
