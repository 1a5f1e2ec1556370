"""The life of jobs in a real Postgres: every move, every fence, every race."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import PermanentWorkError, RequestError, StaleAttemptError, TransientWorkError
from shared.lifecycle import claims, finish, jobs, work
from shared.lifecycle.idempotency import Idempotency
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.paging import Page
from shared.lifecycle.submit import submit, submit_in
from shared.states import GRID_MOVES, IMAGE_MOVES, JOB_MOVES, NEW_GRID, NEW_IMAGE, JobStatus, Priority, Stage
from tests.ledger import (
    ARTIFACT,
    LEASE_S,
    claim_grid,
    claim_image,
    document,
    events,
    execute,
    finish_one_grid,
    finish_one_image,
    query,
)


def test_job_runs_from_submit_to_success(db: Database, new_job: NewJob) -> None:
    """A job passes every state, tells it by gap-free events, and leaves one webhook delivery."""
    job_id, replayed = submit(db, new_job)
    assert not replayed
    assert document(db, new_job, job_id)["status"] == "queued"
    finish_one_grid(db)
    assert document(db, new_job, job_id)["status"] == "running"
    finish_one_image(db)
    done = document(db, new_job, job_id)
    assert done["status"] == "succeeded"
    assert done["outputs"][0]["storage_key"] == ARTIFACT.storage_key
    assert done["usage"] == {"text_tokens": 0, "image_tokens": 0, "ar_tokens": 13 * 19 + 6, "decoder_steps": 4, "images": 1}
    assert done["progress"] == {"phase": "upload", "done": 1, "total": 1}
    assert events(db, job_id) == ["job.queued", "job.started", "job.tokens_ready", "job.succeeded"]
    assert query(db, "SELECT seq FROM event ORDER BY seq") == [(1,), (2,), (3,), (4,)]
    lane = f"{new_job.tenant_id}/example.com"
    assert query(db, "SELECT url, lane, state FROM webhook_delivery") == [("https://example.com/hook", lane, "pending")]
    assert query(db, "SELECT stage, units FROM usage ORDER BY id") == [("ar", 10), ("decoder", 4)]


def test_images_of_a_job_have_their_own_seeds(db: Database, new_job: NewJob) -> None:
    """Image i uses seed + i in both stages, wrapping at the largest seed; `same_layout` shares one grid."""
    job_id, _ = submit(db, replace(new_job, num_images=3, seed=2**63 - 2, layout_seed=5))
    outputs = document(db, new_job, job_id)["outputs"]
    assert [output["seed"] for output in outputs] == [2**63 - 2, 2**63 - 1, 0]
    assert [output["layout_seed"] for output in outputs] == [5, 6, 7]
    job_id, _ = submit(db, replace(new_job, num_images=3, same_layout=True, layout_seed=99))
    assert [output["layout_seed"] for output in document(db, new_job, job_id)["outputs"]] == [99, 99, 99]
    assert query(db, "SELECT count(*) FROM grid WHERE seed = 99") == [(1,)]


def test_equal_requests_share_one_grid(db: Database, new_job: NewJob) -> None:
    """A grid is drawn once for equal requests of a tenant, whether it is running or done; another seed makes another grid."""
    submit(db, new_job)
    submit(db, replace(new_job, steps=9))
    grid = claim_grid(db)
    submit(db, replace(new_job, guidance_scale=3.0))
    finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    submit(db, replace(new_job, format="webp"))
    submit(db, replace(new_job, layout_seed=2))
    assert query(db, "SELECT count(*), count(*) FILTER (WHERE state = 'done') FROM grid") == [(2, 1)]
    assert query(db, "SELECT state, count(*) FROM image GROUP BY 1 ORDER BY 1") == [("ready", 4), ("waiting", 1)]


def test_many_submits_on_one_connection(db: Database, new_job: NewJob) -> None:
    """Statements that Postgres has come to prepare do what they did at first."""
    for seed in range(12):
        submit(db, replace(new_job, layout_seed=seed % 3))
    assert query(db, "SELECT count(*) FROM grid") == [(3,)]


def test_urgent_request_pulls_a_shared_grid_into_its_lane(db: Database, new_job: NewJob) -> None:
    """A bulk grid that an interactive job wants too is released with the interactive ones."""
    submit(db, replace(new_job, priority=Priority.BULK))
    submit(db, replace(new_job, prompt="other"))
    submit(db, replace(new_job, priority=Priority.INTERACTIVE))
    (first,) = work.release(db, Stage.AR, 1)
    assert query(db, "SELECT prompt FROM grid WHERE id = :id", id=first) == [("A cat",)]


def test_release_keeps_the_window(db: Database, new_job: NewJob) -> None:
    """Never more than `window` units are released or running."""
    for seed in range(5):
        submit(db, replace(new_job, layout_seed=seed))
    assert len(work.release(db, Stage.AR, 3)) == 3
    assert work.release(db, Stage.AR, 3) == {}
    claimed = claims.claim_grid(db, "w", LEASE_S)
    assert claimed is not None
    assert work.release(db, Stage.AR, 3) == {}
    finish.finish_grid(db, claimed.id, claimed.attempt, ARTIFACT, 10)
    assert len(work.release(db, Stage.AR, 3)) == 1


def test_doubled_message_claims_nothing(db: Database, new_job: NewJob) -> None:
    """Of many workers with the same message one gets the work."""
    submit(db, new_job)
    (grid_id,) = work.release(db, Stage.AR, 1)
    got: list[object] = []
    threads = [threading.Thread(target=lambda: got.append(claims.claim_grid(db, "w", LEASE_S, grid_id))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in got) == 1


def test_late_worker_is_fenced(db: Database, new_job: NewJob) -> None:
    """A worker whose lease was rescued writes nothing; its successor does, under a higher attempt."""
    submit(db, new_job)
    late = claim_grid(db)
    execute(db, "UPDATE grid SET lease_until = clock_timestamp() - interval '1 s'")
    assert work.rescue(db, Stage.AR) == (1, [])
    assert work.heartbeat(db, Stage.AR, {(late.id, late.attempt)}, LEASE_S) == set()
    with pytest.raises(StaleAttemptError):
        finish.finish_grid(db, late.id, late.attempt, ARTIFACT, 10)
    execute(db, "UPDATE grid SET not_before = clock_timestamp()")
    successor = claim_grid(db)
    assert successor.attempt == late.attempt + 1
    for write in (
        lambda: finish.finish_grid(db, late.id, late.attempt, replace(ARTIFACT, storage_key="late"), 10),
        lambda: finish.fail(db, Stage.AR, late.id, late.attempt, TransientWorkError("x", "x"), retryable=True),
    ):
        with pytest.raises(StaleAttemptError):
            write()
    assert not work.hand_back(db, Stage.AR, late.id, late.attempt)
    finish.finish_grid(db, successor.id, successor.attempt, ARTIFACT, 10)
    assert query(db, "SELECT state, storage_key FROM grid") == [("done", ARTIFACT.storage_key)]


def test_finish_may_be_repeated(db: Database, new_job: NewJob) -> None:
    """A worker that does not know whether its commit arrived may write it again."""
    job_id, _ = submit(db, new_job)
    grid = claim_grid(db)
    for _ in range(2):
        finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    image = claim_image(db)
    for _ in range(2):
        finish.finish_image(db, image.id, image.attempt, ARTIFACT)
    assert events(db, job_id).count("job.succeeded") == 1
    assert query(db, "SELECT count(*) FROM usage") == [(2,)]


def test_work_that_kills_its_workers_fails(db: Database, new_job: NewJob) -> None:
    """After three lost leases two units of a job fail at once, and their job with them; before, they tell of each loss."""
    job_id, _ = submit(db, replace(new_job, num_images=2, same_layout=False))
    for number in range(1, work.MAX_LOST + 1):
        execute(db, "UPDATE grid SET not_before = clock_timestamp()")
        claim_grid(db)
        claim_grid(db)
        execute(db, "UPDATE grid SET lease_until = clock_timestamp() - interval '1 s'")
        work.rescue(db, Stage.AR)
        if number < work.MAX_LOST:
            assert query(db, "SELECT DISTINCT error->>'code' FROM grid") == [("worker_lost",)]
    failed = document(db, new_job, job_id)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "poison")
    assert failed["outputs"][0]["status"] == "failed"
    assert sorted(query(db, "SELECT state FROM grid")) == [("canceled",), ("failed",)]


def test_unclaimed_release_comes_back(db: Database, new_job: NewJob) -> None:
    """A release whose message was lost and that nobody claimed is released again."""
    submit(db, new_job)
    assert len(work.release(db, Stage.AR, 1)) == 1
    execute(db, "UPDATE grid SET released_at = clock_timestamp() - interval '31 s'")
    assert work.rescue(db, Stage.AR) == (1, [])
    execute(db, "UPDATE grid SET not_before = clock_timestamp()")
    assert len(work.release(db, Stage.AR, 1)) == 1


def test_retryable_error_waits_and_then_fails(db: Database, new_job: NewJob) -> None:
    """A retryable error is retried with growing delay, a bounded number of times."""
    job_id, _ = submit(db, new_job)
    for number in range(1, finish.MAX_ERRORS + 1):
        execute(db, "UPDATE grid SET not_before = clock_timestamp()")
        grid = claim_grid(db)
        finish.fail(db, Stage.AR, grid.id, grid.attempt, TransientWorkError("ar_oom", "no memory"), retryable=True)
        if number < finish.MAX_ERRORS:
            (delay,) = query(db, "SELECT extract(epoch FROM not_before - clock_timestamp()) FROM grid")[0]
            assert 0.7 * 2 ** (number - 1) < delay < 1.3 * 2 ** (number - 1)
    failed = document(db, new_job, job_id)
    assert failed["error"] == {"code": "ar_oom", "message": "no memory"}


def test_permanent_error_fails_every_job_that_waits(db: Database, new_job: NewJob) -> None:
    """Two jobs that share a grid both fail when it cannot be drawn, and a third one asks for a new grid."""
    both = [submit(db, new_job)[0] for _ in range(2)]
    grid = claim_grid(db)
    finish.fail(db, Stage.AR, grid.id, grid.attempt, PermanentWorkError("unprocessable_prompt", "no"), retryable=False)
    assert [document(db, new_job, job_id)["status"] for job_id in both] == ["failed", "failed"]
    third, _ = submit(db, new_job)
    assert document(db, new_job, third)["status"] == "queued"
    assert claim_grid(db).id != grid.id


def test_one_failed_image_fails_the_job_and_drops_the_rest(db: Database, new_job: NewJob) -> None:
    """When an image fails for good, the job fails, and grids that nobody else wants are canceled."""
    job_id, _ = submit(db, replace(new_job, num_images=3))
    finish_one_grid(db)
    image = claim_image(db)
    finish.fail(db, Stage.DECODER, image.id, image.attempt, PermanentWorkError("decoder_oom", "no"), retryable=False)
    assert document(db, new_job, job_id)["status"] == "failed"
    assert query(db, "SELECT state, count(*) FROM grid GROUP BY 1 ORDER BY 1") == [("canceled", 2), ("done", 1)]
    assert work.release(db, Stage.AR, 10) == {}


def test_cancel_ends_now_and_spares_what_others_want(db: Database, new_job: NewJob) -> None:
    """A canceled job ends at once; a grid that another job waits for goes on, and running work of its own is named."""
    first, _ = submit(db, new_job)
    second, _ = submit(db, new_job)
    grid = claim_grid(db)
    assert jobs.cancel(db, new_job.tenant_id, first) == []
    canceled = document(db, new_job, first)
    assert (canceled["status"], canceled["error"]["code"]) == ("canceled", "canceled_by_user")
    assert work.heartbeat(db, Stage.AR, {(grid.id, grid.attempt)}, LEASE_S) == {(grid.id, grid.attempt)}
    assert jobs.cancel(db, new_job.tenant_id, second) == [grid.id]
    assert work.heartbeat(db, Stage.AR, {(grid.id, grid.attempt)}, LEASE_S) == set()
    with pytest.raises(StaleAttemptError):
        finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    with pytest.raises(RequestError, match="canceled"):
        jobs.cancel(db, new_job.tenant_id, first)
    assert jobs.cancel(db, "ten_other", first) is None


def test_cancel_and_submit_race_strands_nobody(db: Database, new_job: NewJob) -> None:
    """A job that finds a grid at the moment its first job is canceled keeps it, or gets another one."""
    for seed in range(15):
        request = replace(new_job, layout_seed=seed)
        first, _ = submit(db, request)
        got: list[str] = []
        threads = [
            threading.Thread(target=jobs.cancel, args=(db, new_job.tenant_id, first)),
            threading.Thread(target=lambda request=request, got=got: got.append(submit(db, request)[0])),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wanted = (
            "SELECT grid.state, image.state FROM output JOIN image ON image.id = image_id JOIN grid ON grid.id = grid_id WHERE job_id = :id"
        )
        assert query(db, wanted, id=got[0]) == [("ready", "waiting")]


def test_submit_that_holds_the_grid_while_it_ends_gets_it(db: Database, new_job: NewJob) -> None:
    """A finish that waits for a submit's lock, and began before it, makes its image ready too."""
    submit(db, new_job)
    grid = claim_grid(db)
    finishing = threading.Thread(target=finish.finish_grid, args=(db, grid.id, grid.attempt, ARTIFACT, 10))

    def submit_slowly(session: Session) -> None:
        submit_in(session, replace(new_job, steps=new_job.steps + 1), None)
        session.flush()
        finishing.start()
        time.sleep(0.5)

    db.run(submit_slowly)
    finishing.join()
    assert query(db, "SELECT state FROM image") == [("ready",), ("ready",)]


def test_submit_that_holds_the_grid_keeps_it(db: Database, new_job: NewJob) -> None:
    """A cancel that waits for a submit's lock sees the image which that submit wrote."""
    first, _ = submit(db, new_job)
    canceling = threading.Thread(target=jobs.cancel, args=(db, new_job.tenant_id, first))

    def submit_slowly(session: Session) -> None:
        submit_in(session, new_job, None)
        canceling.start()
        time.sleep(0.5)

    db.run(submit_slowly)
    canceling.join()
    assert query(db, "SELECT state FROM grid") == [("ready",)]
    assert query(db, "SELECT status FROM job ORDER BY created_at") == [("canceled",), ("queued",)]


def test_redraw_is_not_canceled_with_another_job(db: Database, new_job: NewJob) -> None:
    """Of two jobs that read a lost grid one is canceled; the other one still gets its picture."""
    first, _ = submit(db, new_job)
    second, _ = submit(db, replace(new_job, seed=2))
    finish_one_grid(db)
    images = [claim_image(db) for _ in range(2)]
    finish.redraw_grid(db, images[0].id, images[0].attempt, ARTIFACT.sha256, "gone")
    jobs.cancel(db, new_job.tenant_id, images[0].job_ids[0])
    finish.redraw_grid(db, images[1].id, images[1].attempt, ARTIFACT.sha256, "gone")
    finish_one_grid(db)
    finish_one_image(db)
    statuses = {document(db, new_job, job_id)["status"] for job_id in (first, second)}
    assert statuses == {"canceled", "succeeded"}


def test_finished_image_is_final(db: Database, new_job: NewJob) -> None:
    """A picture that is stored is never drawn again, whoever writes the row."""
    submit(db, new_job)
    finish_one_grid(db)
    finish_one_image(db)
    with pytest.raises(IntegrityError):
        execute(db, "UPDATE image SET state = 'ready'")


def test_failed_redraw_spares_finished_pictures(db: Database, new_job: NewJob) -> None:
    """A grid that cannot be drawn again fails the jobs which still need it, not one whose picture of it is done."""
    needs_more, _ = submit(db, replace(new_job, num_images=2))
    finish_one_grid(db)
    finish_one_image(db)
    other, _ = submit(db, replace(new_job, steps=9))
    image = claim_image(db)
    finish.redraw_grid(db, image.id, image.attempt, ARTIFACT.sha256, "gone")
    work.release(db, Stage.AR, 10)
    grid = claims.claim_grid(db, "w1", LEASE_S, query(db, "SELECT id FROM grid WHERE seed = 1")[0][0])
    assert grid is not None
    finish.fail(db, Stage.AR, grid.id, grid.attempt, PermanentWorkError("ar_oom", "no"), retryable=False)
    assert document(db, new_job, other)["status"] == "failed"
    assert document(db, new_job, needs_more)["status"] == "running"


def test_heartbeat_of_an_older_attempt_extends_nothing(db: Database, new_job: NewJob) -> None:
    """A stale worker cannot keep the lease of its successor alive."""
    submit(db, new_job)
    first = claim_grid(db)
    assert work.hand_back(db, Stage.AR, first.id, first.attempt)
    second = claim_grid(db)
    before = query(db, "SELECT lease_until FROM grid")
    assert work.heartbeat(db, Stage.AR, {(first.id, first.attempt)}, 3000) == set()
    assert query(db, "SELECT lease_until FROM grid") == before
    assert work.heartbeat(db, Stage.AR, {(second.id, second.attempt)}, 3000) == {(second.id, second.attempt)}


def test_cancel_and_finish_race_has_one_winner(db: Database, new_job: NewJob) -> None:
    """Whatever comes first wins, and the job has exactly one end."""
    for round_ in range(10):
        job_id, _ = submit(db, replace(new_job, seed=round_, layout_seed=round_))
        finish_one_grid(db)
        image = claim_image(db)
        outcomes: list[str] = []

        def run(name: str, write: Callable[[], object], outcomes: list[str] = outcomes) -> None:
            try:
                write()
                outcomes.append(name)
            except (StaleAttemptError, RequestError):
                pass

        writes = [
            ("succeeded", lambda image=image: finish.finish_image(db, image.id, image.attempt, ARTIFACT)),
            ("canceled", lambda job_id=job_id: jobs.cancel(db, new_job.tenant_id, job_id)),
        ]
        threads = [threading.Thread(target=run, args=pair) for pair in writes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes == [document(db, new_job, job_id)["status"]]


def test_images_that_end_together_end_the_job_once(db: Database, new_job: NewJob) -> None:
    """The last of several images that finish at the same moment ends the job."""
    job_id, _ = submit(db, replace(new_job, num_images=6, same_layout=True))
    finish_one_grid(db)
    claims = [claim_image(db) for _ in range(6)]
    threads = [threading.Thread(target=finish.finish_image, args=(db, claim.id, claim.attempt, ARTIFACT)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert document(db, new_job, job_id)["status"] == "succeeded"
    assert events(db, job_id)[-1] == "job.succeeded"


def test_deadline_ends_a_job(db: Database, new_job: NewJob) -> None:
    """A job whose deadline has passed expires; one without a deadline does not."""
    late, _ = submit(db, replace(new_job, deadline=datetime.now(UTC) - timedelta(seconds=1)))
    other, _ = submit(db, new_job)
    jobs.expire(db)
    assert document(db, new_job, late)["status"] == "expired"
    assert document(db, new_job, other)["status"] == "queued"


def test_hand_back_is_ready_at_once(db: Database, new_job: NewJob) -> None:
    """Work that a worker hands back at shutdown can be claimed again right away and counts as no failure."""
    submit(db, new_job)
    first = claim_grid(db)
    assert work.hand_back(db, Stage.AR, first.id, first.attempt)
    assert claim_grid(db).attempt == first.attempt + 1
    assert query(db, "SELECT num_lost, num_errors FROM grid") == [(0, 0)]


def test_lost_grid_is_drawn_again(db: Database, new_job: NewJob) -> None:
    """An image whose grid is gone waits for a new one; so do other images of that grid; a newer grid is left alone."""
    job_id, _ = submit(db, replace(new_job, num_images=2, same_layout=True))
    finish_one_grid(db)
    first = claim_image(db)
    finish.redraw_grid(db, first.id, first.attempt, ARTIFACT.sha256, "gone")
    assert query(db, "SELECT state FROM image") == [("waiting",), ("waiting",)]
    again = claim_grid(db)
    finish.finish_grid(db, again.id, again.attempt, replace(ARTIFACT, sha256="cd" * 32), 10)
    second = claim_image(db)
    finish.redraw_grid(db, second.id, second.attempt, ARTIFACT.sha256, "gone")
    assert query(db, "SELECT state FROM grid") == [("done",)]
    for _ in range(2):
        finish_one_image(db)
    assert document(db, new_job, job_id)["status"] == "succeeded"


def test_idempotency_key_makes_one_job(db: Database, new_job: NewJob) -> None:
    """Many requests at once with one key make one job; the key with another request is refused."""
    key = Idempotency("POST /v1/jobs", "k1", "f1")
    got: list[tuple[str, bool]] = []
    threads = [threading.Thread(target=lambda: got.append(submit(db, new_job, key))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job_id for job_id, _ in got}) == 1
    assert sorted(replayed for _, replayed in got) == [False] + [True] * 7
    assert query(db, "SELECT count(*) FROM job") == [(1,)]
    with pytest.raises(RequestError) as refused:
        submit(db, new_job, replace(key, fingerprint="f2"))
    assert refused.value.code == "idempotency_mismatch"


def test_tenants_do_not_see_each_other(db: Database, new_job: NewJob) -> None:
    """Reads of another tenant's job find nothing."""
    job_id, _ = submit(db, new_job)
    assert jobs.get_job(db, "ten_other", job_id, lambda ids: {}) is None
    assert jobs.get_result(db, "ten_other", job_id, 0) is None
    assert jobs.list_jobs(db, "ten_other", jobs.JobFilter(), Page(10), lambda ids: {}) == ([], False)


def test_list_pages_without_gaps(db: Database, new_job: NewJob) -> None:
    """Pages follow one another in both directions without a job twice or missing."""
    made = [submit(db, replace(new_job, layout_seed=seed, custom_id=str(seed % 2)))[0] for seed in range(7)]
    for newest_first in (True, False):
        seen: list[str] = []
        more = True
        while more:
            page = Page(3, seen[-1] if seen else None, newest_first)
            found, more = jobs.list_jobs(db, new_job.tenant_id, jobs.JobFilter(), page, lambda ids: {})
            seen += [job["id"] for job in found]
        assert seen == (made[::-1] if newest_first else made)
    odd, _ = jobs.list_jobs(db, new_job.tenant_id, jobs.JobFilter(custom_id="1"), Page(10, newest_first=False), lambda ids: {})
    assert [job["id"] for job in odd] == made[1::2]
    queued, _ = jobs.list_jobs(db, new_job.tenant_id, jobs.JobFilter((JobStatus.SUCCEEDED,)), Page(10, newest_first=False), lambda ids: {})
    assert queued == []


def test_progress_is_that_of_the_image_furthest_behind(db: Database, new_job: NewJob) -> None:
    """Live progress shows while work runs; a finished stage counts as done."""
    job_id, _ = submit(db, new_job)
    grid = claim_grid(db)

    def progress(live: dict[str, tuple[str, int, int]]) -> dict[str, Any]:
        found = jobs.get_job(db, new_job.tenant_id, job_id, lambda ids: {work_id: live[work_id] for work_id in ids if work_id in live})
        assert found is not None
        return dict(found["progress"])

    assert progress({}) == {"phase": "draft", "done": 0, "total": 247}
    assert progress({grid.id: ("grid", 2, 6)}) == {"phase": "grid", "done": 2, "total": 6}
    finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    assert progress({grid.id: ("grid", 2, 6)}) == {"phase": "denoise", "done": 0, "total": 4}
    image = claim_image(db)
    assert progress({image.id: ("denoise", 3, 4)}) == {"phase": "denoise", "done": 3, "total": 4}


def test_database_allows_the_same_moves(db: Database) -> None:
    """The moves that Postgres checks are those of shared/states.py."""
    machines: dict[str, tuple[Any, Any]] = {
        "grid": (NEW_GRID, GRID_MOVES),
        "image": (NEW_IMAGE, IMAGE_MOVES),
        "job": ({JobStatus.QUEUED}, JOB_MOVES),
    }
    expected = {(machine, "new", state) for machine, (new, _) in machines.items() for state in new}
    expected |= {(name, origin, target) for name, (_, moves) in machines.items() for origin, targets in moves.items() for target in targets}
    assert set(query(db, "SELECT machine, origin, target FROM allowed_move")) == expected


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE grid SET state = 'done'",
        "UPDATE image SET state = 'running'",
        "UPDATE job SET status = 'succeeded', version = version + 1",
        "UPDATE job SET status = 'nonsense', version = version + 1",
        "UPDATE job SET custom_id = 'x'",
        "UPDATE event SET type = 'job.failed'",
        "DELETE FROM event",
        "UPDATE grid SET attempt = -1",
        "UPDATE grid SET state = 'waiting'",
        "UPDATE job SET status = 'failed', version = version + 1, completed_at = now()",
        "UPDATE image SET grid_id = 'tok_none'",
        "INSERT INTO event (id, tenant_id, seq, job_id, type, data) SELECT 'evt_x', tenant_id, 1, id, 'job.queued', '{}' FROM job",
    ],
)
def test_database_refuses_wrong_writes(db: Database, new_job: NewJob, statement: str) -> None:
    """A write past the lifecycle that breaks an invariant fails in Postgres itself."""
    submit(db, new_job)
    with pytest.raises(IntegrityError):
        execute(db, statement)


def test_units_released_together_are_claimed_by_age(db: Database, new_job: NewJob) -> None:
    """One release of many: workers take the oldest first, whatever the order in which the rows lie."""
    for number in range(8):
        submit(db, replace(new_job, layout_seed=number))
    # Rows that were written again lie behind those that were not.
    db.run(lambda session: session.execute(text("UPDATE grid SET top_p = top_p WHERE seed < 4")))
    assert len(work.release(db, Stage.AR, 8)) == 8
    claimed = [claims.claim_grid(db, "w1", LEASE_S) for _ in range(8)]
    assert [unit.seed for unit in claimed if unit is not None] == list(range(8))


def test_a_dead_connection_costs_nothing(db: Database, new_job: NewJob) -> None:
    """Connections that Postgres has ended while they lay in the pool are noticed by the next transaction, which succeeds on a new one."""
    submit(db, new_job)
    kill = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")

    def from_outside(session: Session) -> None:
        session.execute(kill)

    outside = Database(db.engine.url.render_as_string(hide_password=False), pool_size=1)
    outside.run(from_outside)
    outside.close()
    assert len(work.release(db, Stage.AR, 1)) == 1


def test_a_claim_may_begin_its_jobs_later(db: Database, new_job: NewJob) -> None:
    """The engine has the work first; a job is still queued until then, runs from then on, and is told of once."""
    job_id, _ = submit(db, new_job)
    work.release(db, Stage.AR, 10)
    grid = claims.claim_grid(db, "w1", LEASE_S, begin_later=True)
    assert grid is not None
    assert grid.new_job_ids == grid.job_ids == (job_id,)
    assert document(db, new_job, job_id)["status"] == "queued"
    for _ in range(2):
        claims.begin(db, grid.new_job_ids)
    assert document(db, new_job, job_id)["status"] == "running"
    assert events(db, job_id) == ["job.queued", "job.started"]


def test_who_finishes_work_begins_its_jobs_at_the_latest(db: Database, new_job: NewJob) -> None:
    """A worker that could not say so in time leaves no gap in what its jobs' events tell."""
    job_id, _ = submit(db, new_job)
    work.release(db, Stage.AR, 10)
    grid = claims.claim_grid(db, "w1", LEASE_S, begin_later=True)
    assert grid is not None
    finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 16)
    finish_one_image(db)
    assert events(db, job_id) == ["job.queued", "job.started", "job.tokens_ready", "job.succeeded"]


def test_begin_leaves_ended_jobs_alone(db: Database, new_job: NewJob) -> None:
    """A job that was canceled between claim and begin stays canceled."""
    job_id, _ = submit(db, new_job)
    work.release(db, Stage.AR, 10)
    grid = claims.claim_grid(db, "w1", LEASE_S, begin_later=True)
    assert grid is not None
    jobs.cancel(db, new_job.tenant_id, job_id)
    claims.begin(db, grid.new_job_ids)
    assert events(db, job_id) == ["job.queued", "job.canceled"]


def test_a_finish_that_died_before_it_told_is_told_by_the_rescue(db: Database, new_job: NewJob) -> None:
    """The images go on at once; the event comes later, once, and never after the job's end."""
    first, _ = submit(db, new_job)
    second, _ = submit(db, replace(new_job, prompt="Another"))
    for _ in range(2):
        grid = claim_grid(db)
        finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 16, tell_later=True)
    assert "job.tokens_ready" not in events(db, first)
    assert finish.untold_grids(db, 10) == []
    execute(db, "UPDATE grid SET finished_at = finished_at - interval '10 s'")
    untold = finish.untold_grids(db, 10)
    assert len(untold) == 2
    finish_one_image(db)
    for grid_id in untold * 2:
        finish.tell_tokens(db, grid_id)
    told = sorted((events(db, job_id) for job_id in (first, second)), key=len)
    assert told[0] == ["job.queued", "job.started", "job.succeeded"] or told[0] == ["job.queued", "job.started", "job.tokens_ready"]
    assert [of_job.count("job.tokens_ready") for of_job in told] in ([0, 1], [1, 0])
    assert finish.untold_grids(db, 10) == []
