"""Alembic's entry: run the migrations on the connection that `infra.migrate` hands over."""

from alembic import context

from shared.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
