"""The migrations make the tables that the code speaks of, and can be undone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect

from infra.migrate import alembic_config, migrate_database
from shared.db import Database, engine_url
from shared.lifecycle import drafts, finish, jobs
from shared.lifecycle.submit import submit
from shared.tables import Base
from tests.integration.conftest import plain_job
from tests.ledger import ARTIFACT, claim_grid, claim_image, document, execute, finish_one_grid, finish_one_image, query


def test_migrations_make_what_tables_say(database_url: str) -> None:
    """After an upgrade there is no difference left between the database and shared/tables, but for the moves."""
    migrate_database(database_url)
    engine = create_engine(engine_url(database_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        left = [difference for difference in compare_metadata(context, Base.metadata) if "allowed_move" not in str(difference)]
    engine.dispose()
    assert left == []


def test_up_down_and_up_again(database_url: str) -> None:
    """A downgrade leaves nothing behind, and another upgrade works."""
    engine = create_engine(engine_url(database_url))
    migrate_database(database_url)
    migrate_database(database_url)
    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), "base")
    assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    migrate_database(database_url)
    assert set(Base.metadata.tables) <= set(inspect(engine).get_table_names())
    engine.dispose()


_ROWS_OF_BEFORE = """
INSERT INTO tenant (id, name, webhook_secret) VALUES ('ten_1', 'acme', 'x');
INSERT INTO grid (id, tenant_id, key, prompt, token_h, token_w, seed, temperature, top_p, source_file_ids, model_revision, state, lane)
VALUES ('tok_1', 'ten_1', 'old', 'A cat', 2, 3, 1, 0.9, 0.75, '{}', 'r1', 'ready', 1);
INSERT INTO job (id, tenant_id, status, priority, input, params, model, num_images)
VALUES ('job_1', 'ten_1', 'queued', 'standard', '{}', '{"prompt": "a fox", "seed": 1, "n": 2}', '{"name": "m", "revision": "r1"}', 2);
INSERT INTO image (id, tenant_id, job_id, index, grid_id, seed, steps, guidance_scale, height_px, width_px, format, state, lane)
VALUES ('img_a', 'ten_1', 'job_1', 1, 'tok_1', 2, 4, 1.5, 64, 96, 'png', 'waiting', 1),
       ('img_b', 'ten_1', 'job_1', 0, 'tok_1', 1, 4, 1.5, 64, 96, 'png', 'waiting', 1);
"""


def downgrade(url: str, revision: str) -> None:
    engine = create_engine(engine_url(url))
    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), revision)
    engine.dispose()


def test_reuse_carries_rows_over(database_url: str) -> None:
    """A job of before shared images goes on after the upgrade with its images in order."""
    migrate_database(database_url, "0001")
    db = Database(database_url, pool_size=1)
    for statement in _ROWS_OF_BEFORE.split(";\n"):
        execute(db, statement)
    db.close()
    migrate_database(database_url)
    db = Database(database_url)
    new = plain_job("ten_1")
    job = document(db, new, "job_1")
    assert [(output["id"], output["seed"], output["cached"]) for output in job["outputs"]] == [("img_b", 1, False), ("img_a", 2, False)]
    finish_one_grid(db)
    for _ in range(2):
        finish_one_image(db)
    assert document(db, new, "job_1")["status"] == "succeeded"
    db.close()


def test_reuse_can_be_undone(database_url: str) -> None:
    """A downgrade gives every job images of its own, as far as it had got; what waited for approval goes on, and up again all is there."""
    migrate_database(database_url)
    db = Database(database_url)
    execute(db, "INSERT INTO tenant (id, name, webhook_secret) VALUES ('ten_1', 'acme', 'x')")
    new = plain_job("ten_1")
    done, hit, canceled, running, other = _make_shared_rows(db)
    before = {job_id: document(db, new, job_id)["outputs"][0] for job_id in (done, hit, canceled, running, other)}
    db.close()

    downgrade(database_url, "0001")
    db = Database(database_url, pool_size=1)
    rows: dict[str, tuple[Any, ...]] = {row[0]: row[1:] for row in query(db, "SELECT job_id, id, state, storage_key FROM image")}
    assert len({image_id for image_id, *_ in rows.values()}) == 6
    assert [rows[job_id][1] for job_id in (done, hit, canceled)] == ["done", "done", "canceled"]
    assert rows[done][2] == rows[hit][2] == ARTIFACT.storage_key
    assert sorted(rows[job_id][1] for job_id in (running, other)) == ["ready", "running"]
    assert query(db, "SELECT DISTINCT state FROM grid WHERE prompt = 'wait'") == [("ready",)]
    db.close()

    migrate_database(database_url)
    db = Database(database_url)
    after = {job_id: document(db, new, job_id)["outputs"][0] for job_id in before}
    for job_id, output in after.items():
        same = {name: before[job_id][name] for name in ("index", "storage_key", "sha256", "seed", "layout_seed", "width")}
        assert {name: output[name] for name in same} == same
    assert after[canceled]["status"] == "canceled"
    for job_id in (running, other):
        jobs.cancel(db, "ten_1", job_id)
    db.close()


def _make_shared_rows(db: Database) -> list[str]:
    """Jobs that share images, done, canceled and running, and one that waits for approval."""
    new = plain_job("ten_1")
    done, canceled = (submit(db, new)[0] for _ in range(2))
    finish_one_grid(db)
    image = claim_image(db)
    jobs.cancel(db, "ten_1", canceled)
    finish.finish_image(db, image.id, image.attempt, ARTIFACT)
    hit, _ = submit(db, new)
    running, other = (submit(db, replace(new, steps=9))[0] for _ in range(2))
    claim_image(db)
    submit(db, replace(new, prompt="wait", approval_s=60))
    grid = claim_grid(db)
    drafts.hold_grid(db, grid.id, grid.attempt, [1, 2, 3])
    return [done, hit, canceled, running, other]
