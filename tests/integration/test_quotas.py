"""What tenants may use, in the ledger: exact under concurrency, and true after any life of a job."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from shared.db import Database
from shared.errors import PermanentWorkError, QueueFullError
from shared.lifecycle import claims, finish, jobs, work
from shared.lifecycle.endpoints import NewEndpoint, add_endpoint
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.quotas import Limits, OwnLimits, is_running_limited, tenant_usage
from shared.lifecycle.reuse import Cache
from shared.lifecycle.submit import store, submit
from shared.lifecycle.tenants import ensure_tenant, limit_tenant
from shared.states import Stage
from tests.integration.conftest import plain_job
from tests.ledger import ARTIFACT, at_once, claim_grid, claim_image, execute, finish_one_grid, finish_one_image, query


def num_queued(db: Database, tenant_id: str) -> int:
    """As the tenant's row has it, which must be what counting gives."""
    kept = tenant_usage(db, tenant_id).num_queued
    [(counted,)] = query(db, "SELECT count(*) FROM job WHERE tenant_id = :id AND status = 'queued'", id=tenant_id)
    assert kept == counted
    return kept


@pytest.mark.parametrize("cache", [Cache.OFF, Cache.REFRESH], ids=["one statement", "one transaction"])
def test_queue_takes_exactly_what_it_has_room_for(db: Database, new_job: NewJob, cache: Cache) -> None:
    """Of fifty submits at once with room for seven, seven get in, whichever way they are written."""
    results = at_once([lambda: store(db, replace(new_job, cache=cache), Limits(max_queued=7))] * 50)
    refused = [result for result in results if isinstance(result, QueueFullError)]
    assert len(refused) == 43, results
    assert num_queued(db, new_job.tenant_id) == 7
    assert len(query(db, "SELECT id FROM event")) == 7
    assert len(query(db, "SELECT id FROM grid")) == 7


def test_queue_has_room_again_when_a_job_begins_or_ends(db: Database, new_job: NewJob) -> None:
    """Only what has not begun counts: a claim, a cancel and a failure each let one more in, and no other tenant is counted."""
    new, limits = replace(new_job, cache=Cache.OFF), Limits(max_queued=1)

    def assert_full() -> None:
        assert num_queued(db, new.tenant_id) == 1
        with pytest.raises(QueueFullError):
            store(db, new, limits)

    store(db, new, limits)
    assert_full()
    store(db, replace(plain_job(ensure_tenant(db, "other", b"sealed")), cache=Cache.OFF), limits)
    grid = claim_grid(db)
    second = store(db, new, limits).job_id
    assert_full()
    finish.fail(db, Stage.AR, grid.id, grid.attempt, PermanentWorkError("x", "y"), retryable=False)
    assert_full()
    jobs.cancel(db, new.tenant_id, second)
    store(db, new, limits)
    assert_full()


def test_count_stays_true_over_every_end(db: Database, new_job: NewJob) -> None:
    """Success, an answer from the store, sharing of running work, expiry and approval leave the count of queued jobs as it is."""
    done, _ = submit(db, new_job)
    finish_one_grid(db)
    assert num_queued(db, new_job.tenant_id) == 0
    shared, _ = submit(db, new_job)
    assert num_queued(db, new_job.tenant_id) == 1  # its grid is done, its image waits
    claimed = claim_image(db)
    assert num_queued(db, new_job.tenant_id) == 0
    submit(db, new_job)
    assert num_queued(db, new_job.tenant_id) == 0  # joins what runs
    finish.finish_image(db, claimed.id, claimed.attempt, ARTIFACT)
    submit(db, new_job)
    assert num_queued(db, new_job.tenant_id) == 0  # was there already
    assert {done, shared} <= {row[0] for row in query(db, "SELECT id FROM job WHERE status = 'succeeded'")}
    late, _ = submit(db, replace(new_job, seed=5, layout_seed=5, deadline=datetime.now(UTC) + timedelta(seconds=60)))
    held, _ = submit(db, replace(new_job, approval_s=60))
    assert num_queued(db, new_job.tenant_id) == 2
    execute(db, "UPDATE job SET deadline = now(), version = version + 1 WHERE id = :id", id=late)
    jobs.expire(db)
    assert num_queued(db, new_job.tenant_id) == 1
    jobs.cancel(db, new_job.tenant_id, held)
    assert num_queued(db, new_job.tenant_id) == 0


def test_tenant_has_no_more_in_hand_than_it_may(db: Database, new_job: NewJob) -> None:
    """Units of both stages count together; the rest of the window goes to whoever may have more."""
    other = plain_job(ensure_tenant(db, "other", b"sealed"))
    limit_tenant(db, new_job.tenant_id, {"max_running": 2})
    assert is_running_limited(db)
    for seed in range(4):
        submit(db, replace(new_job, seed=seed, layout_seed=seed))
    submit(db, other)

    def release(stage: Stage) -> int:
        return len(work.release(db, stage, 10, is_any_limited=True))

    assert release(Stage.AR) == 2 + 1
    assert release(Stage.AR) == 0
    while grid := claims.claim_grid(db, "w", 30):
        finish.finish_grid(db, grid.id, grid.attempt, ARTIFACT, 10)
    # Two images are ready and two grids wait: whichever stage comes first takes all the room.
    assert release(Stage.DECODER) == 2 + 1
    assert release(Stage.AR) == 0
    finish_one_image(db)
    finish_one_image(db)
    finish_one_image(db)
    assert release(Stage.AR) == 2
    assert tenant_usage(db, new_job.tenant_id).num_in_hand == 2
    # Without a limit of its own a tenant has that of the service; 0 is none.
    limit_tenant(db, new_job.tenant_id, {"max_running": 0})
    submit(db, replace(new_job, seed=9, layout_seed=9))
    assert len(work.release(db, Stage.AR, 10, max_running=1)) == 1


def test_limited_release_keeps_the_order_and_the_window(db: Database, new_job: NewJob) -> None:
    """Most urgent lane first, oldest first, and no more than the window, also where tenants have limits."""
    tenants = [new_job.tenant_id, ensure_tenant(db, "other", b"sealed")]
    ids = [submit(db, replace(plain_job(tenants[number % 2]), seed=number, layout_seed=number))[0] for number in range(6)]
    grids = {row[0]: row[1] for row in query(db, "SELECT job_id, grid_id FROM output JOIN image ON image.id = image_id")}
    assert list(work.release(db, Stage.AR, 4, max_running=10)) == [grids[job] for job in ids[:4]]
    assert work.release(db, Stage.AR, 4, max_running=10) == {}


def test_usage_of_a_day(db: Database, new_job: NewJob) -> None:
    """Seconds count from midnight UTC on, and what is predicted for live work beside them."""
    submit(db, new_job)
    finish_one_grid(db)
    execute(db, "UPDATE usage SET seconds = 12.5")
    yesterday = "date_trunc('day', now()) - interval '1 second'"
    columns = "tenant_id, stage, work_id, units, seconds, created_at"
    execute(db, f"INSERT INTO usage ({columns}) SELECT tenant_id, stage, 'x', 1, 99, {yesterday} FROM usage")
    execute(db, "UPDATE image SET cost_s = 3")
    used = tenant_usage(db, new_job.tenant_id)
    assert (used.gpu_seconds, used.predicted_s, used.num_queued, used.num_running) == (12.5, 3.0, 0, 1)
    assert used.day_began_at <= datetime.now(UTC) < used.day_ends_at
    assert used.day_ends_at - used.day_began_at == timedelta(days=1)


def test_own_limits_go_over_the_defaults() -> None:
    """None is the default, 0 is no limit."""
    defaults = Limits(max_queued=5, max_running=6, requests_per_minute=7, gpu_seconds_per_day=8, results_kept_s=9, live_batches=10)
    assert OwnLimits().over(defaults) == defaults
    own = OwnLimits(max_queued=0, max_running=1, requests_per_minute=0, gpu_seconds_per_day=0.5)
    assert own.over(defaults) == Limits(None, 1, None, 0.5, 9, 10)
    assert OwnLimits(results_kept_s=0).over(defaults).results_kept_s is None


@pytest.mark.parametrize(
    ("events", "is_heard"), [(["*"], True), (["job.*"], True), (["job.queued"], True), (["job.succeeded", "batch.*"], False)]
)
def test_endpoints_hear_of_new_jobs(db: Database, new_job: NewJob, events: list[str], is_heard: bool) -> None:
    """However a job is written, an endpoint that wants its first event gets a delivery, and no other one does."""
    endpoint = NewEndpoint(url="https://example.com/x", host="example.com", events=events, secret=b"s", secret_hint="")
    add_endpoint(db, new_job.tenant_id, endpoint)
    submit(db, replace(new_job, cache=Cache.OFF))
    assert len(query(db, "SELECT id FROM event WHERE type = 'job.queued'")) == 1
    assert len(query(db, "SELECT id FROM webhook_delivery WHERE endpoint_id IS NOT NULL")) == is_heard


def test_jobs_own_webhook_hears_of_its_start(db: Database, new_job: NewJob) -> None:
    """A per-job URL that asked for `job.queued` gets it."""
    submit(db, replace(new_job, webhook={"url": "https://example.com/x", "events": ["job.queued"]}))
    assert len(query(db, "SELECT id FROM webhook_delivery")) == 1
