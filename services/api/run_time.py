"""
How long a job's own work takes, by the speed that live workers report, and whether its deadline leaves time for it.

Nobody before it in the line is counted: what cannot be done in time even so is refused.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from services.api.field_errors import FieldError, InvalidFieldsError
from services.api.fleet import Fleet
from services.api.parts import Parts
from shared.cost import num_ar_tokens
from shared.grid import TokenGrid
from shared.lifecycle.estimate import plan, plan_retry
from shared.lifecycle.new_job import NewJob


def run_seconds(
    fleet: Fleet, grid: TokenGrid, image_cost_s: float | None, num_sources: int, num_grids: int, num_images: int
) -> float | None:
    """
    From a job's first work to its last image, if so many of its grids and images are to be made. None: workers have not said how fast.

    Grids are written side by side, a token each a turn; images are drawn one after another.
    """
    if not num_images:
        return 0.0
    if image_cost_s is None or not fleet.decoder.num_workers:
        return None
    ar_s = 0.0
    if num_grids:
        if fleet.ar.speed is None or not fleet.ar.slots:
            return None
        ar_s = math.ceil(num_grids / fleet.ar.slots) * num_ar_tokens(grid, num_sources) * fleet.ar.speed.seconds_per_turn
    return ar_s + num_images * image_cost_s / min(num_images, fleet.decoder.num_workers)


def check_deadline(parts: Parts, job: NewJob, num_sources: int) -> None:
    """
    Costs no query, unless there is something to refuse: then it may be that what would take so long is there already.

    Raises:
        InvalidFieldsError: `deadline_unmeetable`.
    """
    # How long a person takes for an approval nobody can tell.
    if job.deadline is None or job.approval_s is not None:
        return
    left_s = (job.deadline - datetime.now(UTC)).total_seconds()
    fleet = parts.fleet.get()
    num_grids = 0 if job.redecode_of is not None else 1 if job.same_layout else job.num_images
    alone_s = run_seconds(fleet, job.grid, job.image_cost_s, num_sources, num_grids, job.num_images)
    if alone_s is None or alone_s <= left_s:
        return
    todo = plan(parts.db, job)
    _refuse_late(left_s, run_seconds(fleet, job.grid, job.image_cost_s, num_sources, min(num_grids, todo.num_grids), todo.num_images))


def check_retry(parts: Parts, tenant_id: str, job_id: str, deadline: datetime | None) -> None:
    """
    The same of another run of a job, for what it has not got yet.

    Args:
        deadline: of this run; None: as it was, if it has not passed.
    Raises:
        InvalidFieldsError: `deadline_unmeetable`.
    """
    todo = plan_retry(parts.db, tenant_id, job_id)
    if todo is None:
        return
    deadline = deadline or todo.deadline
    left_s = math.inf if deadline is None else (deadline - datetime.now(UTC)).total_seconds()
    if left_s > 0:
        run_s = run_seconds(parts.fleet.get(), todo.grid, todo.image_cost_s, todo.num_sources, todo.num_grids, todo.num_images)
        _refuse_late(left_s, run_s)


def _refuse_late(left_s: float, alone_s: float | None) -> None:
    if alone_s is not None and alone_s > left_s:
        detail = f"deadline: in {left_s:.1f} s, and the job takes about {alone_s:.1f} s if nothing is before it"
        raise InvalidFieldsError([FieldError(("deadline",), "unmeetable", detail, "deadline_unmeetable")])
