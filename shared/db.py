"""The database engine and its transactions. Knows Postgres, not one table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import psycopg
from psycopg.rows import namedtuple_row
from pydantic_core import from_json, to_json
from sqlalchemy import ClauseElement, Connection, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from shared.errors import GlmqError

Result = TypeVar("Result")

_CHANGED, _DUE = "changed", "due"
_DIALECT = create_engine("postgresql+psycopg://").dialect

# A deadlock or a serialization failure says that nothing was written and the same transaction may succeed now.
_RETRYABLE = frozenset({"40P01", "40001"})
_MAX_TRIES = 5

# InternalError too: psycopg files the idle-in-transaction timeout under it.
_AWAY = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)


NOT_SYNCED = "set_config('synchronous_commit', 'off', true)"
"""
SQL: the commit does not wait for the disk. If the server dies within a moment this transaction is lost, and all that came after it. For
what is found undone and done again, and where nobody outside is told before a commit that does wait.
"""


class DatabaseDownError(GlmqError):
    """Postgres is away, too slow, or has no connection left. Nothing was written, or it is not known; every function may be repeated."""


class ConstraintError(GlmqError):
    """A statement of `run_alone` would break a constraint; nothing was written."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__(f"a constraint is broken: {sqlstate}")
        self.sqlstate = sqlstate


class _DeadConnectionError(Exception):
    """A connection died under its statement; its text names psycopg's error."""


def engine_url(url: str) -> URL:
    """The URL with psycopg 3 as its driver, whatever driver it named."""
    return make_url(url).set(drivername="postgresql+psycopg")


@functools.cache
def _compiled(statement: ClauseElement) -> tuple[str, dict[str, Any]]:
    """The SQL of a statement and its constants. SQLAlchemy's own cache costs a third of such a statement at every execution."""
    compiled = statement.compile(dialect=_DIALECT)
    return str(compiled), {name: value for name, value in compiled.params.items() if value is not None}


def note_changes(session: Session, ids: Iterable[str]) -> None:
    """Have `Database.run` tell of these once the transaction is committed."""
    session.info.setdefault(_CHANGED, set()).update(ids)


def note_deliveries(session: Session) -> None:
    """Have `Database.run` tell, once the transaction is committed, that there are webhooks to be delivered."""
    session.info[_DUE] = True


def read_rows(session: Session, sql: str, values: Mapping[str, Any]) -> list[Any]:
    """
    Named tuples of a statement in the session's transaction, which sees what was flushed.

    By psycopg's own cursor: rows of the session's are watched, and cost ten times as much.
    """
    connection: Any = session.connection().connection.driver_connection
    return _fetch(connection, sql, values)


def _fetch(connection: Any, sql: str, values: Mapping[str, Any]) -> list[Any]:
    try:
        rows: list[Any] = connection.cursor(row_factory=namedtuple_row).execute(sql, values).fetchall()
    except psycopg.Error as error:
        if connection.closed:
            raise _DeadConnectionError(type(error).__name__) from error
        raise
    return rows


class Database:
    """A pool of connections, and `run`: one function, one transaction."""

    def __init__(self, url: str, pool_size: int = 8, on_changes: Callable[[set[str], bool], object] | None = None) -> None:
        """
        Args:
            on_changes: called after each commit that noted anything, with the ids, and whether there are webhooks to be delivered; must
                neither wait nor raise.
        """
        self._on_changes = on_changes
        self.engine = create_engine(
            engine_url(url),
            pool_size=pool_size,
            # Prompts and hashes are parameters; an error's text goes into logs.
            hide_parameters=True,
            max_overflow=0,
            pool_timeout=5,
            # The one that was used last: what it runs often is prepared and planned there, and the others are spares.
            pool_use_lifo=True,
            # No ping before each transaction: `run` repeats what met a connection that had died in the pool.
            pool_pre_ping=False,
            pool_recycle=300,
            # A third and a fifth of the time of the standard library's, and half of what a statement with a document costs here.
            json_deserializer=from_json,
            json_serializer=to_json,
            connect_args={
                "connect_timeout": 5,
                "application_name": "glmq",
                # A dead peer must cost seconds, not the kernel's two hours: 10 + 3 * 5 of silence, 15 of a write that nobody confirms.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 15_000,
                "options": "-c statement_timeout=5s -c lock_timeout=2s -c idle_in_transaction_session_timeout=10s -c timezone=UTC",
            },
        )

    def run(self, work: Callable[[Session], Result]) -> Result:
        """
        Run `work` in one transaction and commit; a deadlock's victim is run again, and so is what found its connection dead.

        `work` may therefore run more than once: it touches the database and nothing else.

        Raises:
            DatabaseDownError
        """
        is_committing = False

        def attempt() -> Result:
            nonlocal is_committing
            is_committing = False
            # No autoflush: a row half changed must not be written by the next read.
            with Session(self.engine, expire_on_commit=False, autoflush=False) as session:
                result = work(session)
                is_committing = True
                session.commit()
                if self._on_changes is not None and _CHANGED in session.info:
                    self._on_changes(session.info[_CHANGED], _DUE in session.info)
                return result

        # Before the commit was asked for, nothing can have been written.
        return self._repeat(attempt, lambda: not is_committing)

    def fetch_one(self, statement: ClauseElement, values: Mapping[str, Any]) -> Any | None:
        """
        The one row that a reading statement finds, or None, as `run_statement` does it.

        Args:
            statement: made once, for it is compiled once and kept.
        Raises:
            DatabaseDownError
        """
        rows = self.run_statement(statement, values)
        return rows[0] if rows else None

    def run_statement(self, statement: ClauseElement, values: Mapping[str, Any]) -> list[Any]:
        """
        Run a statement of SQLAlchemy's as `run_alone` does.

        Args:
            statement: made once, for it is compiled once and kept.
        Raises:
            DatabaseDownError
        """
        sql, fixed = _compiled(statement)
        return self.run_alone(sql, {**fixed, **values})

    def run_alone(self, sql: str, values: Mapping[str, Any], changed: Collection[str] = ()) -> list[Any]:
        """
        Run one statement without a transaction around it, and tell of the ids that it changed.

        One trip to Postgres instead of three, and psycopg's own cursor: SQLAlchemy's costs more than the statement. If its connection dies
        the statement is run again, and so may find that it was done before.

        Returns:
            Named tuples.
        Raises:
            DatabaseDownError
            ConstraintError
        """

        def attempt() -> list[Any]:
            pooled = self.engine.raw_connection()
            connection: Any = pooled.driver_connection
            try:
                connection.autocommit = True
                return _fetch(connection, sql, values)
            except psycopg.IntegrityError as error:
                raise ConstraintError(error.sqlstate) from error
            finally:
                try:
                    connection.autocommit = False
                except psycopg.Error:
                    # All others of the pool are as old, and most likely as dead.
                    pooled.invalidate()
                    self.engine.dispose()
                pooled.close()

        rows = self._repeat(attempt, lambda: True)
        if self._on_changes is not None and changed:
            self._on_changes(set(changed), False)
        return rows

    def _repeat(self, attempt: Callable[[], Result], may_repeat: Callable[[], bool]) -> Result:
        """
        Args:
            may_repeat: may an attempt whose connection died be made again?
        """
        for left in range(_MAX_TRIES - 1, -1, -1):
            try:
                return attempt()
            except PoolTimeoutError as error:
                raise DatabaseDownError("no free connection") from error
            except _DeadConnectionError as error:
                if not (left and may_repeat()):
                    raise DatabaseDownError(str(error)) from error
            except (DBAPIError, psycopg.Error) as error:
                cause = error.orig if isinstance(error, DBAPIError) else error
                # All other connections of the pool that are as old as the dead one are dropped with it.
                was_dead = isinstance(error, DBAPIError) and error.connection_invalidated and may_repeat()
                if left and (was_dead or getattr(cause, "sqlstate", None) in _RETRYABLE):
                    continue
                if isinstance(cause, _AWAY):
                    raise DatabaseDownError(type(cause).__name__) from error
                raise
        raise AssertionError("unreachable")

    def is_up(self) -> bool:
        """Does Postgres answer?"""
        try:
            self.run(lambda session: session.execute(text("SELECT 1")))
        except DatabaseDownError:
            return False
        return True

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


class LeaderLock:
    """
    One process among many is the leader: it holds an advisory lock on a connection of its own.

    Postgres frees the lock when the connection ends, however it ends, so a standby takes over within a moment.
    """

    def __init__(self, db: Database, key: int) -> None:
        self._db = db
        self._key = key
        self._connection: Connection | None = None

    def is_held(self) -> bool:
        """
        Are we the leader now? Tries to become it if not.

        Raises:
            DatabaseDownError
        """
        try:
            if self._connection is None:
                self._connection = self._db.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                taken: bool = self._connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": self._key}).scalar_one()
                if not taken:
                    self.drop()
                return taken
            # The lock lives as long as this connection does.
            self._connection.execute(text("SELECT 1"))
        except (DBAPIError, PoolTimeoutError) as error:
            self.drop()
            raise DatabaseDownError(type(error).__name__) from error
        return True

    def drop(self) -> None:
        """Give the lock up, if we have it."""
        if self._connection is not None:
            # Invalidate: a connection given back to the pool would keep the lock.
            self._connection.invalidate()
            self._connection.close()
            self._connection = None
