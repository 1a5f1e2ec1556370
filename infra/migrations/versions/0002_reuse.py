"""
Reuse: images that several jobs share, layouts that wait for approval, drafts and previews, adapters and fast drawing.

Jobs point to images through `output`, as images point to grids. Images of before get no key: nobody finds them, and nothing is
drawn again for their own jobs.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_NEW_MOVES = [
    ("grid", "running", "held"),
    ("grid", "held", "ready"),
    ("grid", "held", "canceled"),
    ("job", "queued", "succeeded"),
]
_MOVE = sa.table("allowed_move", sa.column("machine", sa.Text()), sa.column("origin", sa.Text()), sa.column("target", sa.Text()))
_ALIVE = sa.text("state NOT IN ('failed', 'canceled')")
_STATES = "'waiting', 'ready', 'released', 'running', 'done', 'failed', 'canceled'"

# Each job gets an image of its own again. The first job of an image, one that is not over if there is one, keeps the row; the others
# get copies. What ran for both runs twice; what a job had not got when it ended is canceled.
_PART_IMAGES = """
CREATE TEMPORARY TABLE parted AS
SELECT output.job_id, output.index, output.image_id,
       row_number() OVER (PARTITION BY output.image_id ORDER BY job.completed_at IS NOT NULL, job.status <> 'succeeded', job.id) AS rank,
       job.completed_at IS NOT NULL
           AND image.state NOT IN ('failed', 'canceled')
           AND (image.state <> 'done' OR image.finished_at > job.completed_at) AS is_over
FROM output JOIN job ON job.id = output.job_id JOIN image ON image.id = output.image_id
"""
_COPY_IMAGES = """
INSERT INTO image (
    id, tenant_id, job_id, index, grid_id, seed, steps, guidance_scale, height_px, width_px, format, quality, state, lane, attempt,
    num_lost, num_errors, worker_id, not_before, cost_s, error, started_at, finished_at, created_at, storage_key, sha256, size_bytes
)
SELECT 'img_' || substr(md5(parted.image_id || parted.job_id || parted.index), 1, 26),
       tenant_id, parted.job_id, parted.index, grid_id, seed, steps, guidance_scale, height_px, width_px, format, quality,
       CASE WHEN is_over THEN 'canceled' WHEN state IN ('released', 'running') THEN 'ready' ELSE state END,
       lane, attempt, num_lost, num_errors, worker_id, not_before, cost_s, error, started_at, finished_at, created_at,
       storage_key, sha256, size_bytes
FROM parted JOIN image ON image.id = parted.image_id
WHERE rank > 1
"""
_KEEP_IMAGES = """
UPDATE image
SET job_id = parted.job_id, index = parted.index, state = CASE WHEN is_over THEN 'canceled' ELSE state END
FROM parted
WHERE image.id = image_id AND rank = 1
"""


def upgrade() -> None:
    _know_held(f"{_STATES}, 'held'")
    op.bulk_insert(_MOVE, [dict(zip(("machine", "origin", "target"), move, strict=True)) for move in _NEW_MOVES])
    _upgrade_jobs()
    _upgrade_grids()
    _upgrade_images()


def downgrade() -> None:
    # The states below are written past the table of moves.
    for table, trigger in (("grid", "grid_move"), ("image", "image_move")):
        op.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")
    _downgrade_images()
    _downgrade_grids()
    _downgrade_jobs()
    op.execute(sa.delete(_MOVE).where(sa.tuple_(*_MOVE.c).in_(_NEW_MOVES)))
    _know_held(_STATES)
    for table, trigger in (("grid", "grid_move"), ("image", "image_move")):
        op.execute(f"ALTER TABLE {table} ENABLE TRIGGER {trigger}")


def _know_held(states: str) -> None:
    for table in ("grid", "image"):
        op.drop_constraint(op.f(f"ck_{table}_state_known"), table, type_="check")
        op.create_check_constraint(op.f(f"ck_{table}_state_known"), table, f"state IN ({states})")


def _upgrade_jobs() -> None:
    op.add_column("job", sa.Column("wants_previews", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("job", sa.Column("approval_s", sa.Double(), nullable=True))
    op.add_column("job", sa.Column("approval_deadline", sa.DateTime(timezone=True), nullable=True))
    op.add_column("job", sa.Column("redecode_of", sa.Text(), nullable=True))
    op.create_foreign_key(op.f("fk_job_redecode_of"), "job", "job", ["redecode_of"], ["id"])
    op.create_check_constraint(op.f("ck_job_approval_deadline_if_approval"), "job", "approval_deadline IS NULL OR approval_s IS NOT NULL")
    op.create_index(
        "ix_job_approval",
        "job",
        ["approval_deadline"],
        unique=False,
        postgresql_where=sa.text("approval_deadline IS NOT NULL AND status IN ('queued', 'running')"),
    )


def _upgrade_grids() -> None:
    op.alter_column("grid", "key", nullable=True)
    op.add_column("grid", sa.Column("lora", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False))
    op.add_column("grid", sa.Column("needs_approval", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("grid", sa.Column("num_rejected", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("grid", sa.Column("draft_token_ids", sa.ARRAY(sa.SmallInteger()), nullable=True))
    op.add_column("grid", sa.Column("wants_preview", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("grid", sa.Column("preview", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("grid", sa.Column("preview_attempt", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("grid", sa.Column("preview_worker_id", sa.Text(), nullable=True))
    op.add_column("grid", sa.Column("preview_lease_until", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(op.f("ck_grid_draft_bounded"), "grid", "cardinality(draft_token_ids) BETWEEN 1 AND 512")
    op.create_check_constraint(
        op.f("ck_grid_held_has_draft"), "grid", "state <> 'held' OR (needs_approval AND draft_token_ids IS NOT NULL)"
    )
    op.create_check_constraint(op.f("ck_grid_done_is_approved"), "grid", "state <> 'done' OR NOT needs_approval")
    op.create_check_constraint(
        op.f("ck_grid_preview_needs_draft"), "grid", "NOT wants_preview OR (draft_token_ids IS NOT NULL AND preview IS NULL)"
    )
    op.create_index("ix_grid_preview", "grid", ["lane", "created_at"], unique=False, postgresql_where=sa.text("wants_preview"))


def _upgrade_images() -> None:
    op.create_table(
        "output",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("index", sa.BigInteger(), nullable=False),
        sa.Column("image_id", sa.Text(), nullable=False),
        sa.Column("is_cached", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_output_image_id")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_output_job_id")),
        sa.PrimaryKeyConstraint("job_id", "index", name=op.f("pk_output")),
    )
    op.create_index("ix_output_image", "output", ["image_id"], unique=False)
    op.execute("INSERT INTO output (job_id, index, image_id) SELECT job_id, index, id FROM image")
    op.drop_constraint(op.f("uq_image_job_id_index"), "image", type_="unique")
    op.drop_column("image", "job_id")
    op.drop_column("image", "index")
    op.add_column("image", sa.Column("key", sa.Text(), nullable=True))
    op.add_column("image", sa.Column("is_fast", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("image", sa.Column("previews", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False))
    op.create_index("uq_image_key", "image", ["tenant_id", "key"], unique=True, postgresql_where=_ALIVE)


def _downgrade_images() -> None:
    op.drop_index("uq_image_key", table_name="image", postgresql_where=_ALIVE)
    for column in ("previews", "is_fast", "key"):
        op.drop_column("image", column)
    op.add_column("image", sa.Column("job_id", sa.Text(), nullable=True))
    op.add_column("image", sa.Column("index", sa.BigInteger(), nullable=True))
    op.execute(_PART_IMAGES)
    op.execute(_COPY_IMAGES)
    op.execute(_KEEP_IMAGES)
    op.execute("DROP TABLE parted")
    op.drop_index("ix_output_image", table_name="output")
    op.drop_table("output")
    op.alter_column("image", "job_id", nullable=False)
    op.alter_column("image", "index", nullable=False)
    op.create_foreign_key(op.f("fk_image_job_id"), "image", "job", ["job_id"], ["id"])
    op.create_unique_constraint(op.f("uq_image_job_id_index"), "image", ["job_id", "index"])


def _downgrade_grids() -> None:
    # Who cannot be asked any more is taken to agree.
    op.execute("UPDATE grid SET state = 'ready' WHERE state = 'held'")
    op.drop_index("ix_grid_preview", table_name="grid", postgresql_where=sa.text("wants_preview"))
    for constraint in ("preview_needs_draft", "done_is_approved", "held_has_draft", "draft_bounded"):
        op.drop_constraint(op.f(f"ck_grid_{constraint}"), "grid", type_="check")
    for column in (
        "preview_lease_until",
        "preview_worker_id",
        "preview_attempt",
        "preview",
        "wants_preview",
        "draft_token_ids",
        "num_rejected",
        "needs_approval",
        "lora",
    ):
        op.drop_column("grid", column)
    op.execute("UPDATE grid SET key = id WHERE key IS NULL")
    op.alter_column("grid", "key", nullable=False)


def _downgrade_jobs() -> None:
    op.drop_index(
        "ix_job_approval",
        table_name="job",
        postgresql_where=sa.text("approval_deadline IS NOT NULL AND status IN ('queued', 'running')"),
    )
    op.drop_constraint(op.f("ck_job_approval_deadline_if_approval"), "job", type_="check")
    op.drop_constraint(op.f("fk_job_redecode_of"), "job", type_="foreignkey")
    for column in ("redecode_of", "approval_deadline", "approval_s", "wants_previews"):
        op.drop_column("job", column)
