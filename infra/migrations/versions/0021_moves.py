"""A move is checked by the column that tells it; before, by the whole row as JSON, which took half as long as writing the row."""

from __future__ import annotations

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

_CHECK_MOVE = """
CREATE OR REPLACE FUNCTION check_move() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    {states}
BEGIN
    {read}
    IF old_state <> new_state AND NOT EXISTS (
        SELECT FROM allowed_move WHERE machine = TG_TABLE_NAME AND origin = old_state AND target = new_state
    ) THEN
        RAISE EXCEPTION '% %: move from % to % is not allowed', TG_TABLE_NAME, NEW.id, old_state, new_state
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$
"""
_BY_COLUMN = (
    """
    old_state text := 'new';
    new_state text;
""",
    """
    IF TG_ARGV[0] = 'status' THEN
        new_state := NEW.status;
        IF TG_OP = 'UPDATE' THEN
            old_state := OLD.status;
        END IF;
    ELSE
        new_state := NEW.state;
        IF TG_OP = 'UPDATE' THEN
            old_state := OLD.state;
        END IF;
    END IF;
""",
)
_BY_JSON = (
    """
    column_name text := TG_ARGV[0];
    old_state text := CASE TG_OP WHEN 'INSERT' THEN 'new' ELSE to_jsonb(OLD) ->> column_name END;
    new_state text := to_jsonb(NEW) ->> column_name;
""",
    "",
)


def upgrade() -> None:
    _replace(*_BY_COLUMN)


def downgrade() -> None:
    _replace(*_BY_JSON)


def _replace(states: str, read: str) -> None:
    op.execute(_CHECK_MOVE.format(states=states, read=read))
