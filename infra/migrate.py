"""
Bring the stores up to date: tables, bucket, and the tenant and key a fresh installation starts with.

Run once before the services start, as often as one likes: `python -m infra.migrate`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from pydantic import Field, SecretStr
from sqlalchemy import Connection, create_engine, text

from shared.api_keys import SCOPES, ApiKeyText
from shared.db import Database, engine_url
from shared.errors import StartupError
from shared.lifecycle import tenants
from shared.logs import configure_logs
from shared.sealing import Sealer
from shared.settings import CoreSettings, read_settings
from shared.storage import Storage
from shared.webhooks import new_secret

_LOCK = 0x676C6D71
"""Advisory lock ("glmq"): two migrations at once run one after the other."""


class MigrateSettings(CoreSettings):
    """What a fresh installation begins with."""

    bootstrap_api_key: SecretStr | None = Field(
        default=None,
        description="A key, `glmq_<12 characters>_<32 to 64 characters>`, that may do everything, also make tenants; made on first start.",
    )
    bootstrap_tenant: str = Field(default="default", description="Name of the tenant that the bootstrap key belongs to.")


def migrate_database(url: str, revision: str = "head") -> None:
    """Upgrade the tables at `url`; safe when several start it at once."""
    engine = create_engine(engine_url(url))
    try:
        with engine.begin() as connection:
            # A lock of the transaction: it ends with it, even if this process is killed.
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            command.upgrade(alembic_config(connection), revision)
    finally:
        engine.dispose()


def alembic_config(connection: Connection) -> Config:
    """Alembic's settings for our migrations on this connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def main() -> None:
    """Migrate, make the bucket, and make sure of the bootstrap tenant and key."""
    settings = read_settings(MigrateSettings)
    configure_logs(settings, "migrate")
    migrate_database(settings.database_url.get_secret_value())
    Storage(settings).ensure_bucket()
    sealer = Sealer(settings.secret_key.get_secret_value())
    db = Database(settings.database_url.get_secret_value(), pool_size=1)
    tenant_id = tenants.ensure_tenant(db, settings.bootstrap_tenant, sealer.seal(new_secret()))
    if settings.bootstrap_api_key is not None:
        key = ApiKeyText.parse(settings.bootstrap_api_key.get_secret_value())
        if key is None:
            raise StartupError("GLMQ_BOOTSTRAP_API_KEY must look like glmq_<12 of a-z0-9>_<32 to 64 of A-Za-z0-9>")
        tenants.ensure_api_key(db, tenant_id, "bootstrap", key, list(SCOPES))
    db.close()


if __name__ == "__main__":
    try:
        main()
    except StartupError as error:
        sys.exit(f"glmq migrate: {error}")
