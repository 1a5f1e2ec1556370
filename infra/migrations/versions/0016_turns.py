"""Turns: units carry the earliest deadline of their jobs, and those that wait are found by lane, tenant and class of cost."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_TABLES = ("grid", "image")
_READY = sa.text("state = 'ready'")
_COST_CLASS = sa.text(
    "width_bucket(COALESCE(cost_s, 'Infinity'::double precision), "
    "'{0.0625,0.125,0.25,0.5,1,2,4,8,16,32,64,128,256,512,1024,2048}'::double precision[])"
)
_WANTED = """
    UPDATE {table} SET deadline = wanted.deadline
    FROM (
        SELECT {unit} AS id, min(job.deadline) AS deadline
        FROM job JOIN output ON output.job_id = job.id JOIN image ON image.id = output.image_id
        WHERE job.deadline IS NOT NULL AND job.status IN ('queued', 'running')
        GROUP BY 1
    ) AS wanted
    WHERE {table}.id = wanted.id
"""


def upgrade() -> None:
    for table, unit in zip(_TABLES, ("image.grid_id", "image.id"), strict=True):
        op.add_column(table, sa.Column("deadline", sa.DateTime(timezone=True), nullable=True))
        op.execute(_WANTED.format(table=table, unit=unit))
        op.drop_index(f"ix_{table}_tenant_ready", table)
        op.create_index(f"ix_{table}_turn", table, ["lane", "tenant_id", _COST_CLASS, "created_at", "id"], postgresql_where=_READY)
        op.create_index(
            f"ix_{table}_due",
            table,
            ["lane", "tenant_id", "deadline"],
            postgresql_where=sa.text("state = 'ready' AND deadline IS NOT NULL"),
        )


def downgrade() -> None:
    for table in _TABLES:
        op.drop_index(f"ix_{table}_due", table)
        op.drop_index(f"ix_{table}_turn", table)
        op.create_index(f"ix_{table}_tenant_ready", table, ["tenant_id", "lane", "created_at", "id"], postgresql_where=_READY)
        op.drop_column(table, "deadline")
