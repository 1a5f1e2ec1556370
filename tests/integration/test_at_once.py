"""What is released without the dispatcher: work that finds nothing waiting and a free slot of a live worker."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.db import Database
from shared.lifecycle import claims, finish, workers
from shared.lifecycle.at_once import RING_UP_TO_SLOTS
from shared.lifecycle.fast_submit import insert_new
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.new_rows import fresh_rows
from shared.lifecycle.quotas import Limits
from shared.lifecycle.submit import Stored, store, submit
from shared.lifecycle.work import release
from shared.states import Stage
from tests.ledger import ARTIFACT, LEASE_S, claim_grid, claim_image, execute, query

_MODEL = {"name": "m", "revision": "r1"}


def live_worker(db: Database, stage: Stage, slots: int) -> None:
    workers.beat_worker(db, f"wrk_{stage}", stage, "host", 1, slots, _MODEL)


def add(db: Database, new_job: NewJob, seed: int, limits: Limits | None = None, **changes: object) -> Stored:
    """A job with layouts of its own."""
    return store(db, replace(new_job, seed=seed, layout_seed=seed, **changes), limits or Limits())


def states(db: Database, table: str) -> list[str]:
    return [row[0] for row in query(db, f"SELECT state FROM {table} ORDER BY created_at, seed")]


def test_a_grid_that_finds_a_free_slot_is_released(db: Database, new_job: NewJob) -> None:
    """And can be claimed at once; the third one finds both slots taken, by what is released or runs, and the dispatcher releases it."""
    live_worker(db, Stage.AR, slots=2)
    assert add(db, new_job, 0).is_released
    assert claims.claim_grid(db, "wrk_ar", LEASE_S) is not None
    assert add(db, new_job, 1).is_released
    assert not add(db, new_job, 2).is_released
    assert states(db, "grid") == ["running", "released", "ready"]
    assert len(release(db, Stage.AR, 4)) == 1


def test_nothing_passes_what_waits(db: Database, new_job: NewJob) -> None:
    """While something may be released, who goes first is for the dispatcher; what has a pause before it waits for no turn."""
    submit(db, new_job)
    live_worker(db, Stage.AR, slots=8)
    assert not add(db, new_job, 7).is_released
    execute(db, "UPDATE grid SET not_before = now() + interval '1 h'")
    assert add(db, new_job, 8).is_released


def test_layouts_of_a_job_are_released_together_or_not(db: Database, new_job: NewJob) -> None:
    """Two layouts need two slots."""
    live_worker(db, Stage.AR, slots=3)
    assert add(db, new_job, 0, num_images=2).is_released
    assert not add(db, new_job, 10, num_images=2).is_released
    assert states(db, "grid") == ["released", "released", "ready", "ready"]


def test_jobs_that_are_written_together_count_together(db: Database, new_job: NewJob) -> None:
    """All of one statement find room, or none."""
    live_worker(db, Stage.AR, slots=2)
    rows = [fresh_rows(replace(new_job, layout_seed=seed), f"job_{seed}", None) for seed in range(3)]
    assert [inserted and inserted.is_released for inserted in insert_new(db, rows, Limits())] == [False] * 3


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE worker SET stopped_at = now()",
        "UPDATE worker SET seen_at = now() - interval '20 s'",
        "UPDATE worker SET stage = 'decoder'",
        f"UPDATE worker SET slots = {RING_UP_TO_SLOTS + 1}",
        "DELETE FROM worker",
    ],
)
def test_without_a_worker_that_hears_of_it_nothing_is_released(db: Database, new_job: NewJob, change: str) -> None:
    """It has left, fell silent, is of the other stage; or there are so many that a ring would wake hundreds."""
    live_worker(db, Stage.AR, slots=2)
    execute(db, change)
    assert not add(db, new_job, 0).is_released


def test_where_work_in_hand_is_limited_the_dispatcher_counts(db: Database, new_job: NewJob) -> None:
    """It alone sees what both stages have of a tenant."""
    live_worker(db, Stage.AR, slots=2)
    assert not add(db, new_job, 0, Limits(max_running=1)).is_released


def test_the_image_of_a_finished_grid_is_released(db: Database, new_job: NewJob) -> None:
    """Where a decoder has a free slot; the next one is ready and waits for the dispatcher."""
    live_worker(db, Stage.DECODER, slots=1)
    for seed, is_released in enumerate((True, False)):
        add(db, new_job, seed)
        grid = claim_grid(db)
        assert finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10) is is_released
    assert states(db, "image") == ["released", "ready"]
    assert claims.claim_image(db, "wrk_decoder", LEASE_S) is not None


def test_images_of_one_layout_are_for_the_dispatcher(db: Database, new_job: NewJob) -> None:
    """Of many that become ready together some may have to wait, and a tenant gets more in hand than it had."""
    live_worker(db, Stage.DECODER, slots=8)
    add(db, new_job, 0, num_images=2, same_layout=True)
    grid = claim_grid(db)
    assert not finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    assert states(db, "image") == ["ready", "ready"]


def test_a_finish_that_is_repeated_releases_nothing_more(db: Database, new_job: NewJob) -> None:
    """After a commit of which nobody knows; by then the image may run."""
    live_worker(db, Stage.DECODER, slots=8)
    add(db, new_job, 0)
    grid = claim_grid(db)
    assert finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    claim_image(db)
    assert not finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    assert states(db, "image") == ["running"]
