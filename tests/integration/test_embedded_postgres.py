"""What is particular to the private Postgres: its versions, its pid file, its user."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from infra.embedded.find import Program, postgres_programs
from infra.embedded.memory import Memory
from infra.embedded.postgres import PostgresServer
from infra.embedded.server import ServerError


def make_postgres(folder: Path, programs: list[Program]) -> PostgresServer:
    return PostgresServer(folder / "postgres", Memory(folder / "memory.json"), folder / "postgres.log", programs)


@pytest.mark.parametrize("place", ["on PATH", "wheel"])
def test_postgres_of_either_origin(place: str, tmp_path: Path) -> None:
    """Postgres works from the system and from the wheel."""
    program = next((program for program in postgres_programs() if place in program.origin), None)
    if program is None:
        pytest.skip(f"no Postgres {place} here")  # the wheel is part of the development install, the system's may be absent

    server = make_postgres(tmp_path, [program])
    server.start()
    try:
        with psycopg.connect(server.url()) as connection:
            told = connection.execute("show server_version").fetchone()
        assert told is not None
        assert told[0].startswith(program.version)
        assert place in server.origin
    finally:
        server.stop()


def test_postgres_data_of_another_major_version(tmp_path: Path) -> None:
    """Data made by a version that is not here is refused by name, and not touched."""
    version_file = tmp_path / "postgres" / "cluster" / "PG_VERSION"
    version_file.parent.mkdir(parents=True)
    version_file.write_text("14\n")

    with pytest.raises(ServerError, match="made by PostgreSQL 14"):
        make_postgres(tmp_path, postgres_programs())

    assert version_file.read_text() == "14\n"


def test_postgres_data_is_met_by_its_own_version(tmp_path: Path) -> None:
    """Where several versions are installed, the one that made the data serves it, preferred or not."""
    version_file = tmp_path / "postgres" / "cluster" / "PG_VERSION"
    version_file.parent.mkdir(parents=True)
    version_file.write_text("16\n")
    newer, own = (Program(Path(f"/{major}/postgres"), f"PostgreSQL {major}", "postgres", f"{major}.1") for major in (18, 16))

    assert make_postgres(tmp_path, [newer, own]).origin == "PostgreSQL 16"


def test_postgres_pid_file_naming_somebody_else(tmp_path: Path) -> None:
    """A pid file left by a crash does no harm when its pid belongs to another program by now, and that program is left alone."""
    server = make_postgres(tmp_path, postgres_programs())
    server.start()
    server.stop()
    bystander = subprocess.Popen(["/bin/sleep", "60"])
    try:
        (tmp_path / "postgres" / "cluster" / "postmaster.pid").write_text(f"{bystander.pid}\n{tmp_path}/postgres/cluster\n0\n0\n\n\n\n")
        server.start()
        server.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_nothing_outside_its_folder_changes(tmp_path: Path) -> None:
    """Starting Postgres leaves the permissions of the folders around it alone, and makes no account."""
    watched = [tmp_path, tmp_path.parent, Path.home(), Path(sys.prefix)]
    before = [path.stat().st_mode for path in watched], Path("/etc/passwd").read_bytes()

    server = make_postgres(tmp_path, postgres_programs())
    server.start()
    server.stop()

    assert ([path.stat().st_mode for path in watched], Path("/etc/passwd").read_bytes()) == before
