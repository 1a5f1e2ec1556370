"""
Work may be released by the statement that makes it ready.

And images that a submit had added while their grid ended, which waited for ever before that was mended, are drawn now.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_NEW_MOVES = [("grid", "new", "released"), ("image", "waiting", "released")]
_MOVE = sa.table("allowed_move", sa.column("machine", sa.Text()), sa.column("origin", sa.Text()), sa.column("target", sa.Text()))


def upgrade() -> None:
    op.bulk_insert(_MOVE, [{"machine": machine, "origin": origin, "target": target} for machine, origin, target in _NEW_MOVES])
    op.execute("UPDATE image SET state = 'ready' WHERE state = 'waiting' AND grid_id IN (SELECT id FROM grid WHERE state = 'done')")


def downgrade() -> None:
    for machine, origin, target in _NEW_MOVES:
        op.execute(sa.delete(_MOVE).where(_MOVE.c.machine == machine, _MOVE.c.origin == origin, _MOVE.c.target == target))
