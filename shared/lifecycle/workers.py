"""Which GPU workers live, what they loaded, and how much they can hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from statistics import fmean
from typing import Any

from sqlalchemy import and_, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.cost import Speed
from shared.db import Database
from shared.states import Stage
from shared.tables import Worker

ALIVE_S = 15
"""A worker not seen for so long gets no new work."""

_now = func.clock_timestamp


def beat_worker(
    db: Database, worker_id: str, stage: Stage, host: str, pid: int, slots: int, model: dict[str, Any], speed: Speed | None = None
) -> None:
    """Say that a worker lives, and how fast it was lately; the first beat registers it."""
    reported = None if speed is None else asdict(speed)
    row = insert(Worker).values(id=worker_id, stage=stage, host=host, pid=pid, slots=slots, model=model, speed=reported)
    again = row.on_conflict_do_update(index_elements=[Worker.id], set_={"seen_at": _now(), "speed": row.excluded.speed})
    db.run(lambda session: session.execute(again))


def stop_worker(db: Database, worker_id: str) -> None:
    """Say that a worker takes no more work."""
    db.run(lambda session: session.execute(update(Worker).where(Worker.id == worker_id).values(stopped_at=_now())))


def count_slots(db: Database, stage: Stage) -> int:
    """Units that the live workers of a stage can hold at once."""
    query = select(func.coalesce(func.sum(Worker.slots), 0)).where(*_alive(stage))
    return db.run(lambda session: int(session.execute(query).scalar_one()))


def count_workers(db: Database, stage: Stage) -> int:
    """Live workers of a stage."""
    return db.run(lambda session: session.scalar(select(func.count()).where(*_alive(stage))) or 0)


@dataclass(frozen=True)
class StageFleet:
    """
    The live workers of a stage.

    Attributes:
        model: what the one that started last loaded; None if there is none.
        speed: the mean of those that have worked; None if none has.
    """

    num_workers: int
    slots: int
    model: dict[str, Any] | None
    speed: Speed | None


def read_fleet(db: Database, stage: Stage) -> StageFleet:
    """Who lives, and how fast they were lately."""
    query = select(Worker.slots, Worker.model, Worker.speed).where(*_alive(stage)).order_by(Worker.started_at.desc())
    rows = db.run(lambda session: session.execute(query).all())
    speeds = [Speed(**row.speed) for row in rows if row.speed]
    mean = Speed(fmean(one.seconds_per_unit for one in speeds), fmean(one.seconds_per_turn for one in speeds)) if speeds else None
    return StageFleet(len(rows), sum(row.slots for row in rows), rows[0].model if rows else None, mean)


def latest_model(db: Database) -> dict[str, Any] | None:
    """
    What the live AR worker that started last loaded. Where none lives, the last one of all: between two workers, jobs are accepted for its
    model.

    By their start: while workers are being replaced, old and new ones would take turns in having been seen last. The AR worker, because
    prompts, sizes and sources are bounded by its half.
    """

    def work(session: Session) -> dict[str, Any] | None:
        is_alive = and_(*_alive(Stage.AR))
        newest = select(Worker.model).where(Worker.stage == Stage.AR).order_by(is_alive.desc(), Worker.started_at.desc())
        return session.scalar(newest.limit(1))

    return db.run(work)


def first_seen(db: Database, revision: str) -> datetime:
    """When a worker first said that it had loaded this revision; now, if none has."""
    query = select(func.coalesce(func.min(Worker.started_at), _now())).where(Worker.model["revision"].astext == revision)
    return db.run(lambda session: session.execute(query).scalar_one())


def _alive(stage: Stage) -> tuple[Any, ...]:
    return Worker.stage == stage, Worker.stopped_at.is_(None), Worker.seen_at > _now() - timedelta(seconds=ALIVE_S)
