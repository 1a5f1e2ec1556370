"""Pictures on the way: claimed, drawn, told of and lost, without a job ever waiting for one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.db import Database
from shared.job_document import finish_document
from shared.lifecycle import claims, drafts, finish, jobs, work
from shared.lifecycle.approval import approve, reject
from shared.lifecycle.new_job import NewJob, SourceFile
from shared.lifecycle.previews import MAX_PREVIEWS, add_preview, claim_preview, finish_draft_preview
from shared.lifecycle.submit import submit
from shared.lifecycle.tenants import add_source
from shared.lora import LoraChoice
from shared.states import Stage
from tests.ledger import ARTIFACT, at_once, claim_grid, claim_image, document, events, execute, finish_one_grid, finish_one_image, query

DRAFT = tuple(range(13 * 19))
PICTURE = claims.StoredArtifact("t/preview", "cd" * 32, 50)


def record_one_draft(db: Database) -> claims.ClaimedGrid:
    grid = claim_grid(db)
    drafts.record_draft(db, grid.id, grid.attempt, DRAFT)
    return grid


def shown(db: Database, new: NewJob, job_id: str) -> list[tuple[Any, ...]]:
    previews = document(db, new, job_id)["outputs"][0]["previews"]
    return [(preview["kind"], preview["step"], preview["storage_key"], preview["height"], preview["width"]) for preview in previews]


def test_draft_is_shown_before_the_grid_is_done(db: Database, new_job: NewJob) -> None:
    """As soon as the draft is recorded a decoder may claim it, with all it needs; every job that waits is told of the picture."""
    request = replace(new_job, lora=(LoraChoice("a", 0.5),))
    both = [submit(db, request)[0] for _ in range(2)]
    assert claim_preview(db, "w2", 30, "r1") is None
    grid = record_one_draft(db)
    assert grid.wants_preview
    assert claim_preview(db, "w2", 30, "another model") is None
    claim = claim_preview(db, "w2", 30, "r1")
    assert claim is not None
    assert (claim.grid_id, claim.tenant_id, claim.prompt, claim.model_revision) == (grid.id, new_job.tenant_id, "A cat", "r1")
    assert (claim.draft_h, claim.draft_w, claim.draft_token_ids, claim.lora) == (13, 19, DRAFT, request.lora)
    assert claim_preview(db, "w3", 30, "r1") is None
    assert finish_draft_preview(db, claim, PICTURE, 208, 304)
    for job_id in both:
        assert shown(db, new_job, job_id) == [("draft", None, "t/preview", 208, 304)]
        assert events(db, job_id) == ["job.queued", "job.started", "job.draft_ready"]
    assert not finish_draft_preview(db, claim, PICTURE, 208, 304)
    assert claim_preview(db, "w2", 30, "r1") is None
    found = document(db, new_job, both[0])
    public = finish_document(found, "https://glmq.example", lambda key: f"signed:{key}")
    [preview] = public["outputs"][0]["previews"]
    assert preview == {"kind": "draft", "step": None, "url": "signed:t/preview", "height": 208, "width": 304}


def test_previews_can_be_turned_off(db: Database, new_job: NewJob) -> None:
    """A job without previews makes nobody draw one; a job that shares its work and wants them gets them alone."""
    quiet, _ = submit(db, replace(new_job, wants_previews=False))
    grid = claim_grid(db)
    assert not grid.wants_preview
    drafts.record_draft(db, grid.id, grid.attempt, DRAFT)
    assert claim_preview(db, "w2", 30, "r1") is None
    curious, _ = submit(db, new_job)
    claim = claim_preview(db, "w2", 30, "r1")
    assert claim is not None
    assert finish_draft_preview(db, claim, PICTURE, 208, 304)
    finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    image = claim_image(db)
    assert image.wants_previews
    assert add_preview(db, image.id, image.attempt, PICTURE, 64, 96, 2)
    assert shown(db, new_job, quiet) == []
    assert len(shown(db, new_job, curious)) == 2
    assert "job.preview" not in events(db, quiet)
    assert "job.preview" in events(db, curious)


def test_nobody_draws_for_a_job_without_previews(db: Database, new_job: NewJob) -> None:
    """If no job wants pictures between steps, workers are told so, and what they send is dropped."""
    job_id, _ = submit(db, replace(new_job, wants_previews=False))
    finish_one_grid(db)
    image = claim_image(db)
    assert not image.wants_previews
    assert not add_preview(db, image.id, image.attempt, PICTURE, 64, 96, 2)
    assert query(db, "SELECT previews FROM image") == [([],)]
    assert document(db, new_job, job_id)["outputs"][0]["previews"] == []


def test_lost_preview_is_claimed_again_a_few_times(db: Database, new_job: NewJob) -> None:
    """A preview whose worker died is drawn by another one; the late one is dropped; one that kills workers is given up."""
    job_id, _ = submit(db, new_job)
    record_one_draft(db)
    made = []
    while claim := claim_preview(db, "w", 30, "r1"):
        made.append(claim)
        assert claim_preview(db, "w", 30, "r1") is None
        execute(db, "UPDATE grid SET preview_lease_until = clock_timestamp() - interval '1 s'")
    assert [claim.attempt for claim in made] == [1, 2, 3]
    assert not finish_draft_preview(db, made[0], PICTURE, 208, 304)
    assert shown(db, new_job, job_id) == []
    assert query(db, "SELECT wants_preview FROM grid") == [(False,)]


def test_claims_of_previews_do_not_meet(db: Database, new_job: NewJob) -> None:
    """Of many idle decoders one draws each draft."""
    for seed in range(3):
        submit(db, replace(new_job, layout_seed=seed))
        record_one_draft(db)
    got = [claim for claim in at_once([lambda: claim_preview(db, "w", 30, "r1")] * 8) if claim is not None]
    # One that looked while another held the first row may have gone away with nothing; the next look finds the rest.
    while claim := claim_preview(db, "w", 30, "r1"):
        got.append(claim)
    assert len({claim.grid_id for claim in got}) == len(got) == 3


def test_preview_of_ended_jobs_is_not_drawn(db: Database, new_job: NewJob) -> None:
    """A draft whose jobs have ended is not drawn, one whose grid is done while its job goes on is; a late picture is dropped."""
    job_id, _ = submit(db, new_job)
    record_one_draft(db)
    claim = claim_preview(db, "w", 30, "r1")
    assert claim is not None
    jobs.cancel(db, new_job.tenant_id, job_id)
    assert not finish_draft_preview(db, claim, PICTURE, 208, 304)
    assert claim_preview(db, "w", 30, "r1") is None
    submit(db, new_job)
    grid = record_one_draft(db)
    finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    assert claim_preview(db, "w", 0.001, "r1") is not None
    finish_one_image(db)
    assert claim_preview(db, "w", 30, "r1") is None


def test_draft_that_waits_is_shown(db: Database, new_job: NewJob) -> None:
    """The picture of a draft that waits for approval reaches its job; that of a rejected draft does not, and the next one does."""
    job_id, _ = submit(db, replace(new_job, approval_s=60))
    grid = claim_grid(db)
    drafts.hold_grid(db, grid.id, grid.attempt, DRAFT)
    stale = claim_preview(db, "w", 30, "r1")
    assert stale is not None
    assert finish_draft_preview(db, stale, PICTURE, 208, 304)
    assert events(db, job_id) == ["job.queued", "job.awaiting_approval", "job.draft_ready"]
    reject(db, new_job.tenant_id, job_id, 9)
    assert shown(db, new_job, job_id) == []
    grid = claim_grid(db)
    drafts.hold_grid(db, grid.id, grid.attempt, DRAFT)
    assert not finish_draft_preview(db, stale, PICTURE, 208, 304)
    late = claim_preview(db, "w", 30, "r1")
    assert late is not None
    reject(db, new_job.tenant_id, job_id, 10)
    assert not finish_draft_preview(db, late, PICTURE, 208, 304)
    grid = claim_grid(db)
    drafts.hold_grid(db, grid.id, grid.attempt, DRAFT)
    assert not finish_draft_preview(db, late, PICTURE, 208, 304)
    newest = claim_preview(db, "w", 30, "r1")
    assert newest is not None
    approve(db, new_job.tenant_id, job_id)
    assert finish_draft_preview(db, newest, PICTURE, 208, 304)
    assert len(shown(db, new_job, job_id)) == 1


def test_pictures_between_steps_are_bounded(db: Database, new_job: NewJob) -> None:
    """An image shows a few pictures in order of steps; the same step replaces itself, and one too many is dropped."""
    job_id, _ = submit(db, new_job)
    finish_one_grid(db)
    image = claim_image(db)
    for step in (3, 1, 3, 2, 4):
        assert add_preview(db, image.id, image.attempt, replace(PICTURE, storage_key=f"t/{step}"), 64, 96, step)
    assert MAX_PREVIEWS == 4
    assert not add_preview(db, image.id, image.attempt, PICTURE, 64, 96, 5)
    assert [step for _, step, *_ in shown(db, new_job, job_id)] == [1, 2, 3, 4]
    assert events(db, job_id).count("job.preview") == 5


@pytest.mark.parametrize("end", ["rescue", "cancel", "finish"])
def test_late_picture_is_dropped(db: Database, new_job: NewJob, end: str) -> None:
    """A picture that comes after its attempt is over changes nothing."""
    job_id, _ = submit(db, new_job)
    finish_one_grid(db)
    image = claim_image(db)
    match end:
        case "rescue":
            execute(db, "UPDATE image SET lease_until = clock_timestamp() - interval '1 s'")
            work.rescue(db, Stage.DECODER)
        case "cancel":
            jobs.cancel(db, new_job.tenant_id, job_id)
        case _:
            finish.finish_image(db, image.id, image.attempt, ARTIFACT)
    before = document(db, new_job, job_id)
    assert not add_preview(db, image.id, image.attempt, PICTURE, 64, 96, 2)
    assert document(db, new_job, job_id) == before


def test_ended_job_keeps_the_previews_it_had(db: Database, new_job: NewJob) -> None:
    """A canceled job whose image goes on for another one shows what it had seen, and nothing newer."""
    first, _ = submit(db, new_job)
    second, _ = submit(db, new_job)
    finish_one_grid(db)
    image = claim_image(db)
    add_preview(db, image.id, image.attempt, PICTURE, 64, 96, 1)
    jobs.cancel(db, new_job.tenant_id, first)
    add_preview(db, image.id, image.attempt, PICTURE, 64, 96, 2)
    assert len(shown(db, new_job, first)) == 1
    assert len(shown(db, new_job, second)) == 2


def test_image_to_image_has_no_draft(db: Database, new_job: NewJob) -> None:
    """With reference images no preview of a draft is wanted."""
    source = add_source(db, new_job.tenant_id, "t/source", "ef" * 32, 10, 64, 64)
    submit(db, replace(new_job, sources=(SourceFile(source.id, source.sha256),)))
    assert not claim_grid(db).wants_preview
