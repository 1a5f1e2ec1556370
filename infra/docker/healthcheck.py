"""
The health check of the containers without HTTP: has the process beside us spoken with Postgres lately?

Every such process does, at least each few seconds: a dispatcher holds or tries its lock, a worker beats its row, a sender asks
for due deliveries. So a silent one hangs, has not loaded its model yet, or does not reach the database. The check needs no
table: Postgres knows its connections and when each was last used. It runs as a file: `python healthcheck.py`.
"""

from __future__ import annotations

import os
import sys

import psycopg

SILENT_S = 30
"""Ten beats of a worker, the slowest to speak."""

_HAS_SPOKEN = """
    SELECT count(*) > 0
    FROM pg_stat_activity
    WHERE client_addr = inet_client_addr() AND datname = current_database() AND pid <> pg_backend_pid()
      AND state_change > now() - make_interval(secs => %s)
"""


def has_spoken(database_url: str, within_s: float = SILENT_S) -> bool:
    """
    Has another connection from this address to this database been used in the last `within_s` seconds?

    Raises:
        psycopg.Error: the database does not answer.
    """
    with psycopg.connect(database_url, connect_timeout=3) as connection:
        row = connection.execute(_HAS_SPOKEN, [within_s]).fetchone()
    return row is not None and bool(row[0])


def main() -> None:
    """End with 0 if the container is healthy, else with 1 and the reason."""
    try:
        spoke = has_spoken(os.environ["GLMQ_DATABASE_URL"])
    except psycopg.Error as error:
        # The type only: the text of a failed connection may quote the URL.
        sys.exit(f"database: {type(error).__name__}")
    if not spoke:
        sys.exit(f"no word with the database for {SILENT_S} s")


if __name__ == "__main__":
    main()
