"""The database engine and its transactions. Knows Postgres, not one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

Result = TypeVar("Result")

# A deadlock or a serialization failure says that nothing was written and the same transaction may succeed now.
_RETRYABLE = frozenset({"40P01", "40001"})
_MAX_TRIES = 5


def engine_url(url: str) -> URL:
    """The URL with psycopg 3 as its driver, whatever driver it named."""
    return make_url(url).set(drivername="postgresql+psycopg")


class Database:
    """A pool of connections, and `run`: one function, one transaction."""

    def __init__(self, url: str, pool_size: int = 8) -> None:
        self.engine = create_engine(
            engine_url(url),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,
            pool_pre_ping=True,
            pool_recycle=300,
            connect_args={
                "connect_timeout": 5,
                "application_name": "glmq",
                # A dead peer must cost seconds, not the kernel's two hours; figures from RELIABILITY.md section 5.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 15_000,
                "options": "-c statement_timeout=5s -c lock_timeout=2s -c idle_in_transaction_session_timeout=10s -c timezone=UTC",
            },
        )

    def run(self, work: Callable[[Session], Result]) -> Result:
        """
        Run `work` in one transaction and commit; a deadlock's victim is run again.

        `work` may therefore run more than once: it touches the database and nothing else.
        """
        for left in range(_MAX_TRIES - 1, -1, -1):
            try:
                with Session(self.engine, expire_on_commit=False) as session, session.begin():
                    return work(session)
            except DBAPIError as error:
                if left == 0 or getattr(error.orig, "sqlstate", None) not in _RETRYABLE:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
