"""Another run of a job that did not succeed, on a real Postgres."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from shared.db import Database
from shared.errors import PermanentWorkError, RequestError, StaleAttemptError, TransientWorkError
from shared.lifecycle import drafts, finish, jobs, work
from shared.lifecycle.approval import approve
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.retry import retry
from shared.lifecycle.reuse import Cache
from shared.lifecycle.submit import submit
from shared.states import Stage
from tests.ledger import (
    ARTIFACT,
    at_once,
    claim_grid,
    claim_image,
    document,
    events,
    execute,
    finish_everything,
    finish_one_grid,
    finish_one_image,
    query,
)


def fail_one(db: Database, stage: Stage) -> None:
    unit = claim_grid(db) if stage is Stage.AR else claim_image(db)
    finish.fail(db, stage, unit.id, unit.attempt, PermanentWorkError("decoder_oom", "too large"), retryable=False)


def test_a_failed_job_runs_again(db: Database, new_job: NewJob) -> None:
    """The failed work gets another attempt, finished images stay, and each run has one end."""
    job_id, _ = submit(db, replace(new_job, num_images=2, same_layout=True))
    finish_one_grid(db)
    finish_one_image(db)
    fail_one(db, Stage.DECODER)
    before = document(db, new_job, job_id)
    assert before["status"] == "failed"
    kept = next(output for output in before["outputs"] if output["status"] == "succeeded")

    assert retry(db, new_job.tenant_id, job_id) is not None
    again = document(db, new_job, job_id)
    assert (again["status"], again["error"], again["completed_at"], again["started_at"]) == ("queued", None, None, None)
    assert again["version"] > before["version"]
    assert again["outputs"][kept["index"]] == kept
    finish_one_image(db)
    done = document(db, new_job, job_id)
    assert done["status"] == "succeeded"
    tried = [[attempt["attempt"], attempt["state"]] for attempt in done["attempts"] if attempt["stage"] == "decoder"]
    assert sorted(tried) == [[1, "done"], [1, "failed"], [2, "done"]]
    assert events(db, job_id) == [
        "job.queued",
        "job.started",
        "job.tokens_ready",
        "job.failed",
        "job.queued",
        "job.started",
        "job.succeeded",
    ]
    assert query(db, "SELECT run FROM event WHERE job_id = :id AND type IN ('job.failed', 'job.succeeded') ORDER BY seq", id=job_id) == [
        (1,),
        (2,),
    ]


def test_a_failed_layout_is_written_again(db: Database, new_job: NewJob) -> None:
    """A job whose layout failed begins at the layout; the errors of the first run do not count in the second."""
    job_id, _ = submit(db, new_job)
    for _ in range(3):
        fail_one(db, Stage.AR)
        assert document(db, new_job, job_id)["status"] == "failed"
        retry(db, new_job.tenant_id, job_id)
    finish_one_grid(db)
    finish_one_image(db)
    done = document(db, new_job, job_id)
    assert done["status"] == "succeeded"
    assert [attempt["attempt"] for attempt in done["attempts"]] == [1, 2, 3, 4, 1]


def test_all_attempts_are_told(db: Database, new_job: NewJob) -> None:
    """Who made each attempt, when it began and ended, and why it did not succeed; an error is told of the attempt that had it alone."""
    job_id, _ = submit(db, new_job)
    finish_one_grid(db)
    lost = claim_image(db)
    execute(db, "UPDATE image SET lease_until = created_at")
    work.rescue(db, Stage.DECODER)
    execute(db, "UPDATE image SET not_before = created_at")
    broken = claim_image(db)
    finish.fail(db, Stage.DECODER, broken.id, broken.attempt, TransientWorkError("decoder_oom", "too large"), retryable=True)
    execute(db, "UPDATE image SET not_before = created_at")
    given_back = claim_image(db)
    work.hand_back(db, Stage.DECODER, given_back.id, given_back.attempt)
    assert document(db, new_job, job_id)["attempts"][-1]["state"] == "ready"
    claim_image(db)
    jobs.cancel(db, new_job.tenant_id, job_id)
    retry(db, new_job.tenant_id, job_id)
    last = claim_image(db)
    found = [attempt for attempt in document(db, new_job, job_id)["attempts"] if attempt["stage"] == "decoder"]
    assert [(attempt["attempt"], attempt["state"], (attempt["error"] or {}).get("code")) for attempt in found] == [
        (lost.attempt, "failed", "worker_lost"),
        (broken.attempt, "failed", "decoder_oom"),
        (given_back.attempt, "ready", None),
        (4, "canceled", None),
        (last.attempt, "running", None),
    ]
    assert {attempt["worker"] for attempt in found} == {"w2"}
    times = [time for attempt in found for time in (attempt["started_at"], attempt["finished_at"]) if time is not None]
    assert len(times) == 9
    assert times == sorted(times)
    # Whoever comes now has waited for none of those that are over.
    later, _ = submit(db, new_job)
    assert [attempt["attempt"] for attempt in document(db, new_job, later)["attempts"]] == [last.attempt]
    finish.finish_image(db, last.id, last.attempt, ARTIFACT)
    assert query(db, "SELECT past_attempts FROM grid") == [([],)]


def test_a_canceled_job_goes_on_where_it_was(db: Database, new_job: NewJob) -> None:
    """Canceled after its layout, it needs only the image; what the stopped worker brings late is dropped."""
    job_id, _ = submit(db, new_job)
    finish_one_grid(db)
    late = claim_image(db)
    jobs.cancel(db, new_job.tenant_id, job_id)
    retried = retry(db, new_job.tenant_id, job_id)
    assert retried is not None
    assert late.id in retried.work_ids
    with pytest.raises(StaleAttemptError):
        finish.finish_image(db, late.id, late.attempt, ARTIFACT)
    image = claim_image(db)
    assert (image.id, image.attempt) == (late.id, late.attempt + 1)
    finish.finish_image(db, image.id, image.attempt, ARTIFACT)
    assert document(db, new_job, job_id)["status"] == "succeeded"


def test_an_expired_job_loses_its_deadline(db: Database, new_job: NewJob) -> None:
    """A deadline that has passed would end the next run at once: it is dropped, or replaced by the one of the request."""
    for deadline in (None, datetime.now(UTC) + timedelta(hours=1)):
        job_id, _ = submit(db, replace(new_job, prompt=str(deadline), deadline=datetime.now(UTC) - timedelta(seconds=1)))
        jobs.expire(db)
        assert document(db, new_job, job_id)["status"] == "expired"
        retry(db, new_job.tenant_id, job_id, deadline)
        jobs.expire(db)
        assert document(db, new_job, job_id)["status"] == "queued"
        assert (document(db, new_job, job_id)["deadline"] is None) == (deadline is None)


def test_what_is_there_meanwhile_is_taken(db: Database, new_job: NewJob) -> None:
    """If an equal job has drawn the image since, or is drawing it, the retried job has it too and draws nothing."""
    first, _ = submit(db, new_job)
    fail_one(db, Stage.AR)
    second, _ = submit(db, new_job)
    retry(db, new_job.tenant_id, first)
    assert query(db, "SELECT count(DISTINCT image_id) FROM output") == [(1,)]
    finish_one_grid(db)
    finish_one_image(db)
    assert {document(db, new_job, job_id)["status"] for job_id in (first, second)} == {"succeeded"}

    third, _ = submit(db, replace(new_job, prompt="B"))
    jobs.cancel(db, new_job.tenant_id, third)
    submit(db, replace(new_job, prompt="B"))
    finish_one_grid(db)
    finish_one_image(db)
    retry(db, new_job.tenant_id, third)
    done = document(db, new_job, third)
    assert (done["status"], done["outputs"][0]["cached"]) == ("succeeded", True)
    assert events(db, third) == ["job.queued", "job.canceled", "job.queued", "job.succeeded"]


def test_what_goes_on_for_another_job_is_joined(db: Database, new_job: NewJob) -> None:
    """A canceled job whose image another job still waits for waits for it again."""
    first, _ = submit(db, new_job)
    second, _ = submit(db, new_job)
    grid = claim_grid(db)
    jobs.cancel(db, new_job.tenant_id, first)
    retry(db, new_job.tenant_id, first)
    assert document(db, new_job, first)["status"] == "running"
    finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    finish_one_image(db)
    assert {document(db, new_job, job_id)["status"] for job_id in (first, second)} == {"succeeded"}


def test_a_layout_that_another_job_writes_is_taken(db: Database, new_job: NewJob) -> None:
    """Of a job with other steps only the layout is equal: the retried job's image is drawn from the other one's layout."""
    first, _ = submit(db, new_job)
    fail_one(db, Stage.AR)
    second, _ = submit(db, replace(new_job, steps=9))
    retry(db, new_job.tenant_id, first)
    assert query(db, "SELECT count(*) FROM grid WHERE state = 'ready'") == [(1,)]
    finish_one_grid(db)
    finish_one_image(db)
    finish_one_image(db)
    assert {document(db, new_job, job_id)["status"] for job_id in (first, second)} == {"succeeded"}


def test_private_work_stays_private(db: Database, new_job: NewJob) -> None:
    """A job that shares nothing shares nothing in its second run either."""
    private = replace(new_job, cache=Cache.OFF)
    first, _ = submit(db, private)
    fail_one(db, Stage.AR)
    submit(db, private)
    retry(db, new_job.tenant_id, first)
    assert query(db, "SELECT count(*) FROM grid WHERE state = 'ready'") == [(2,)]


def test_a_draft_waits_for_approval_again(db: Database, new_job: NewJob) -> None:
    """A job that expired while its draft waited keeps the draft and waits once more; an approved one does not."""
    job_id, _ = submit(db, replace(new_job, approval_s=60))
    grid = claim_grid(db)
    drafts.hold_grid(db, grid.id, grid.attempt, [1] * 4)
    execute(db, "UPDATE job SET approval_deadline = clock_timestamp() - interval '1 s', version = version + 1")
    jobs.expire(db)
    retry(db, new_job.tenant_id, job_id)
    grid = claim_grid(db)
    assert (grid.draft_only, grid.draft_token_ids) == (True, (1, 1, 1, 1))
    drafts.hold_grid(db, grid.id, grid.attempt, grid.draft_token_ids)
    assert approve(db, new_job.tenant_id, job_id)
    finish_one_grid(db)
    finish_one_image(db)
    assert document(db, new_job, job_id)["status"] == "succeeded"


def test_only_what_did_not_succeed(db: Database, new_job: NewJob) -> None:
    """A job that is under way or has succeeded is refused, an unknown or foreign one not found; nothing changes."""
    job_id, _ = submit(db, new_job)
    for _ in range(2):
        with pytest.raises(RequestError) as refused:
            retry(db, new_job.tenant_id, job_id)
        assert refused.value.code == "not_retryable"
        finish_one_grid(db) if document(db, new_job, job_id)["status"] == "queued" else None
    finish_one_image(db)
    before = document(db, new_job, job_id)
    with pytest.raises(RequestError) as refused:
        retry(db, new_job.tenant_id, job_id)
    assert refused.value.code == "not_retryable"
    assert document(db, new_job, job_id) == before
    assert retry(db, "ten_other", job_id) is None
    assert retry(db, new_job.tenant_id, "job_" + "0" * 26) is None


def test_of_many_retries_one_counts(db: Database, new_job: NewJob) -> None:
    """Eight at once begin one run; the others hear that it is under way."""
    job_id, _ = submit(db, new_job)
    fail_one(db, Stage.AR)
    outcomes = at_once([lambda: retry(db, new_job.tenant_id, job_id)] * 8)
    refused = [outcome for outcome in outcomes if isinstance(outcome, RequestError)]
    assert len(refused) == 7, outcomes
    assert {error.code for error in refused} == {"not_retryable"}
    assert query(db, "SELECT run FROM job") == [(2,)]


def test_retries_and_equal_submits_at_once(db: Database, new_job: NewJob) -> None:
    """Retried jobs and equal new ones find each other, whoever comes first; nothing is drawn twice and nothing is stuck."""
    ids = [submit(db, replace(new_job, prompt=f"p{turn}"))[0] for turn in range(4)]
    for _ in ids:
        fail_one(db, Stage.AR)
    calls = [lambda job_id=job_id: retry(db, new_job.tenant_id, job_id) for job_id in ids]
    calls += [lambda turn=turn: submit(db, replace(new_job, prompt=f"p{turn}")) for turn in range(4)]
    outcomes = at_once(calls)
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)], outcomes
    finish_everything(db)
    assert query(db, "SELECT DISTINCT status FROM job") == [("succeeded",)]
    assert query(db, "SELECT count(*) FROM image WHERE state = 'done'") == [(4,)]
