"""What several jobs share: equal work in flight, finished images of the store, and layouts that are drawn once more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.db import Database
from shared.errors import PermanentWorkError, RequestError, StaleAttemptError
from shared.lifecycle import claims, finish, jobs, reuse, work
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.reuse import Cache
from shared.lifecycle.submit import submit
from shared.lifecycle.tenants import ensure_tenant
from shared.lora import LoraChoice
from shared.states import Priority, Stage
from tests.integration.conftest import plain_job
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

COUNT = "SELECT (SELECT count(*) FROM grid), (SELECT count(*) FROM image), (SELECT count(*) FROM output)"


def redraw(new: NewJob, source_id: str, **changes: Any) -> NewJob:
    return replace(new, redecode_of=source_id, **changes)


def test_equal_jobs_in_flight_are_drawn_once(db: Database, new_job: NewJob) -> None:
    """However many equal jobs cost one grid and one image, and each ends with its own events and webhook."""
    made = [submit(db, new_job)[0] for _ in range(30)]
    assert query(db, COUNT) == [(1, 1, 30)]
    grid = claim_grid(db)
    assert sorted(grid.job_ids) == sorted(made)
    finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    finish_one_image(db)
    for job_id in made:
        assert events(db, job_id) == ["job.queued", "job.started", "job.tokens_ready", "job.succeeded"]
    assert query(db, "SELECT count(*) FROM webhook_delivery") == [(30,)]
    assert query(db, "SELECT stage, units FROM usage ORDER BY stage") == [("ar", 10), ("decoder", 4)]
    assert query(db, "SELECT max(seq), count(*) FROM event") == [(120, 120)]


def test_a_crowd_is_parted(db: Database, new_job: NewJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many jobs share a unit and no more: one transaction never writes for thousands of jobs. Nothing done is drawn again for it."""
    monkeypatch.setattr(reuse, "MAX_SHARING", 6)
    made = [submit(db, new_job)[0] for _ in range(7)]
    assert query(db, COUNT) == [(2, 2, 7)]
    finish_everything(db)
    assert {document(db, new_job, job_id)["status"] for job_id in made} == {"succeeded"}
    for _ in range(7):
        submit(db, new_job)
    assert query(db, COUNT) == [(2, 2, 14)]


def test_equal_submits_at_once_share(db: Database, new_job: NewJob) -> None:
    """Equal jobs submitted at the same moment share grid and image too."""
    made = at_once([lambda: submit(db, replace(new_job, num_images=3))] * 8)
    assert len({job_id for job_id, _ in made}) == 8
    assert query(db, COUNT) == [(3, 3, 24)]


def test_running_work_starts_the_job_that_joins(db: Database, new_job: NewJob) -> None:
    """A job that joins work which runs already is running."""
    submit(db, new_job)
    claim_grid(db)
    second, _ = submit(db, new_job)
    assert document(db, new_job, second)["status"] == "running"
    assert events(db, second) == ["job.queued", "job.started"]
    other_steps, _ = submit(db, replace(new_job, steps=9))
    assert document(db, new_job, other_steps)["status"] == "running"


def test_urgent_job_pulls_a_shared_image_into_its_lane(db: Database, new_job: NewJob) -> None:
    """A bulk image that an interactive job wants too is released with the interactive ones."""
    submit(db, replace(new_job, priority=Priority.BULK))
    submit(db, replace(new_job, seed=2))
    finish_one_grid(db)
    submit(db, replace(new_job, priority=Priority.INTERACTIVE))
    (first,) = work.release(db, Stage.DECODER, 1)
    assert query(db, "SELECT seed, lane FROM image WHERE id = :id", id=first) == [(1, 0)]


def test_finished_image_is_served_from_the_store(db: Database, new_job: NewJob) -> None:
    """The same request again succeeds at once, costs nothing, and says so in document, events and webhook."""
    first, _ = submit(db, new_job)
    finish_everything(db)
    second, replayed = submit(db, new_job)
    assert not replayed
    hit = document(db, new_job, second)
    assert (hit["status"], hit["progress"]) == ("succeeded", {"phase": "upload", "done": 1, "total": 1})
    assert hit["usage"] == {"text_tokens": 0, "image_tokens": 0, "ar_tokens": 0, "decoder_steps": 0, "images": 0}
    assert hit["attempts"] == []
    assert hit["outputs"][0]["cached"]
    original = document(db, new_job, first)
    assert not original["outputs"][0]["cached"]
    assert hit["outputs"][0]["storage_key"] == original["outputs"][0]["storage_key"]
    assert events(db, second) == ["job.queued", "job.succeeded"]
    assert query(db, "SELECT count(*) FROM webhook_delivery") == [(2,)]
    assert jobs.get_result(db, new_job.tenant_id, second, 0) == jobs.get_result(db, new_job.tenant_id, first, 0)
    assert query(db, COUNT) == [(1, 1, 2)]


def test_part_of_a_job_may_be_in_the_store(db: Database, new_job: NewJob) -> None:
    """A job with more images than its forerunner draws only the new ones."""
    submit(db, replace(new_job, num_images=2))
    finish_everything(db)
    more, _ = submit(db, replace(new_job, num_images=3))
    waiting = document(db, new_job, more)
    assert [output["cached"] for output in waiting["outputs"]] == [True, True, False]
    assert [output["status"] for output in waiting["outputs"]] == ["succeeded", "succeeded", "queued"]
    assert query(db, COUNT) == [(3, 3, 5)]
    finish_everything(db)
    done = document(db, new_job, more)
    assert done["status"] == "succeeded"
    assert done["usage"] == {"text_tokens": 0, "image_tokens": 0, "ar_tokens": 13 * 19 + 6, "decoder_steps": 4, "images": 1}
    assert len(done["attempts"]) == 2


@pytest.mark.parametrize(
    ("change", "new_rows"),
    [
        ({"seed": 2}, (0, 1)),
        ({"steps": 5}, (0, 1)),
        ({"guidance_scale": 2.0}, (0, 1)),
        ({"height_px": 63}, (0, 1)),
        ({"format": "webp"}, (0, 1)),
        ({"format": "webp", "quality": 50}, (0, 1)),
        ({"is_fast": True}, (0, 1)),
        ({"layout_seed": 2}, (1, 1)),
        ({"prompt": "A dog"}, (1, 1)),
        ({"lora": (LoraChoice("a", 1.0),)}, (1, 1)),
        ({"model_revision": "r2"}, (1, 1)),
        ({"metadata": {"k": "v"}, "custom_id": "c", "priority": Priority.BULK, "webhook": None, "wants_previews": False}, (0, 0)),
    ],
)
def test_what_decides_the_file_decides_the_sharing(
    db: Database, new_job: NewJob, change: dict[str, Any], new_rows: tuple[int, int]
) -> None:
    """Whatever changes tokens or pixels makes work of its own; what only goes with the job does not."""
    submit(db, new_job)
    submit(db, replace(new_job, **change))
    assert query(db, COUNT) == [(1 + new_rows[0], 1 + new_rows[1], 2)]


def test_adapters_differ_by_scale(db: Database, new_job: NewJob) -> None:
    """The same adapter at another strength is another layout, and workers are told of both."""
    for scale in (1.0, 0.5):
        submit(db, replace(new_job, lora=(LoraChoice("a", scale),), is_fast=True))
    work.release(db, Stage.AR, 10)
    grids = [claims.claim_grid(db, "w", 30) for _ in range(2)]
    assert {grid.lora for grid in grids if grid} == {(LoraChoice("a", 1.0),), (LoraChoice("a", 0.5),)}
    for grid in grids:
        assert grid is not None
        finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    image = claim_image(db)
    assert image.fast
    assert image.lora[0].name == "a"


def test_refresh_takes_the_place_of_what_was_there(db: Database, new_job: NewJob) -> None:
    """A refresh draws grid and image anew; later requests find them, also with other steps, and the old ones stay with their job."""
    old, _ = submit(db, new_job)
    finish_everything(db)
    new, _ = submit(db, replace(new_job, cache=Cache.REFRESH, num_images=2, same_layout=True))
    assert query(db, COUNT) == [(2, 3, 3)]
    finish_everything(db)
    later, _ = submit(db, new_job)
    other_steps, _ = submit(db, replace(new_job, steps=9))
    ids = {name: document(db, new_job, job_id)["outputs"][0]["id"] for name, job_id in (("old", old), ("new", new), ("later", later))}
    assert ids["later"] == ids["new"] != ids["old"]
    grid_of = "SELECT grid_id FROM output JOIN image ON image.id = image_id WHERE job_id = :id AND index = 0"
    assert query(db, grid_of, id=other_steps) == query(db, grid_of, id=new) != query(db, grid_of, id=old)


def test_off_neither_finds_nor_is_found(db: Database, new_job: NewJob) -> None:
    """Without the cache a job draws everything for itself, one grid for images that share a layout, and leaves nothing to be found."""
    submit(db, new_job)
    alone = replace(new_job, cache=Cache.OFF, num_images=2, same_layout=True)
    first, _ = submit(db, alone)
    assert query(db, COUNT) == [(2, 3, 3)]
    submit(db, alone)
    assert query(db, COUNT) == [(3, 5, 5)]
    finish_everything(db)
    again, _ = submit(db, alone)
    assert document(db, new_job, again)["status"] == "queued"
    assert document(db, new_job, first)["status"] == "succeeded"
    assert query(db, "SELECT count(key) FROM grid") == query(db, "SELECT count(key) FROM image") == [(1,)]


def test_refresh_beside_use_and_refresh(db: Database, new_job: NewJob) -> None:
    """Refreshes and plain requests at the same moment all get a grid and an image, and exactly one of each can be found."""
    for seed in range(6):
        request = replace(new_job, layout_seed=seed)
        calls = [lambda cache=cache, request=request: submit(db, replace(request, cache=cache)) for cache in ["use", "refresh"] * 3]
        assert all(isinstance(made, tuple) for made in at_once(calls))
        assert query(db, "SELECT count(key) FROM grid WHERE seed = :seed", seed=seed) == [(1,)]
        keyed = "SELECT count(image.key) FROM image JOIN grid ON grid.id = grid_id WHERE grid.seed = :seed"
        assert query(db, keyed, seed=seed) == [(1,)]
    finish_everything(db)
    assert query(db, "SELECT status, count(*) FROM job GROUP BY 1") == [("succeeded", 36)]


def test_tenants_share_nothing(db: Database, new_job: NewJob) -> None:
    """Another tenant's equal request finds neither grid nor image, done or in flight, and cannot draw its layouts."""
    mine, _ = submit(db, new_job)
    other = plain_job(ensure_tenant(db, "other", b"sealed"))
    theirs, _ = submit(db, other)
    assert query(db, COUNT) == [(2, 2, 2)]
    finish_everything(db)
    assert document(db, other, theirs)["usage"]["images"] == 1
    third = plain_job(ensure_tenant(db, "third", b"sealed"))
    late, _ = submit(db, third)
    assert document(db, third, late)["status"] == "queued"
    with pytest.raises(RequestError, match="no such job"):
        submit(db, redraw(third, mine))


def test_cancel_spares_a_shared_image(db: Database, new_job: NewJob) -> None:
    """Of two jobs that share a running image one is canceled: it ends without a picture, the other one gets it."""
    first, _ = submit(db, new_job)
    second, _ = submit(db, new_job)
    finish_one_grid(db)
    image = claim_image(db)
    assert jobs.cancel(db, new_job.tenant_id, first) == []
    assert work.heartbeat(db, Stage.DECODER, {(image.id, image.attempt)}, 30) == {(image.id, image.attempt)}
    finish.finish_image(db, image.id, image.attempt, ARTIFACT)
    canceled, done = document(db, new_job, first), document(db, new_job, second)
    assert (canceled["status"], done["status"]) == ("canceled", "succeeded")
    assert canceled["outputs"][0]["status"] == "canceled"
    assert (canceled["outputs"][0]["storage_key"], canceled["outputs"][0]["sha256"]) == (None, None)
    assert canceled["usage"]["images"] == 0
    assert jobs.get_result(db, new_job.tenant_id, first, 0) is None
    assert jobs.get_result(db, new_job.tenant_id, second, 0) is not None


def test_last_cancel_stops_a_shared_image(db: Database, new_job: NewJob) -> None:
    """When nobody wants a running image any more its worker is told to stop, whether they cancel one by one or at once."""
    for seed in range(8):
        request = replace(new_job, seed=seed)
        both = [submit(db, request)[0] for _ in range(2)]
        if seed == 0:
            finish_one_grid(db)
        image = claim_image(db)
        told = at_once([lambda job_id=job_id: jobs.cancel(db, new_job.tenant_id, job_id) for job_id in both])
        assert sorted(told) == [[], [image.id]]
        with pytest.raises(StaleAttemptError):
            finish.finish_image(db, image.id, image.attempt, ARTIFACT)


def test_cancel_beside_finish_of_a_shared_image(db: Database, new_job: NewJob) -> None:
    """A cancel at the moment the shared image ends wins or loses for its own job, never for the other one."""
    for seed in range(8):
        request = replace(new_job, seed=seed)
        first, second = (submit(db, request)[0] for _ in range(2))
        if seed == 0:
            finish_one_grid(db)
        image = claim_image(db)
        canceled, _ = at_once(
            [
                lambda first=first: jobs.cancel(db, new_job.tenant_id, first),
                lambda image=image: finish.finish_image(db, image.id, image.attempt, ARTIFACT),
            ]
        )
        mine = document(db, new_job, first)
        assert mine["status"] == ("succeeded" if isinstance(canceled, RequestError) else "canceled")
        assert mine["outputs"][0]["status"] == mine["status"]
        assert document(db, new_job, second)["status"] == "succeeded"


def test_submit_beside_cancel_of_a_shared_image_strands_nobody(db: Database, new_job: NewJob) -> None:
    """A job that finds an image at the moment its only job is canceled keeps it, or gets another one."""
    for seed in range(12):
        request = replace(new_job, seed=seed)
        first, _ = submit(db, request)
        if seed == 0:
            finish_one_grid(db)
        claim_image(db)
        _, (second, _) = at_once(
            [lambda first=first: jobs.cancel(db, new_job.tenant_id, first), lambda request=request: submit(db, request)]
        )
        state = query(db, "SELECT state FROM output JOIN image ON image.id = image_id WHERE job_id = :id", id=second)
        assert state[0][0] in ("ready", "released", "running")
        jobs.cancel(db, new_job.tenant_id, second)


def test_failed_image_fails_every_job_that_wants_it(db: Database, new_job: NewJob) -> None:
    """An image that cannot be drawn ends all its jobs, and the next request gets a new one."""
    both = [submit(db, new_job)[0] for _ in range(2)]
    finish_one_grid(db)
    image = claim_image(db)
    finish.fail(db, Stage.DECODER, image.id, image.attempt, PermanentWorkError("decoder_oom", "no"), retryable=False)
    assert [document(db, new_job, job_id)["status"] for job_id in both] == ["failed", "failed"]
    third, _ = submit(db, new_job)
    assert document(db, new_job, third)["status"] == "queued"
    assert claim_image(db).id != image.id


def test_redecode_runs_no_tokens(db: Database, new_job: NewJob) -> None:
    """Other steps on the layouts of a finished job: images are ready at once, on the same grids, and cost decoder work only."""
    source, _ = submit(db, replace(new_job, num_images=2))
    finish_everything(db)
    job_id, _ = submit(db, redraw(replace(new_job, num_images=2), source, steps=9, seed=5))
    job = document(db, new_job, job_id)
    assert (job["stage"], job["redecode_of"]) == ("decoder", source)
    assert [output["layout_seed"] for output in job["outputs"]] == [1, 2]
    assert [output["seed"] for output in job["outputs"]] == [5, 6]
    assert work.release(db, Stage.AR, 10) == {}
    finish_everything(db)
    assert document(db, new_job, job_id)["usage"] == {"text_tokens": 0, "image_tokens": 0, "ar_tokens": 0, "decoder_steps": 18, "images": 2}
    again, _ = submit(db, redraw(replace(new_job, num_images=2), source))
    assert document(db, new_job, again)["status"] == "succeeded"
    fresh, _ = submit(db, redraw(new_job, source, cache=Cache.REFRESH))
    assert document(db, new_job, fresh)["status"] == "queued"
    assert query(db, "SELECT count(*) FROM grid") == [(2,)]


def test_redecode_of_one_layout_makes_any_number(db: Database, new_job: NewJob) -> None:
    """A single layout serves n images; of several layouts no more images are made than there are."""
    source, _ = submit(db, new_job)
    finish_everything(db)
    job_id, _ = submit(db, redraw(new_job, source, num_images=4))
    assert [output["layout_seed"] for output in document(db, new_job, job_id)["outputs"]] == [1, 1, 1, 1]
    several, _ = submit(db, replace(new_job, num_images=2))
    finish_everything(db)
    with pytest.raises(RequestError) as refused:
        submit(db, redraw(new_job, several, num_images=3))
    assert refused.value.param == "n"


def test_redecode_needs_finished_layouts(db: Database, new_job: NewJob) -> None:
    """While a layout is being drawn, or was given up, it cannot be drawn from; the refusal stores nothing."""
    source, _ = submit(db, new_job)
    for prepare in (lambda: None, lambda: claim_grid(db), lambda: jobs.cancel(db, new_job.tenant_id, source)):
        prepare()
        with pytest.raises(RequestError) as refused:
            submit(db, redraw(new_job, source))
        assert refused.value.code == "layout_unavailable"
    assert query(db, "SELECT count(*) FROM job") == [(1,)]


def test_redecode_of_a_lost_grid_draws_it_again(db: Database, new_job: NewJob) -> None:
    """A layout whose artifact is gone is drawn again for the job that needs it, which then counts its tokens."""
    source, _ = submit(db, new_job)
    finish_everything(db)
    job_id, _ = submit(db, redraw(new_job, source, steps=9))
    image = claim_image(db)
    finish.redraw_grid(db, image.id, image.attempt, ARTIFACT.sha256, "gone")
    finish_everything(db)
    job = document(db, new_job, job_id)
    assert (job["status"], job["usage"]["ar_tokens"]) == ("succeeded", 13 * 19 + 6)
    assert document(db, new_job, source)["status"] == "succeeded"


def test_redecode_of_a_private_layout_is_private(db: Database, new_job: NewJob) -> None:
    """What was drawn with the cache off is not found through its layout either."""
    source, _ = submit(db, replace(new_job, cache=Cache.OFF))
    finish_everything(db)
    job_id, _ = submit(db, redraw(new_job, source))
    assert document(db, new_job, job_id)["status"] == "queued"
    assert query(db, "SELECT count(key) FROM image") == [(0,)]


def test_grids_of_before_adapters_are_still_found(db: Database, new_job: NewJob) -> None:
    """The key of a request without adapters is the one that it always had."""
    submit(db, new_job)
    assert query(db, "SELECT left(key, 8) FROM grid") == [("6f4aef16",)]


def test_expired_job_shows_what_it_had(db: Database, new_job: NewJob) -> None:
    """A job that expires keeps the images that were done by then; the others carry its status, whatever comes of them later."""
    late, _ = submit(db, replace(new_job, num_images=2, same_layout=True))
    patient, _ = submit(db, replace(new_job, num_images=2, same_layout=True))
    finish_one_grid(db)
    finish_one_image(db)
    execute(db, "UPDATE job SET deadline = clock_timestamp(), version = version + 1 WHERE id = :id", id=late)
    jobs.expire(db)
    finish_one_image(db)
    expired = document(db, new_job, late)
    assert sorted(output["status"] for output in expired["outputs"]) == ["expired", "succeeded"]
    assert expired["usage"]["images"] == 1
    assert document(db, new_job, patient)["status"] == "succeeded"
