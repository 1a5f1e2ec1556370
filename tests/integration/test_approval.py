"""Draft, approve, finish: layouts that wait for their customer, through every answer, race and end."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from shared.db import ConstraintError, Database
from shared.errors import RequestError, StaleAttemptError
from shared.lifecycle import claims, drafts, finish, jobs, work
from shared.lifecycle.approval import MAX_REJECTIONS, approve, reject
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.submit import submit
from shared.states import Stage
from tests.ledger import ARTIFACT, at_once, claim_grid, document, events, execute, finish_one_grid, finish_one_image, query

DRAFT = tuple(range(13 * 19))


@pytest.fixture
def asking(new_job: NewJob) -> NewJob:
    """A request whose draft is to be approved."""
    return replace(new_job, approval_s=600)


def hold_one_grid(db: Database, draft: tuple[int, ...] = DRAFT) -> claims.ClaimedGrid:
    grid = claim_grid(db)
    assert grid.draft_only
    drafts.hold_grid(db, grid.id, grid.attempt, draft)
    return grid


def code_of(error: Any) -> str:
    assert isinstance(error, RequestError)
    return error.code


def test_approved_draft_becomes_a_picture(db: Database, asking: NewJob) -> None:
    """The job stays queued while its draft is made and waits, asks once, and goes on from the stored draft when approved."""
    job_id, _ = submit(db, asking)
    assert document(db, asking, job_id)["params"]["approve"]
    grid = hold_one_grid(db)
    waiting = document(db, asking, job_id)
    assert (waiting["status"], waiting["stage"]) == ("queued", "ar")
    assert waiting["progress"] == {"phase": "awaiting_approval", "done": 0, "total": 1}
    decide_in = datetime.fromisoformat(waiting["approval_deadline"]) - datetime.now(UTC)
    assert timedelta(seconds=590) < decide_in < timedelta(seconds=600)
    assert waiting["usage"] == {"text_tokens": 0, "image_tokens": 0, "ar_tokens": len(DRAFT), "decoder_steps": 0, "images": 0}
    assert work.release(db, Stage.AR, 10) == {}

    assert approve(db, asking.tenant_id, job_id)
    going = document(db, asking, job_id)
    assert (going["status"], going["approval_deadline"]) == ("queued", None)
    assert going["progress"]["phase"] == "grid"
    again = claim_grid(db)
    assert (again.id, again.attempt, again.draft_token_ids, again.draft_only) == (grid.id, grid.attempt + 1, DRAFT, False)
    assert document(db, asking, job_id)["status"] == "running"
    finish.finish_grid(db, again.id, again.attempt, ARTIFACT, 6)
    finish_one_image(db)
    done = document(db, asking, job_id)
    assert (done["status"], done["usage"]["ar_tokens"]) == ("succeeded", len(DRAFT) + 6)
    assert events(db, job_id) == [
        "job.queued",
        "job.awaiting_approval",
        "job.approved",
        "job.started",
        "job.tokens_ready",
        "job.succeeded",
    ]
    assert query(db, "SELECT stage, units FROM usage ORDER BY id") == [("ar", len(DRAFT)), ("ar", 6), ("decoder", 4)]


def test_rejected_draft_is_made_anew(db: Database, asking: NewJob) -> None:
    """A rejection drops draft and preview, takes the new layout seed everywhere, and counts the tokens of both drafts."""
    job_id, _ = submit(db, replace(asking, num_images=2, layout_seed=5))
    for _ in range(2):
        hold_one_grid(db)
    assert reject(db, asking.tenant_id, job_id, 6)
    drawing = document(db, asking, job_id)
    assert drawing["progress"] == {"phase": "draft", "done": 0, "total": 2 * len(DRAFT)}
    assert drawing["params"]["layout_seed"] == 6
    assert [output["layout_seed"] for output in drawing["outputs"]] == [6, 7]
    assert query(db, "SELECT draft_token_ids, wants_preview, num_rejected FROM grid") == [(None, False, 1)] * 2
    for _ in range(2):
        grid = hold_one_grid(db, DRAFT[::-1])
        assert grid.draft_token_ids == ()
        assert grid.seed in (6, 7)
    assert document(db, asking, job_id)["usage"]["ar_tokens"] == 4 * len(DRAFT)
    assert approve(db, asking.tenant_id, job_id)
    assert claim_grid(db).draft_token_ids == DRAFT[::-1]
    assert events(db, job_id) == [
        "job.queued",
        "job.awaiting_approval",
        "job.rejected",
        "job.awaiting_approval",
        "job.approved",
        "job.started",
    ]


def test_images_of_one_layout_wait_together(db: Database, asking: NewJob) -> None:
    """With `same_layout` there is one draft for all images, before and after a rejection."""
    job_id, _ = submit(db, replace(asking, num_images=3, same_layout=True))
    hold_one_grid(db)
    assert reject(db, asking.tenant_id, job_id, 77)
    assert [output["layout_seed"] for output in document(db, asking, job_id)["outputs"]] == [77] * 3
    assert query(db, "SELECT count(*) FROM grid") == [(1,)]


def test_job_asks_when_its_last_draft_waits(db: Database, asking: NewJob) -> None:
    """A job with two layouts asks once, when both drafts are there, also if they come at the same moment."""
    job_id, _ = submit(db, replace(asking, num_images=2))
    hold_one_grid(db)
    assert document(db, asking, job_id)["approval_deadline"] is None
    with pytest.raises(RequestError) as early:
        approve(db, asking.tenant_id, job_id)
    assert early.value.code == "not_awaiting_approval"
    hold_one_grid(db)
    assert events(db, job_id) == ["job.queued", "job.awaiting_approval"]
    for seed in range(10, 16):
        job_id, _ = submit(db, replace(asking, num_images=2, layout_seed=seed))
        grids = [claim_grid(db) for _ in range(2)]
        at_once([lambda grid=grid: drafts.hold_grid(db, grid.id, grid.attempt, DRAFT) for grid in grids])
        assert events(db, job_id) == ["job.queued", "job.awaiting_approval"]
        jobs.cancel(db, asking.tenant_id, job_id)


def test_nobody_shares_a_grid_that_waits(db: Database, asking: NewJob, new_job: NewJob) -> None:
    """Equal requests with and without approval have grids and images of their own."""
    for request in (asking, new_job, asking):
        submit(db, request)
    assert query(db, "SELECT count(DISTINCT key), count(*) FILTER (WHERE needs_approval) FROM grid") == [(3, 2)]
    assert query(db, "SELECT count(DISTINCT key) FROM image") == [(3,)]


def test_approve_twice_is_told(db: Database, asking: NewJob) -> None:
    """Of several answers at once one counts; the others hear that nothing waits any more."""
    for answers in (
        [lambda job_id: approve(db, asking.tenant_id, job_id)] * 4,
        [lambda job_id: reject(db, asking.tenant_id, job_id, 99)] * 4,
        [lambda job_id: approve(db, asking.tenant_id, job_id), lambda job_id: reject(db, asking.tenant_id, job_id, 99)],
    ):
        job_id, _ = submit(db, asking)
        hold_one_grid(db)
        results = at_once([lambda answer=answer, job_id=job_id: answer(job_id) for answer in answers])
        assert [result for result in results if result is True] == [True]
        assert {code_of(result) for result in results if result is not True} == {"not_awaiting_approval"}
        assert query(db, "SELECT state, num_rejected <= 1 FROM grid WHERE state <> 'canceled'") == [("ready", True)]
        jobs.cancel(db, asking.tenant_id, job_id)


def test_wrong_moments(db: Database, asking: NewJob, new_job: NewJob) -> None:
    """A job without a waiting draft cannot be approved or rejected: neither before nor after. Foreign ones are unknown."""
    job_id, _ = submit(db, asking)
    plain, _ = submit(db, new_job)

    def refused(which: str) -> set[str]:
        codes = set()
        for call in (lambda: approve(db, asking.tenant_id, which), lambda: reject(db, asking.tenant_id, which, 9)):
            with pytest.raises(RequestError) as error:
                call()
            codes.add(error.value.code)
        return codes

    assert refused(job_id) == refused(plain) == {"not_awaiting_approval"}
    assert not approve(db, "ten_other", job_id)
    assert not reject(db, "ten_other", job_id, 9)
    assert not approve(db, asking.tenant_id, "job_none")
    jobs.cancel(db, asking.tenant_id, job_id)
    assert refused(job_id) == {"already_terminal"}


def test_same_layout_again_is_refused(db: Database, asking: NewJob) -> None:
    """A rejection that asks for the very layout it rejects is refused, and so is the one too many."""
    job_id, _ = submit(db, asking)
    hold_one_grid(db)
    with pytest.raises(RequestError) as same:
        reject(db, asking.tenant_id, job_id, asking.layout_seed)
    assert same.value.param == "layout_seed"
    execute(db, "UPDATE grid SET num_rejected = :most", most=MAX_REJECTIONS)
    with pytest.raises(RequestError) as many:
        reject(db, asking.tenant_id, job_id, 9)
    assert many.value.code == "too_many_drafts"
    assert approve(db, asking.tenant_id, job_id)


def test_draft_that_nobody_approves_expires(db: Database, asking: NewJob) -> None:
    """When the time to decide is over the job expires with a reason of its own; an answer that comes after is refused."""
    job_id, _ = submit(db, replace(asking, approval_s=0.05))
    hold_one_grid(db)
    execute(db, "SELECT pg_sleep(0.1)")
    for call in (lambda: approve(db, asking.tenant_id, job_id), lambda: reject(db, asking.tenant_id, job_id, 9)):
        with pytest.raises(RequestError) as late:
            call()
        assert late.value.code == "not_awaiting_approval"
    assert jobs.expire(db) == []
    expired = document(db, asking, job_id)
    assert (expired["status"], expired["error"]["code"]) == ("expired", "approval_expired")
    assert expired["usage"]["ar_tokens"] == len(DRAFT)
    assert query(db, "SELECT state FROM grid") == [("canceled",)]
    assert events(db, job_id)[-1] == "job.expired"


def test_deadline_holds_while_a_draft_waits(db: Database, asking: NewJob) -> None:
    """The job's own deadline is never later than that of its approval, and ends it while it waits."""
    deadline = datetime.now(UTC) + timedelta(seconds=60)
    job_id, _ = submit(db, replace(asking, deadline=deadline))
    hold_one_grid(db)
    waiting = document(db, asking, job_id)
    assert waiting["approval_deadline"] == waiting["deadline"]
    execute(
        db,
        "UPDATE job SET deadline = deadline - interval '2 min', approval_deadline = deadline - interval '2 min', version = version + 1",
    )
    jobs.expire(db)
    assert document(db, asking, job_id)["error"]["code"] == "deadline_exceeded"


def test_cancel_ends_what_waits(db: Database, asking: NewJob) -> None:
    """A job is canceled while its draft waits, and at the moment of its approval one of the two wins."""
    job_id, _ = submit(db, asking)
    hold_one_grid(db)
    assert jobs.cancel(db, asking.tenant_id, job_id) == []
    assert query(db, "SELECT state FROM grid") == [("canceled",)]
    for seed in range(6):
        job_id, _ = submit(db, replace(asking, layout_seed=seed))
        hold_one_grid(db)
        approved, canceled = at_once(
            [
                lambda job_id=job_id: approve(db, asking.tenant_id, job_id),
                lambda job_id=job_id: jobs.cancel(db, asking.tenant_id, job_id),
            ]
        )
        assert canceled == []
        assert approved is True or code_of(approved) == "already_terminal"
        assert document(db, asking, job_id)["status"] == "canceled"
    assert work.release(db, Stage.AR, 10) == {}


def test_worker_that_dies_before_the_hold_leaves_its_draft(db: Database, asking: NewJob) -> None:
    """A draft that was recorded survives its worker: the successor is given it, and holds it without computing it again."""
    job_id, _ = submit(db, asking)
    dead = claim_grid(db)
    drafts.record_draft(db, dead.id, dead.attempt, DRAFT)
    execute(db, "UPDATE grid SET lease_until = clock_timestamp() - interval '1 s'")
    work.rescue(db, Stage.AR)
    execute(db, "UPDATE grid SET not_before = clock_timestamp()")
    assert document(db, asking, job_id)["status"] == "queued"
    successor = claim_grid(db)
    assert (successor.draft_token_ids, successor.draft_only) == (DRAFT, True)
    for late in (drafts.record_draft, drafts.hold_grid):
        with pytest.raises(StaleAttemptError):
            late(db, dead.id, dead.attempt, DRAFT)
    for _ in range(2):  # an unknown commit is repeated
        drafts.hold_grid(db, successor.id, successor.attempt, DRAFT)
    assert events(db, job_id).count("job.awaiting_approval") == 1


def test_held_work_has_no_lease(db: Database, asking: NewJob) -> None:
    """A grid that waits is neither rescued nor kept alive, and can only be held with its draft."""
    submit(db, asking)
    grid = hold_one_grid(db)
    assert work.heartbeat(db, Stage.AR, {(grid.id, grid.attempt)}, 30) == set()
    assert work.rescue(db, Stage.AR) == (0, [])
    with pytest.raises(IntegrityError):
        execute(db, "UPDATE grid SET draft_token_ids = NULL")
    with pytest.raises(IntegrityError):
        execute(db, "UPDATE grid SET state = 'released', released_at = now()")


def test_unapproved_grid_cannot_be_finished(db: Database, asking: NewJob) -> None:
    """A worker that knows no approval does not get past it: the ledger refuses a finished grid that nobody approved."""
    job_id, _ = submit(db, asking)
    grid = claim_grid(db)
    with pytest.raises(ConstraintError):
        finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    assert document(db, asking, job_id)["status"] == "queued"


def test_draft_is_kept_for_whoever_goes_on(db: Database, new_job: NewJob) -> None:
    """Without approval too, a recorded draft is given to the next attempt, and to a redraw of a lost grid."""
    submit(db, new_job)
    first = claim_grid(db)
    assert (first.draft_token_ids, first.draft_only) == ((), False)
    for _ in range(2):
        drafts.record_draft(db, first.id, first.attempt, DRAFT)
    work.hand_back(db, Stage.AR, first.id, first.attempt)
    assert query(db, "SELECT cardinality(draft_token_ids) FROM grid") == [(len(DRAFT),)]
    second = claim_grid(db)
    assert second.draft_token_ids == DRAFT
    finish.finish_grid(db, second.id, second.attempt, ARTIFACT, 6)
    work.release(db, Stage.DECODER, 1)
    image = claims.claim_image(db, "w", 30)
    assert image is not None
    finish.redraw_grid(db, image.id, image.attempt, ARTIFACT.sha256, "gone")
    assert claim_grid(db).draft_token_ids == DRAFT
    with pytest.raises(StaleAttemptError):
        drafts.record_draft(db, second.id, second.attempt, DRAFT)


def test_redecode_of_an_approved_job(db: Database, asking: NewJob) -> None:
    """The layout that was approved can be drawn once more without asking again."""
    job_id, _ = submit(db, asking)
    hold_one_grid(db)
    approve(db, asking.tenant_id, job_id)
    finish_one_grid(db)
    finish_one_image(db)
    again, _ = submit(db, replace(asking, approval_s=None, redecode_of=job_id, steps=9))
    assert document(db, asking, again)["usage"]["ar_tokens"] == 0
    finish_one_image(db)
    assert document(db, asking, again)["status"] == "succeeded"
