"""Retention: how long a tenant's results are kept, and what old rows are found by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_EXPIRES = "expires_at IS NOT NULL"
_KEEP_EVENTS = """
CREATE OR REPLACE FUNCTION keep_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND to_jsonb(NEW) - 'data' = to_jsonb(OLD) - 'data'
        AND NEW.data = jsonb_build_object('id', OLD.job_id, 'object', 'job', 'erased', true) THEN
        RETURN NEW;
    END IF;
    {exception}
    RAISE EXCEPTION 'event %: events are never changed or deleted', OLD.id USING ERRCODE = 'check_violation';
END $$
"""
_UNLESS_PRUNED = """
    IF TG_OP = 'DELETE' AND current_setting('glmq.prunes_events', true) = 'yes' THEN
        RETURN OLD;
    END IF;
"""


def upgrade() -> None:
    op.add_column("tenant", sa.Column("results_kept_s", sa.BigInteger(), nullable=True))
    op.create_check_constraint("results_kept_s_not_negative", "tenant", "results_kept_s >= 0")
    op.drop_index("ix_job_expires", table_name="job", postgresql_where=sa.text(_EXPIRES))
    op.create_index("ix_job_expires", "job", ["expires_at"], postgresql_where=sa.text(f"{_EXPIRES} AND erased_at IS NULL"))
    op.create_index("ix_idempotency_key_created", "idempotency_key", ["created_at"])
    op.create_index("ix_client_try_created", "client_try", ["created_at"])
    op.create_index("ix_batch_keyed", "batch", ["created_at"], postgresql_where=sa.text("idempotency_key IS NOT NULL"))
    op.execute(_KEEP_EVENTS.format(exception=_UNLESS_PRUNED))


def downgrade() -> None:
    op.execute(_KEEP_EVENTS.format(exception=""))
    op.drop_index("ix_batch_keyed", table_name="batch", postgresql_where=sa.text("idempotency_key IS NOT NULL"))
    op.drop_index("ix_client_try_created", table_name="client_try")
    op.drop_index("ix_idempotency_key_created", table_name="idempotency_key")
    op.drop_index("ix_job_expires", table_name="job", postgresql_where=sa.text(f"{_EXPIRES} AND erased_at IS NULL"))
    op.create_index("ix_job_expires", "job", ["expires_at"], postgresql_where=sa.text(_EXPIRES))
    op.drop_column("tenant", "results_kept_s")
