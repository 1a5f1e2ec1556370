"""Rescue: work of dead workers goes back to the queue, jobs past their deadline end."""

from __future__ import annotations

import structlog

from shared.db import Database
from shared.lifecycle import finish, jobs, work
from shared.progress import LiveState
from shared.states import Stage

_BATCH = 50

log = structlog.get_logger()


def rescue_all(db: Database, live: LiveState) -> None:
    """
    One look at everything that may be lost or late.

    Raises:
        DatabaseDownError
    """
    for stage in Stage:
        count, stopped = work.rescue(db, stage)
        if count:
            log.warning("work_rescued", stage=stage, units=count)
        live.flag_stop(stopped)
    for grid_id in finish.untold_grids(db, _BATCH):
        finish.tell_tokens(db, grid_id)
    live.flag_stop(jobs.expire(db))
