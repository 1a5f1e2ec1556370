"""
Runs and erasure: a job that did not succeed may be retried, and ends once per run; a job may be erased, and with it what its events say.

A job keeps one end per run when this is undone: the newest.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_NEW_MOVES = [
    *(("grid", origin, "ready") for origin in ("failed", "canceled")),
    *(("image", origin, target) for origin in ("failed", "canceled") for target in ("waiting", "ready")),
    *(("job", origin, "queued") for origin in ("failed", "canceled", "expired")),
]
_MOVE = sa.table("allowed_move", sa.column("machine", sa.Text()), sa.column("origin", sa.Text()), sa.column("target", sa.Text()))
_ENDS = sa.text("type IN ('job.succeeded', 'job.failed', 'job.canceled', 'job.expired')")

_KEEP_EVENTS = """
CREATE OR REPLACE FUNCTION keep_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {exception}
    RAISE EXCEPTION 'event %: events are never changed or deleted', OLD.id USING ERRCODE = 'check_violation';
END $$
"""
_UNLESS_ERASED = """
    IF TG_OP = 'UPDATE' AND to_jsonb(NEW) - 'data' = to_jsonb(OLD) - 'data'
        AND NEW.data = jsonb_build_object('id', OLD.job_id, 'object', 'job', 'erased', true) THEN
        RETURN NEW;
    END IF;
"""
# Their numbers are seen, so they stay as events; but of two ends the earlier one must not be an end any more.
_FORGET_ENDS = """
UPDATE event SET type = 'job.requeued' FROM job
WHERE job.id = event.job_id AND event.run < job.run AND type IN ('job.succeeded', 'job.failed', 'job.canceled', 'job.expired')
"""


def upgrade() -> None:
    op.add_column("job", sa.Column("run", sa.BigInteger(), server_default="1", nullable=False))
    op.add_column("job", sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(op.f("ck_job_erased_is_over"), "job", "erased_at IS NULL OR completed_at IS NOT NULL")
    op.add_column("event", sa.Column("run", sa.BigInteger(), server_default="1", nullable=False))
    op.drop_index("uq_event_end", table_name="event", postgresql_where=_ENDS)
    op.create_index("uq_event_end", "event", ["job_id", "run"], unique=True, postgresql_where=_ENDS)
    op.create_index(
        "ix_grid_sources", "grid", ["source_file_ids"], postgresql_using="gin", postgresql_where=sa.text("source_file_ids <> '{}'")
    )
    op.create_table(
        "doomed_object",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_doomed_object")),
    )
    op.create_index("ix_doomed_object_due", "doomed_object", ["due_at"])
    op.execute(_KEEP_EVENTS.format(exception=_UNLESS_ERASED))
    op.bulk_insert(_MOVE, [{"machine": machine, "origin": origin, "target": target} for machine, origin, target in _NEW_MOVES])


def downgrade() -> None:
    for machine, origin, target in _NEW_MOVES:
        op.execute(sa.delete(_MOVE).where(_MOVE.c.machine == machine, _MOVE.c.origin == origin, _MOVE.c.target == target))
    op.execute("ALTER TABLE event DISABLE TRIGGER event_kept")
    op.execute(_FORGET_ENDS)
    op.execute("ALTER TABLE event ENABLE TRIGGER event_kept")
    op.execute(_KEEP_EVENTS.format(exception=""))
    op.drop_index("ix_doomed_object_due", table_name="doomed_object")
    op.drop_table("doomed_object")
    op.drop_index("ix_grid_sources", table_name="grid", postgresql_where=sa.text("source_file_ids <> '{}'"))
    op.drop_index("uq_event_end", table_name="event", postgresql_where=_ENDS)
    op.drop_column("event", "run")
    op.create_index("uq_event_end", "event", ["job_id"], unique=True, postgresql_where=_ENDS)
    op.drop_constraint(op.f("ck_job_erased_is_over"), "job", type_="check")
    op.drop_column("job", "erased_at")
    op.drop_column("job", "run")
