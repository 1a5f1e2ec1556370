"""Workers of two checkpoints beside each other, as in a rolling update: each takes what was made for its own."""

from __future__ import annotations

from dataclasses import replace

from shared.db import Database
from shared.lifecycle import claims, finish, work
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.submit import submit
from shared.lifecycle.workers import beat_worker, latest_model, read_fleet, stop_worker
from shared.states import Stage
from tests.ledger import ARTIFACT, LEASE_S, execute, query


def start_worker(db: Database, worker_id: str, stage: Stage, revision: str) -> None:
    beat_worker(db, worker_id, stage, "host", 1, 4, {"revision": revision})


def claimed_grid(db: Database, revision: str, grid_id: str | None = None) -> claims.ClaimedGrid | None:
    return claims.claim_grid(db, "w", LEASE_S, grid_id, model_revision=revision)


def claimed_image(db: Database, revision: str) -> claims.ClaimedImage | None:
    return claims.claim_image(db, "w", LEASE_S, model_revision=revision)


def test_each_worker_takes_what_was_made_for_its_checkpoint(db: Database, new_job: NewJob) -> None:
    """Though the other work is older or named by a message; what no live worker was made for, anybody takes."""
    for stage in Stage:
        for revision in ("old", "new"):
            start_worker(db, f"{stage} {revision}", stage, revision)
    for revision in ("old", "new", "gone"):
        submit(db, replace(new_job, model_revision=revision, prompt=revision))
    ids = dict(query(db, "SELECT model_revision, id FROM grid"))
    work.release(db, Stage.AR, 10)
    assert claimed_grid(db, "new", ids["old"]) is None
    grids = [claimed_grid(db, "new") for _ in range(3)]
    assert [grid and grid.model_revision for grid in grids] == ["new", "gone", None]
    grids.append(claimed_grid(db, "old", ids["old"]))
    for grid in filter(None, grids):
        finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    work.release(db, Stage.DECODER, 10)
    images = [claimed_image(db, "old") for _ in range(2)]
    # In the order in which their grids ended.
    assert [image and image.model_revision for image in images] == ["gone", "old"]
    assert claimed_image(db, "old") is None
    # An AR worker of a checkpoint draws nothing.
    stop_worker(db, "decoder new")
    last = claimed_image(db, "old")
    assert last is not None
    assert last.model_revision == "new"


def test_the_model_is_that_of_the_worker_that_started_last(db: Database) -> None:
    """Not of the one that was seen last; a worker that is gone counts only where none is left."""
    assert latest_model(db) is None
    start_worker(db, "1", Stage.AR, "old")
    start_worker(db, "2", Stage.AR, "new")
    start_worker(db, "1", Stage.AR, "old")
    start_worker(db, "3", Stage.DECODER, "decoder's")
    assert latest_model(db) == read_fleet(db, Stage.AR).model == {"revision": "new"}
    stop_worker(db, "2")
    assert latest_model(db) == {"revision": "old"}
    execute(db, "UPDATE worker SET seen_at = seen_at - interval '1 minute'")
    assert latest_model(db) == {"revision": "new"}
