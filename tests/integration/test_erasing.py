"""Erasing jobs, on a real Postgres and S3."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from infra.embedded.ports import free_port
from infra.embedded.s3 import S3Server
from shared.db import Database
from shared.errors import RequestError, StaleAttemptError
from shared.lifecycle import claims, drafts, finish, jobs
from shared.lifecycle.erasing import LATE_S, erase
from shared.lifecycle.feed import read_events
from shared.lifecycle.new_job import NewJob, SourceFile
from shared.lifecycle.paging import Page
from shared.lifecycle.submit import submit
from shared.lifecycle.tenants import add_source
from shared.storage import Storage, StorageDownError
from shared.sweep import sweep
from tests.ledger import ARTIFACT, at_once, claim_grid, claim_image, document, execute, finish_one_grid, finish_one_image, query
from tests.stored import draw, keys, make_storage

SECRET = "ZEBRA-PROMPT"


def everything(db: Database) -> str:
    """Every row of every table that holds what customers send, as text."""
    tables = [row[0] for row in query(db, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")]
    return json.dumps([query(db, f"SELECT to_jsonb(t)::text FROM {table} t") for table in tables])


def test_nothing_is_left(db: Database, new_job: NewJob, storage: Storage) -> None:
    """Prompt, request, metadata, files, previews and webhook bodies are gone; the id, the end and the events' numbers stay."""
    request = {"prompt": SECRET, "metadata": {"k": SECRET}}
    secret = replace(new_job, prompt=SECRET, input=request, metadata={"k": SECRET}, custom_id=SECRET)
    job_id, _ = submit(db, secret)
    draw(db, storage, new_job.tenant_id)
    execute(db, "UPDATE webhook_delivery SET body = :body", body=SECRET.encode())
    assert SECRET in everything(db)
    assert len(keys(storage)) == 3

    erased = erase(db, new_job.tenant_id, job_id)
    assert erased is not None
    assert erased.stopped == ()
    assert len(erased.work_ids) == 2
    assert SECRET not in everything(db)
    assert SECRET.encode().hex() not in everything(db)
    assert query(db, "SELECT count(*) FROM image UNION ALL SELECT count(*) FROM grid UNION ALL SELECT count(*) FROM output") == [(0,)] * 3
    assert query(db, "SELECT status, erased_at IS NOT NULL FROM job") == [("succeeded", True)]
    assert query(db, "SELECT DISTINCT state FROM webhook_delivery") == [("exhausted",)]
    page = read_events(db, new_job.tenant_id, 0, 100)
    assert [event.seq for event in page.events] == list(range(1, len(page.events) + 1))
    assert all(event.data == {"id": job_id, "object": "job", "erased": True} for event in page.events)
    while sweep(db, storage):
        pass
    assert keys(storage) == set()

    with pytest.raises(RequestError) as gone:
        document(db, new_job, job_id)
    assert gone.value.code == "gone"
    assert jobs.list_jobs(db, new_job.tenant_id, jobs.JobFilter(), Page(10), lambda ids: {}) == ([], False)
    assert erase(db, new_job.tenant_id, job_id) is not None
    assert erase(db, "ten_other", job_id) is None


def test_what_others_have_stays_with_them(db: Database, new_job: NewJob, storage: Storage) -> None:
    """A picture that two jobs have stays until both are erased; a layout as long as a picture is drawn from it."""
    first, _ = submit(db, new_job)
    draw(db, storage, new_job.tenant_id)
    second, _ = submit(db, new_job)
    third, _ = submit(db, replace(new_job, steps=9))
    finish_one_image(db)
    before = document(db, new_job, second)
    for job_id, left in ((first, 3), (second, 1), (third, 0)):
        erase(db, new_job.tenant_id, job_id)
        while sweep(db, storage):
            pass
        assert len(keys(storage)) == left
        if job_id == first:
            assert document(db, new_job, second) == before


def test_source_images_go_with_the_last_job(db: Database, new_job: NewJob, storage: Storage) -> None:
    """A reference image is deleted with the last layout that was made from it."""
    storage.put("t/a.png", b"a", "image/png")
    storage.put("t/b.png", b"b", "image/png")
    files = [add_source(db, new_job.tenant_id, f"t/{name}.png", name * 64, 1, 8, 8) for name in "ab"]
    both = replace(new_job, sources=tuple(SourceFile(file.id, file.sha256) for file in files))
    first, _ = submit(db, both)
    second, _ = submit(db, replace(both, sources=both.sources[:1], prompt="B"))
    erase(db, new_job.tenant_id, first)
    while sweep(db, storage):
        pass
    assert keys(storage) == {"t/a.png"}
    erase(db, new_job.tenant_id, second)
    while sweep(db, storage):
        pass
    assert keys(storage) == set()
    with pytest.raises(RequestError):
        submit(db, both)


def test_a_running_job_is_canceled_first(db: Database, new_job: NewJob, storage: Storage) -> None:
    """Its worker is told to stop, its result is refused, and what it stores all the same is swept later."""
    job_id, _ = submit(db, new_job)
    finish_one_grid(db)
    image = claim_image(db)
    erased = erase(db, new_job.tenant_id, job_id)
    assert erased is not None
    assert erased.stopped == (image.id,)
    late = f"t/{new_job.tenant_id}/images/{image.id}/1.png"
    while sweep(db, storage):
        pass
    storage.put(late, b"late", "image/png")
    with pytest.raises(StaleAttemptError):
        finish.finish_image(db, image.id, image.attempt, replace(ARTIFACT, storage_key=late))
    assert sweep(db, storage) == 0
    execute(db, "UPDATE doomed_object SET due_at = due_at - make_interval(secs => :late)", late=LATE_S)
    assert sweep(db, storage) > 0
    assert keys(storage) == set()
    assert [event.type for event in read_events(db, new_job.tenant_id, 0, 9).events][-1] == "job.canceled"


def test_the_store_may_be_away(db: Database, new_job: NewJob, storage: Storage, s3: S3Server) -> None:
    """Without S3 the job is erased all the same, and its files follow when the store is back."""
    job_id, _ = submit(db, new_job)
    draw(db, storage, new_job.tenant_id)
    erase(db, new_job.tenant_id, job_id)
    with pytest.raises(StorageDownError):
        sweep(db, make_storage(s3, f"http://127.0.0.1:{free_port()}"))
    assert len(keys(storage)) == 3
    # What could not be deleted has its next turn in a minute.
    execute(db, "UPDATE doomed_object SET due_at = due_at - interval '61 s'")
    while sweep(db, storage):
        pass
    assert keys(storage) == set()
    assert query(db, "SELECT count(*) FROM doomed_object WHERE due_at <= clock_timestamp()") == [(0,)]


def test_a_folder_of_many_objects(storage: Storage) -> None:
    """A prefix is swept with all that is under it, and nothing beside it."""
    for number in range(5):
        storage.put(f"t/x/{number}", b"x", "text/plain")
    storage.put("t/xy", b"x", "text/plain")
    storage.delete_all("t/x/")
    assert keys(storage) == {"t/xy"}
    storage.delete_all("t/none/")


def test_erasing_and_submitting_at_once(db: Database, new_job: NewJob) -> None:
    """While a job is erased again and again, equal submits find its picture or draw their own; none of them breaks."""
    for _ in range(6):
        first, _ = submit(db, new_job)
        while claims_left := query(db, "SELECT count(*) FROM grid WHERE state = 'ready'")[0][0]:
            assert claims_left == 1
            finish_one_grid(db)
        while query(db, "SELECT count(*) FROM image WHERE state = 'ready'")[0][0]:
            finish_one_image(db)
        calls: list[Any] = [lambda first=first: erase(db, new_job.tenant_id, first)]
        calls += [lambda: submit(db, new_job)] * 3
        outcomes = at_once(calls)
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)], outcomes
        for job_id, _ in outcomes[1:]:
            assert len(document(db, new_job, job_id)["outputs"]) == 1


def test_workers_are_refused_and_do_not_break(db: Database, new_job: NewJob) -> None:
    """Every late word of a worker about work that was erased is a stale attempt, nothing worse."""
    job_id, _ = submit(db, replace(new_job, approval_s=60))
    grid = claim_grid(db)
    erase(db, new_job.tenant_id, job_id)
    for late in (
        lambda: drafts.record_draft(db, grid.id, grid.attempt, [1]),
        lambda: drafts.hold_grid(db, grid.id, grid.attempt, [1]),
        lambda: finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10),
    ):
        with pytest.raises(StaleAttemptError):
            late()
    assert claims.claim_grid(db, "w", 30, grid.id) is None
