"""What is released when not everything fits: the dispatcher's order on real rows, and what each unit of work tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.dispatcher.policy import Rules
from services.dispatcher.release import FairOrder
from shared.db import Database
from shared.lifecycle import candidates, claims, jobs, work
from shared.lifecycle.candidates import START, Order, look
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.retry import retry
from shared.lifecycle.reuse import Cache
from shared.lifecycle.submit import submit
from shared.lifecycle.tenants import ensure_tenant, limit_tenant
from shared.states import Priority, Stage
from tests.integration.conftest import plain_job
from tests.ledger import LEASE_S, execute, finish_one_grid, query


@pytest.fixture
def small(db: Database) -> NewJob:
    """A request of another tenant."""
    return plain_job(ensure_tenant(db, "small", b"sealed"))


@pytest.fixture
def order() -> FairOrder:
    """The dispatcher's, with a quantum that one unit of `submit_some` uses up."""
    return FairOrder(Rules(quantum_s=5.0))


def submit_some(db: Database, new: NewJob, num: int, **changes: object) -> None:
    """Jobs that share nothing; their prompts are numbered."""
    (first,) = query(db, "SELECT count(*) FROM grid")[0]
    for number in range(first, first + num):
        priced = replace(new, prompt=str(number), grid_cost_s=5.0, cache=Cache.OFF)
        submit(db, replace(priced, **changes))  # type: ignore[arg-type]  # fields of the dataclass


def prompts(db: Database, ids: Sequence[str]) -> list[str]:
    named = dict(query(db, "SELECT id, prompt FROM grid"))
    return [named[unit_id] for unit_id in ids]


def release(db: Database, window: int, order: Order, **more: object) -> list[str]:
    return prompts(db, list(work.release(db, Stage.AR, window, order=order, **more)))  # type: ignore[arg-type]  # its keywords


def test_tenants_take_turns(db: Database, new_job: NewJob, small: NewJob, order: FairOrder) -> None:
    """A tenant with a long line holds up another one by one unit, lanes go by urgency, and claims keep the order of release."""
    submit_some(db, new_job, 5)
    submit_some(db, small, 1)
    submit_some(db, new_job, 1, priority=Priority.INTERACTIVE)
    submit_some(db, new_job, 1, priority=Priority.BULK)
    assert release(db, 4, order) == ["6", "0", "5", "1"]
    claimed = [claims.claim_grid(db, "w", LEASE_S) for _ in range(4)]
    assert [claim.prompt for claim in claimed if claim] == ["6", "0", "5", "1"]
    assert release(db, 4, order) == []
    execute(db, "UPDATE grid SET state = 'canceled', lease_until = NULL WHERE state = 'running'")
    assert release(db, 10, order) == ["2", "3", "4", "7"], "what fits goes at once, lane by lane and oldest first"


def test_large_window_is_filled(db: Database, new_job: NewJob) -> None:
    """By as many looks as it takes; without an order of its own a release goes by lane and age."""
    submit_some(db, new_job, work.AT_ONCE + 5)
    assert release(db, work.AT_ONCE + 3, Order()) == [str(number) for number in range(work.AT_ONCE + 3)]


def test_limits_hold_where_not_all_fits(db: Database, new_job: NewJob, small: NewJob, order: FairOrder) -> None:
    """A tenant gets no more than it may have in hand of both stages; what it leaves goes to others, and none is passed by for it."""
    submit_some(db, new_job, 4)
    finish_one_grid(db)
    execute(db, "UPDATE grid SET state = 'ready', released_at = NULL WHERE state = 'released'")
    work.release(db, Stage.DECODER, 1)
    limit_tenant(db, new_job.tenant_id, {"max_running": 2})
    submit_some(db, small, 2)
    assert release(db, 10, order, is_any_limited=True) == ["1", "4", "5"]
    assert release(db, 10, order, is_any_limited=True) == []
    submit_some(db, small, 3)
    assert release(db, 5, order, is_any_limited=True) == ["6", "7"]


def test_cheap_work_is_found_behind_dear(db: Database, new_job: NewJob, order: FairOrder) -> None:
    """A unit of a tenant that is soon done passes older ones that take long, though many stand between."""
    submit_some(db, new_job, 4, grid_cost_s=40.0)
    submit_some(db, new_job, 1, grid_cost_s=0.5)
    execute(db, "UPDATE grid SET created_at = created_at - interval '1 s'")
    assert release(db, 2, order) == ["4", "0"]


def test_near_deadline_goes_first(db: Database, new_job: NewJob, order: FairOrder) -> None:
    """Found by its deadline, however many are older or will be late anyway, and read once though it is among the oldest too."""
    now = datetime.now(UTC)
    submit_some(db, new_job, 1, deadline=now + timedelta(seconds=300))
    submit_some(db, new_job, 3)
    submit_some(db, new_job, 1, deadline=now + timedelta(seconds=100))
    submit_some(db, new_job, 1, deadline=now + timedelta(seconds=5000))
    submit_some(db, new_job, 4, deadline=now + timedelta(seconds=4))
    assert release(db, 3, order) == ["4", "0", "1"]


def test_work_has_the_earliest_deadline_of_its_jobs(db: Database, new_job: NewJob) -> None:
    """A job that joins hurries the work, one whose deadline has passed does so no longer, and a retry brings its own."""
    at = [datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=minutes) for minutes in range(5)]

    def deadlines() -> list[object]:
        return [
            row[0] for row in query(db, "SELECT DISTINCT deadline FROM (SELECT deadline FROM grid UNION ALL SELECT deadline FROM image) x")
        ]

    submit(db, new_job)
    assert deadlines() == [None]
    submit(db, replace(new_job, deadline=at[3]))
    submit(db, replace(new_job, deadline=at[4]))
    submit(db, new_job)
    assert deadlines() == [at[3]]
    for table in ("grid", "image"):
        execute(db, f"UPDATE {table} SET deadline = now() - interval '1 s'")
    job_id, _ = submit(db, replace(new_job, deadline=at[4]))
    assert deadlines() == [at[4]]
    jobs.cancel(db, new_job.tenant_id, job_id)
    retry(db, new_job.tenant_id, job_id, at[2])
    assert deadlines() == [at[2]]
    alone, _ = submit(db, replace(new_job, prompt="other", deadline=at[2]))
    jobs.cancel(db, new_job.tenant_id, alone)
    retry(db, new_job.tenant_id, alone, at[1])
    assert query(db, "SELECT deadline FROM grid WHERE prompt = 'other'") == [(at[1],)]


def test_more_tenants_than_one_look_sees(db: Database, order: FairOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look goes on where the last one stopped, so that everybody is seen."""
    monkeypatch.setattr(candidates, "MAX_GROUPS", 2)
    for number in range(5):
        submit_some(db, plain_job(ensure_tenant(db, f"tenant {number}", b"sealed")), 2)
    first = look(db, Stage.AR, 1, order, None, is_limited=False)
    assert (len(first.waiting), first.are_all) == (2, False)
    assert first.stopped_at[1] != START[1]
    assert len(set(release(db, 9, order))) == 9
    assert order.begin_at == START


def test_what_waits_for_another_try_is_passed_by(db: Database, new_job: NewJob, order: FairOrder) -> None:
    """A unit with a pause before it is neither chosen nor counted, and what was canceled since the look is not released."""
    submit_some(db, new_job, 4)
    execute(db, "UPDATE grid SET not_before = clock_timestamp() + interval '1 hour' WHERE prompt = '0'")
    assert release(db, 1, order) == ["1"]

    class Late(Order):
        def choose(self, seen: candidates.Seen, room: int) -> list[str]:
            execute(db, "UPDATE grid SET state = 'canceled' WHERE prompt = '2'")
            return super().choose(seen, room)

    assert release(db, 2, Late()) == []
    assert release(db, 2, order) == ["3"]


def test_released_work_is_claimed_in_time(db: Database, new_job: NewJob, order: FairOrder) -> None:
    """An urgent lane has a head start before the next one, ten seconds, and twice that before the one after; no more."""
    submit_some(db, new_job, 2, priority=Priority.BULK)
    work.release(db, Stage.AR, 10, order=order)
    execute(db, "UPDATE grid SET released_at = released_at - interval '21 s' WHERE prompt = '1'")
    submit_some(db, new_job, 1, priority=Priority.INTERACTIVE)
    work.release(db, Stage.AR, 10, order=order)
    claimed = [claims.claim_grid(db, "w", LEASE_S) for _ in range(3)]
    assert [claim.prompt for claim in claimed if claim] == ["1", "2", "0"]
