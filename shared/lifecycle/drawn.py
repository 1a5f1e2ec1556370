"""The images of jobs and the grids they are drawn from, read by one statement. Writes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy.orm import Session

from shared.db import read_rows
from shared.job_document import JobImage
from shared.tables import Grid

_GRID_COLUMNS = {name: f"of_grid_{name}" for name in Grid.__table__.columns.keys()}  # noqa: SIM118 - a collection of columns, not a dict
OF_GRID = ", ".join(f"grid.{name} AS {alias}" for name, alias in _GRID_COLUMNS.items())
"""SQL: the columns of `grid`, beside those of an image."""
_IMAGES = f"""
    SELECT output.job_id AS of_job, output.is_cached, clock_timestamp() AS read_at, image.*, {OF_GRID}
    FROM output JOIN image ON image.id = output.image_id JOIN grid ON grid.id = image.grid_id
    WHERE output.job_id {{}} ORDER BY output.job_id, output.index
"""  # noqa: S608 - our own names
# A list Postgres would plan anew each time, because a short one is cheaper than what it assumes; that takes longer than reading one job.
_IMAGES_OF_ONE = _IMAGES.format("= %(jobs)s")
_IMAGES_OF_MANY = _IMAGES.format("= ANY(%(jobs)s::text[])")


@dataclass
class Drawn:
    """
    Images and the grids they are drawn from.

    Attributes:
        images: of each job, by index.
        grids: by id.
        read_at: the database's clock; None if there is no image.
    """

    images: dict[str, list[JobImage]]
    grids: dict[str, Grid]
    read_at: datetime | None = None


def read_drawn(session: Session, job_ids: Collection[str]) -> Drawn:
    """What is drawn for these jobs, as it is now. To be read: not the session's own rows."""
    drawn = Drawn({job_id: [] for job_id in job_ids}, {})
    ids = list(job_ids)
    statement, jobs = (_IMAGES_OF_ONE, ids[0]) if len(ids) == 1 else (_IMAGES_OF_MANY, ids)
    for row in read_rows(session, statement, {"jobs": jobs}):
        drawn.read_at = row.read_at
        drawn.images[row.of_job].append(JobImage(row, row.is_cached))
        if row.grid_id not in drawn.grids:
            drawn.grids[row.grid_id] = _grid_of(row)
    return drawn


def just_drawn(row: Any, job_ids: Iterable[str]) -> Drawn:
    """
    What is drawn for jobs that have no other image than the one which just ended.

    Args:
        row: the image's columns and `OF_GRID`.
    """
    return Drawn({job_id: [JobImage(row, is_cached=False)] for job_id in job_ids}, {row.grid_id: _grid_of(row)}, row.finished_at)


def _grid_of(row: Any) -> Grid:
    return cast(Grid, SimpleNamespace(**{name: getattr(row, alias) for name, alias in _GRID_COLUMNS.items()}))
