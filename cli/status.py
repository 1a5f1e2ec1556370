"""`glmq status`: what runs in a data folder and whether it is well, looked at now and not taken from what was written down."""

from __future__ import annotations

import shlex
import socket
import time
from dataclasses import dataclass
from typing import Any

import httpx
from rich.table import Table

from cli.data_folder import DataFolder, Row, StackState

EXIT_UNWELL = 1
EXIT_NOT_RUNNING = 3
"""As the LSB asks of `status` commands."""

_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Health:
    """One row's health: a word for a person, and whether that word is good."""

    word: str
    well: bool


def running_state(data: DataFolder) -> StackState | None:
    """State of the stack that runs in the folder; None when none does."""
    return data.read_state() if data.is_held() else None


def shell_exports(state: StackState) -> str:
    """Lines for `eval "$(glmq status --env)"`."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in state.exports.items())


def look(state: StackState) -> list[tuple[Row, Health]]:
    """Each process of the stack and its health at this moment."""
    readiness = _readiness(state.url)
    return [(row, _health(row, readiness)) for row in state.rows]


def table(state: StackState, looked: list[tuple[Row, Health]]) -> Table:
    """The same as a table."""
    shown = Table(title=f"{state.url} ({state.phase})", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("process", "pid", "port", "health", "up", "restarts", "origin"):
        shown.add_column(column, justify="right" if column in ("pid", "port", "up", "restarts") else "left", overflow="fold")
    for row, health in looked:
        colour = "green" if health.well else "red"
        shown.add_row(
            row.name,
            str(row.pid or "–"),
            str(row.port or "–"),
            f"[{colour}]{health.word}[/{colour}]",
            _duration(time.time() - row.started_at) if row.pid else "–",
            str(row.restarts or ""),
            row.origin,
        )
    return shown


def _health(row: Row, readiness: dict[str, Any] | None) -> Health:
    if row.name == "api":
        return _api_health(readiness)
    if row.mark is None:
        # A server of somebody else's has a place but no process here; whether it is well, the API's own checks tell.
        return Health("not ours", well=True) if row.is_external else Health("starting again", well=False)
    if not row.mark.is_alive():
        return Health("gone", well=False)
    if row.port is not None and not _answers(row.port):
        return Health("silent", well=False)
    return Health("running" if row.port is None else "answers", well=True)


def _api_health(readiness: dict[str, Any] | None) -> Health:
    if readiness is None:
        return Health("silent", well=False)
    if readiness.get("status") == "ready":
        return Health("ready", well=True)
    checks = ", ".join(f"{name}: {value}" for name, value in readiness.get("checks", {}).items())
    return Health(f"not ready ({checks})", well=False)


def _readiness(url: str) -> dict[str, Any] | None:
    try:
        told: dict[str, Any] = httpx.get(f"{url}/readyz", timeout=_TIMEOUT_S, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return None
    return told


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), _TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _duration(seconds: float) -> str:
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}"
