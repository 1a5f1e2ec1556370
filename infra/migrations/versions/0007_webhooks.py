"""
Webhooks: endpoints with rotation and health, a log of every attempt, replays, and events that are about no job.

What the last attempt of a delivery left becomes the first row of its log.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_PENDING = sa.text("state = 'pending'")
_NOT_DELETED = sa.text("status <> 'deleted'")
_OF_ENDPOINT = sa.text("endpoint_id IS NOT NULL")
_LAST = ("last_reply", "last_latency_ms")

_ENDPOINT_COLUMNS = (
    ("name", sa.Text(), "''"),
    ("description", sa.Text(), "''"),
    ("is_thin", sa.Boolean(), "false"),
    ("metadata", postgresql.JSONB(astext_type=sa.Text()), "'{}'"),
    ("secret_hint", sa.Text(), "''"),
    ("consecutive_failures", sa.BigInteger(), "0"),
    ("breaker_openings", sa.BigInteger(), "0"),
    ("updated_at", sa.DateTime(timezone=True), "clock_timestamp()"),
)
_ENDPOINT_NULLS = (
    ("previous_secret", sa.LargeBinary()),
    ("previous_secret_until", sa.DateTime(timezone=True)),
    ("disabled_reason", sa.Text()),
    ("disabled_at", sa.DateTime(timezone=True)),
    ("failing_since", sa.DateTime(timezone=True)),
    ("breaker_until", sa.DateTime(timezone=True)),
)
_ENDPOINT_CHECKS = (
    ("status_known", "status IN ('enabled', 'disabled', 'deleted')"),
    ("disabled_has_reason", "(status = 'disabled') = (disabled_reason IS NOT NULL)"),
    ("disabled_reason_known", "disabled_reason IN ('manual', 'gone', 'failing')"),
    ("events_named", "cardinality(events) > 0"),
)

_KEEP_LAST = """
INSERT INTO webhook_attempt (delivery_id, attempt, url, headers, status, error, reply, latency_ms)
SELECT id, attempt, url, '{}', last_status, last_error, last_reply, last_latency_ms FROM webhook_delivery
WHERE last_status IS NOT NULL OR last_error IS NOT NULL
"""
_GIVE_BACK_LAST = """
UPDATE webhook_delivery SET last_reply = log.reply, last_latency_ms = log.latency_ms
FROM webhook_attempt AS log WHERE log.delivery_id = webhook_delivery.id AND log.attempt = webhook_delivery.attempt
"""


def upgrade() -> None:
    op.add_column("tenant", sa.Column("previous_webhook_secret", sa.LargeBinary(), nullable=True))
    op.add_column("tenant", sa.Column("previous_webhook_secret_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("tenant", sa.Column("num_endpoints", sa.BigInteger(), server_default="0", nullable=False))
    op.alter_column("event", "job_id", nullable=True)
    _upgrade_endpoints()
    _upgrade_deliveries()


def _upgrade_endpoints() -> None:
    for name, kind, default in _ENDPOINT_COLUMNS:
        op.add_column("webhook_endpoint", sa.Column(name, kind, server_default=sa.text(default), nullable=False))
    for name, null_kind in _ENDPOINT_NULLS:
        op.add_column("webhook_endpoint", sa.Column(name, null_kind, nullable=True))
    op.add_column("webhook_endpoint", sa.Column("host", sa.Text(), nullable=True))
    op.execute("UPDATE webhook_endpoint SET host = lower(substring(url from '^[a-z]+://([^/?#]+)'))")
    op.execute("UPDATE webhook_endpoint SET disabled_reason = 'manual' WHERE status = 'disabled'")
    op.execute("UPDATE webhook_endpoint SET events = ARRAY['*'] WHERE cardinality(events) = 0")
    op.execute(
        "UPDATE tenant SET num_endpoints = "
        "(SELECT count(*) FROM webhook_endpoint WHERE tenant_id = tenant.id AND webhook_endpoint.status = 'enabled')"
    )
    op.alter_column("webhook_endpoint", "host", nullable=False)
    op.drop_constraint(op.f("ck_webhook_endpoint_status_known"), "webhook_endpoint", type_="check")
    for name, rule in _ENDPOINT_CHECKS:
        op.create_check_constraint(op.f(f"ck_webhook_endpoint_{name}"), "webhook_endpoint", rule)
    op.drop_index("ix_webhook_endpoint_tenant_id", table_name="webhook_endpoint")
    op.create_index(
        "ix_webhook_endpoint_tenant", "webhook_endpoint", ["tenant_id", "created_at", "id"], unique=False, postgresql_where=_NOT_DELETED
    )


def _upgrade_deliveries() -> None:
    op.create_table(
        "webhook_attempt",
        sa.Column("delivery_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("headers", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("reply", sa.LargeBinary(), nullable=True),
        sa.Column("latency_ms", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["webhook_delivery.id"], name=op.f("fk_webhook_attempt_delivery_id")),
        sa.PrimaryKeyConstraint("delivery_id", "attempt", name=op.f("pk_webhook_attempt")),
    )
    op.execute(_KEEP_LAST)
    for name in _LAST:
        op.drop_column("webhook_delivery", name)
    op.add_column("webhook_delivery", sa.Column("lane", sa.Text(), nullable=True))
    op.add_column("webhook_delivery", sa.Column("kind", sa.Text(), server_default="live", nullable=False))
    op.add_column("webhook_delivery", sa.Column("tries", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("webhook_delivery", sa.Column("replayed_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE webhook_delivery SET lane = coalesce(endpoint_id, tenant_id || '/' || host), tries = attempt")
    op.alter_column("webhook_delivery", "lane", nullable=False)
    op.drop_column("webhook_delivery", "host")
    op.create_check_constraint(op.f("ck_webhook_delivery_kind_known"), "webhook_delivery", "kind IN ('live', 'replay', 'test')")
    op.drop_constraint(op.f("uq_webhook_delivery_event_id_url"), "webhook_delivery", type_="unique")
    op.create_unique_constraint(
        op.f("uq_webhook_delivery_event_id_endpoint_id"),
        "webhook_delivery",
        ["event_id", "endpoint_id"],
        postgresql_nulls_not_distinct=True,
    )
    op.drop_index("ix_webhook_delivery_due", table_name="webhook_delivery", postgresql_where=_PENDING)
    op.create_index(
        "ix_webhook_delivery_due", "webhook_delivery", ["lane", "kind", "next_at", "id"], unique=False, postgresql_where=_PENDING
    )
    op.create_index("ix_webhook_delivery_tenant", "webhook_delivery", ["tenant_id", "created_at", "id"], unique=False)
    op.create_index(
        "ix_webhook_delivery_endpoint",
        "webhook_delivery",
        ["endpoint_id", "created_at", "id"],
        unique=False,
        postgresql_where=_OF_ENDPOINT,
    )


def downgrade() -> None:
    _downgrade_deliveries()
    _downgrade_endpoints()
    # Events are never deleted, but those about no job had no place before.
    op.execute("ALTER TABLE event DISABLE TRIGGER event_kept")
    op.execute("DELETE FROM event WHERE job_id IS NULL")
    op.execute("ALTER TABLE event ENABLE TRIGGER event_kept")
    op.alter_column("event", "job_id", nullable=False)
    for column in ("num_endpoints", "previous_webhook_secret_until", "previous_webhook_secret"):
        op.drop_column("tenant", column)


def _downgrade_deliveries() -> None:
    op.drop_index("ix_webhook_delivery_endpoint", table_name="webhook_delivery", postgresql_where=_OF_ENDPOINT)
    op.drop_index("ix_webhook_delivery_tenant", table_name="webhook_delivery")
    op.drop_index("ix_webhook_delivery_due", table_name="webhook_delivery", postgresql_where=_PENDING)
    op.create_index("ix_webhook_delivery_due", "webhook_delivery", ["next_at"], unique=False, postgresql_where=_PENDING)
    op.add_column("webhook_delivery", sa.Column("last_reply", sa.LargeBinary(), nullable=True))
    op.add_column("webhook_delivery", sa.Column("last_latency_ms", sa.BigInteger(), nullable=True))
    op.execute(_GIVE_BACK_LAST)
    op.drop_table("webhook_attempt")
    op.execute("DELETE FROM webhook_delivery USING event WHERE event.id = event_id AND event.job_id IS NULL")
    # The same event to the same URL, by the job and by an endpoint: one of them is enough.
    op.execute(
        "DELETE FROM webhook_delivery USING webhook_delivery AS other WHERE other.event_id = webhook_delivery.event_id "
        "AND other.url = webhook_delivery.url AND other.id < webhook_delivery.id"
    )
    op.drop_constraint(op.f("uq_webhook_delivery_event_id_endpoint_id"), "webhook_delivery", type_="unique")
    op.create_unique_constraint(op.f("uq_webhook_delivery_event_id_url"), "webhook_delivery", ["event_id", "url"])
    op.drop_constraint(op.f("ck_webhook_delivery_kind_known"), "webhook_delivery", type_="check")
    op.add_column("webhook_delivery", sa.Column("host", sa.Text(), nullable=True))
    op.execute("UPDATE webhook_delivery SET host = lower(substring(url from '^[a-z]+://([^/?#]+)'))")
    op.alter_column("webhook_delivery", "host", nullable=False)
    for column in ("replayed_at", "tries", "kind", "lane"):
        op.drop_column("webhook_delivery", column)


def _downgrade_endpoints() -> None:
    op.drop_index("ix_webhook_endpoint_tenant", table_name="webhook_endpoint", postgresql_where=_NOT_DELETED)
    op.create_index(op.f("ix_webhook_endpoint_tenant_id"), "webhook_endpoint", ["tenant_id"], unique=False)
    for name, _ in _ENDPOINT_CHECKS:
        op.drop_constraint(op.f(f"ck_webhook_endpoint_{name}"), "webhook_endpoint", type_="check")
    op.execute("UPDATE webhook_endpoint SET status = 'disabled' WHERE status = 'deleted'")
    op.create_check_constraint(op.f("ck_webhook_endpoint_status_known"), "webhook_endpoint", "status IN ('enabled', 'disabled')")
    for column in ("host", *(name for name, _ in _ENDPOINT_NULLS), *(name for name, *_ in _ENDPOINT_COLUMNS)):
        op.drop_column("webhook_endpoint", column)
