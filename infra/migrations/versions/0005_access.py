"""
Access: what a tenant may use, what a key may ask for, and operators, whose keys make tenants.

`num_queued` is counted once here and kept by every event from then on.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_LIMITS: tuple[tuple[str, sa.types.TypeEngine[Any]], ...] = (
    ("max_queued", sa.BigInteger()),
    ("max_running", sa.BigInteger()),
    ("requests_per_minute", sa.BigInteger()),
    ("gpu_seconds_per_day", sa.Double()),
)
_COUNT_QUEUED = """
UPDATE tenant SET num_queued = (SELECT count(*) FROM job WHERE job.tenant_id = tenant.id AND job.status = 'queued')
"""


def upgrade() -> None:
    for name, kind in _LIMITS:
        op.add_column("tenant", sa.Column(name, kind))
        op.create_check_constraint(f"{name}_not_negative", "tenant", f"{name} >= 0")
    op.add_column("tenant", sa.Column("num_queued", sa.BigInteger(), server_default="0", nullable=False))
    op.execute(_COUNT_QUEUED)
    op.add_column("api_key", sa.Column("max_priority", sa.Text(), server_default="interactive", nullable=False))
    op.create_check_constraint("max_priority_known", "api_key", "max_priority IN ('interactive', 'standard', 'bulk')")
    _know_scopes("'read', 'submit', 'admin', 'operator'")
    for table in ("grid", "image"):
        op.create_index(
            f"ix_{table}_tenant_ready", table, ["tenant_id", "lane", "created_at", "id"], postgresql_where=sa.text("state = 'ready'")
        )


def downgrade() -> None:
    for table in ("grid", "image"):
        op.drop_index(f"ix_{table}_tenant_ready", table)
    op.execute("UPDATE api_key SET scopes = ARRAY['read', 'submit', 'admin'] WHERE 'operator' = ANY (scopes)")
    _know_scopes("'read', 'submit', 'admin'")
    op.drop_column("api_key", "max_priority")
    op.drop_column("tenant", "num_queued")
    for name, _ in _LIMITS:
        op.drop_column("tenant", name)


def _know_scopes(scopes: str) -> None:
    op.drop_constraint(op.f("ck_api_key_scopes_known"), "api_key")
    op.create_check_constraint("scopes_known", "api_key", f"scopes <@ ARRAY[{scopes}] AND cardinality(scopes) > 0")
