"""What has been kept for long enough goes: results, events, deliveries, keys. Time passes by UPDATE."""

from __future__ import annotations

import base64
import secrets
import threading
from dataclasses import replace

import pytest
from pydantic import SecretStr

from infra.embedded.ports import free_port
from infra.embedded.s3 import S3Server
from services.dispatcher.retention import Retention, look
from services.dispatcher.settings import DispatcherSettings
from shared.db import Database
from shared.errors import RequestError
from shared.lifecycle import jobs
from shared.lifecycle.endpoints import NewEndpoint, add_endpoint
from shared.lifecycle.erasing import erase_expired
from shared.lifecycle.feed import kept_events, read_events
from shared.lifecycle.idempotency import Idempotency
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.quotas import Limits
from shared.lifecycle.retention import prune_deliveries, prune_events, prune_keys
from shared.lifecycle.submit import store, submit
from shared.lifecycle.tenants import ensure_tenant
from shared.lifecycle.tries import Try
from shared.progress import LiveState
from shared.storage import Storage
from shared.sweep import sweep
from tests.integration.conftest import plain_job
from tests.ledger import claim_grid, document, execute, finish_one_grid, finish_one_image, query
from tests.stored import draw, keys

DAY = 86_400
ENDPOINT = NewEndpoint(url="https://hooks.example/a", host="hooks.example", events=["job.*"], secret=b"sealed", secret_hint="abcd")


@pytest.fixture
def settings(ledger_url: str, redis_url: str, s3: S3Server) -> DispatcherSettings:
    """Of a dispatcher whose S3 is away."""
    return DispatcherSettings(
        database_url=SecretStr(ledger_url),
        redis_url=SecretStr(redis_url),
        s3_endpoint=f"http://127.0.0.1:{free_port()}",
        s3_access_key="none",
        s3_secret_key=SecretStr("none"),
        secret_key=SecretStr(base64.b64encode(secrets.token_bytes(32)).decode()),
        retention_look_s=0.05,
    )


@pytest.fixture
def live(redis_url: str) -> LiveState:
    return LiveState(redis_url)


def pass_time(db: Database, seconds: float) -> None:
    """Everything there is becomes older."""
    columns = {
        "job": ("created_at", "completed_at", "expires_at"),
        "grid": ("created_at", "finished_at"),
        "image": ("created_at", "finished_at"),
        "webhook_delivery": ("created_at",),
        "idempotency_key": ("created_at",),
        "stored_answer": ("created_at",),
        "client_try": ("created_at",),
    }
    for table, names in columns.items():
        changes = ", ".join(f"{name} = {name} - make_interval(secs => :age)" for name in names)
        version = ", version = version + 1" if table == "job" else ""
        execute(db, f"UPDATE {table} SET {changes}{version}", age=seconds)
    execute(db, "ALTER TABLE event DISABLE TRIGGER event_kept")
    execute(db, "UPDATE event SET created_at = created_at - make_interval(secs => :age)", age=seconds)
    execute(db, "ALTER TABLE event ENABLE TRIGGER event_kept")


def count(db: Database, table: str) -> int:
    [(number,)] = query(db, f"SELECT count(*) FROM {table}")
    return int(number)


def finished_job(db: Database, new: NewJob, limits: Limits = Limits()) -> str:  # noqa: B008 - frozen
    stored = store(db, new, limits)
    finish_one_grid(db)
    finish_one_image(db)
    return stored.job_id


def test_results_live_as_long_as_the_job_says(
    db: Database, new_job: NewJob, storage: Storage, settings: DispatcherSettings, live: LiveState
) -> None:
    """A job is erased once its time is up, not before; S3 may be away, and its files follow when it is back. A tombstone stays."""
    job_id, _ = submit(db, replace(new_job, expires_in_s=60))
    draw(db, storage, new_job.tenant_id)
    kept, _ = submit(db, replace(new_job, seed=9, layout_seed=9))
    finish_one_grid(db)
    finish_one_image(db)
    assert look(db, live, settings) == 0
    assert document(db, new_job, job_id)["expires_at"] is not None
    assert document(db, new_job, kept)["expires_at"] is None
    pass_time(db, 61)
    assert look(db, live, settings) == 1
    with pytest.raises(RequestError) as gone:
        document(db, new_job, job_id)
    assert gone.value.code == "gone"
    assert document(db, new_job, kept)["outputs"][0]["storage_key"]
    assert look(db, live, settings) == 0
    assert erase_expired(db) is None
    while sweep(db, storage):
        pass
    assert keys(storage) == set()


def test_the_limits_say_it_for_jobs_that_do_not(db: Database, new_job: NewJob) -> None:
    """What holds for the tenant when a job is written stays with it, whichever way it is written; the job's own word goes before."""
    week = Limits(results_kept_s=7 * DAY)
    ids = [
        store(db, new_job, week).job_id,
        store(db, replace(new_job, seed=2), week, client_try=Try("f" * 64, 0)).job_id,
        store(db, replace(new_job, seed=3, expires_in_s=60), week).job_id,
        store(db, replace(new_job, seed=4), Limits()).job_id,
    ]
    rows = dict(query(db, "SELECT id, expires_in_s FROM job"))
    assert [rows[job_id] for job_id in ids] == [7 * DAY, 7 * DAY, 60, None]
    assert document(db, new_job, ids[0])["params"]["expires_in"] == 7 * DAY


def test_a_live_job_does_not_expire(db: Database, new_job: NewJob) -> None:
    """Results are counted from the end of the job: one that waits or runs is never touched."""
    submit(db, replace(new_job, expires_in_s=60))
    pass_time(db, 90)
    assert erase_expired(db) is None
    claim_grid(db)
    pass_time(db, 90)
    assert erase_expired(db) is None


def test_old_events_go_and_leave_no_gap(db: Database, new_job: NewJob) -> None:
    """The oldest events go, with their deliveries; numbers go on, and a cursor from before is known to be lost."""
    other = ensure_tenant(db, "other", b"sealed")
    add_endpoint(db, new_job.tenant_id, ENDPOINT)
    finished_job(db, new_job)
    finished_job(db, plain_job(other))
    num_of_other = kept_events(db, other).newest
    num_old = kept_events(db, new_job.tenant_id).newest
    pass_time(db, 31 * DAY)
    finished_job(db, replace(new_job, seed=5, layout_seed=5))
    before = kept_events(db, new_job.tenant_id)
    assert prune_events(db, 30 * DAY, 2) == 2
    assert kept_events(db, new_job.tenant_id).oldest in (1, 3)
    while prune_events(db, 30 * DAY, 2):
        pass
    kept = kept_events(db, new_job.tenant_id)
    assert (kept.oldest, kept.newest) == (num_old + 1, before.newest)
    assert [event.seq for event in read_events(db, new_job.tenant_id, kept.oldest - 1, 99).events] == list(
        range(kept.oldest, kept.newest + 1)
    )
    assert not kept.knows(num_old - 1)
    assert kept.knows(num_old)
    oldest = "SELECT min(seq) FROM webhook_delivery JOIN event ON event.id = event_id WHERE event.tenant_id = :tenant"
    assert query(db, oldest, tenant=new_job.tenant_id) == [(num_old + 1,)]
    of_other = kept_events(db, other)
    assert (of_other.oldest, of_other.newest) == (num_of_other + 1, num_of_other)


def test_nobody_else_deletes_events(db: Database, new_job: NewJob) -> None:
    """The ledger still refuses a DELETE that is not retention's, also on a connection that retention has used."""
    submit(db, new_job)
    pass_time(db, 31 * DAY)
    submit(db, replace(new_job, seed=2))
    assert prune_events(db, 30 * DAY, 10) == 1
    with pytest.raises(Exception, match="never changed or deleted"):
        execute(db, "DELETE FROM event")


def test_the_log_of_deliveries(db: Database, new_job: NewJob) -> None:
    """Deliveries that are over leave the log with their attempts; what is still on its way stays, however old."""
    add_endpoint(db, new_job.tenant_id, ENDPOINT)
    for seed in range(4):
        submit(db, replace(new_job, seed=seed))
    execute(db, "UPDATE webhook_delivery SET state = 'delivered' WHERE id <> (SELECT min(id) FROM webhook_delivery)")
    execute(db, "INSERT INTO webhook_attempt (delivery_id, attempt, url, headers) SELECT id, 1, url, '{}' FROM webhook_delivery")
    assert prune_deliveries(db, DAY, 10) == 0
    pass_time(db, DAY + 1)
    assert prune_deliveries(db, DAY, 2) == 2
    assert prune_deliveries(db, DAY, 2) == 1
    assert prune_deliveries(db, DAY, 2) == 0
    assert (count(db, "webhook_delivery"), count(db, "webhook_attempt"), count(db, "event")) == (1, 1, 4)


def test_keys_stand_for_other_requests_after_a_day(db: Database, new_job: NewJob) -> None:
    """A key, an answer and a try are forgotten; the jobs that they made are not."""
    once = Idempotency("POST /v1/jobs", "k", "f" * 64)
    first, _ = submit(db, new_job, once)
    submit(db, replace(new_job, seed=2), client_try=Try("e" * 64, 0))
    execute(
        db,
        "INSERT INTO stored_answer (tenant_id, route, key, fingerprint, scope, answer) VALUES (:tenant, 'r', 'k', 'f', 'read', '')",
        tenant=new_job.tenant_id,
    )
    assert prune_keys(db, DAY, 10) == 0
    pass_time(db, DAY + 1)
    assert prune_keys(db, DAY, 10) == 3
    second, is_replay = submit(db, replace(new_job, seed=3), once)
    assert not is_replay
    assert second != first
    assert count(db, "job") == 3


def test_only_the_leader_looks(db: Database, new_job: NewJob, settings: DispatcherSettings, live: LiveState) -> None:
    """A dispatcher that stands by erases nothing; one that leads does, until it is stopped."""
    job_id = finished_job(db, replace(new_job, expires_in_s=60))
    pass_time(db, 61)
    leading, stopping, looked = threading.Event(), threading.Event(), threading.Event()
    retention = Retention(db, live, settings, leading, stopping)
    thread = retention.start()
    assert not looked.wait(0.3)
    assert document(db, new_job, job_id)["status"] == "succeeded"
    leading.set()
    for _ in range(100):
        if query(db, "SELECT count(*) FROM job WHERE erased_at IS NOT NULL") == [(1,)]:
            break
        looked.wait(0.05)
    else:
        pytest.fail("nothing was erased in 5 s")
    stopping.set()
    thread.join(30)


def test_a_stream_of_a_job_without_events_ends(db: Database, new_job: NewJob) -> None:
    """Listing what is left of a job's events after all of them went is no error."""
    job_id = finished_job(db, new_job)
    pass_time(db, 31 * DAY)
    while prune_events(db, 30 * DAY, 100):
        pass
    page = read_events(db, new_job.tenant_id, 0, 10, job_id=job_id)
    assert page.events == ()
    assert jobs.get_job(db, new_job.tenant_id, job_id, lambda ids: {}) is not None
