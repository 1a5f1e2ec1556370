"""The migrations make the tables that the code speaks of, and can be undone."""

from __future__ import annotations

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect

from infra.migrate import alembic_config, migrate_database
from shared.db import engine_url
from shared.tables import Base


def test_migrations_make_what_tables_say(database_url: str) -> None:
    """After an upgrade there is no difference left between the database and shared/tables.py, but for the moves."""
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
