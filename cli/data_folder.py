"""
The folder of one stack: where everything is, who holds it, and what the supervisor tells of itself. Knows no process and no server.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from infra.embedded.memory import Memory, write_private
from infra.embedded.process import ProcessMark

PROJECT = Path(__file__).resolve().parents[1]

_LARGE_LOG_BYTES = 10 << 20
_TAIL_LINES = 12
_TAIL_COLUMNS = 240
_LOCK_TRIES = 10
_LOCK_PAUSE_S = 0.05
_PRIVATE = 0o700
_PASSABLE = 0o711
"""Root's Postgres runs as nobody, who must be able to pass through to a folder of its own, but sees nothing on the way."""


def default_data_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """`GLMQ_DATA`, else `.glmq` in the checkout, or where we are when glmq is installed without one."""
    if named := environ.get("GLMQ_DATA"):
        return Path(named).absolute()
    return (PROJECT if (PROJECT / "pyproject.toml").exists() else Path.cwd()) / ".glmq"


@dataclass
class Row:
    """One process of the stack as `glmq status` shows it."""

    name: str
    origin: str
    """Where a server comes from; for a role, what it runs."""

    port: int | None = None
    pid: int | None = None
    """None: not ours, or not running at this moment."""

    birth: str = ""
    started_at: float = 0.0
    """Seconds since 1970."""

    restarts: int = 0

    is_external: bool = False
    """A server that runs elsewhere and is neither started nor stopped here."""

    @property
    def mark(self) -> ProcessMark | None:
        return None if self.pid is None else ProcessMark(self.pid, self.birth)


@dataclass
class StackState:
    """What the supervisor last said. Only true while it holds the folder."""

    phase: str
    """`starting`, `ready`, `stopping`, `stopped` or `failed`."""

    step: str = ""
    """What it is doing now, for a person; for `failed`, what went wrong."""

    pid: int | None = None
    birth: str = ""
    url: str = ""
    checkpoint: str = ""
    egress_allow: str = ""
    exports: dict[str, str] = field(default_factory=dict)
    """Settings of a client or a tool beside the stack."""

    own_settings: list[str] = field(default_factory=list)
    """Those of `exports` that name servers of this stack itself."""

    rows: list[Row] = field(default_factory=list)

    @property
    def mark(self) -> ProcessMark | None:
        return None if self.pid is None else ProcessMark(self.pid, self.birth)


class DataFolder:
    """Paths and the two files that `up`, `down` and `status` talk through: the lock and the state."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self._state = self.path / "stack.json"
        self._lock = self.path / "lock"

    def make(self) -> None:
        """Make it, private to us; a folder that was there before keeps its permissions."""
        if not self.path.exists():
            self.path.mkdir(parents=True)
            self.path.chmod(_PASSABLE if os.geteuid() == 0 else _PRIVATE)
        self.logs.mkdir(mode=_PRIVATE, exist_ok=True)

    def memory(self) -> Memory:
        return Memory(self.path / "memory.json")

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def rotate_logs(self) -> None:
        """Put large logs aside, one generation; only while nobody writes to them."""
        for log in self.logs.glob("*.log"):
            if log.stat().st_size > _LARGE_LOG_BYTES:
                log.replace(log.with_suffix(".log.1"))

    def log_tail(self, name: str) -> str:
        """The end of a process's log, indented, with its path; long lines are cut."""
        log = self.log(name)
        lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:] if log.exists() else []
        return "\n".join(f"  {line[:_TAIL_COLUMNS]}" for line in [*lines, f"whole log: {log}"])

    @contextmanager
    def held(self) -> Iterator[bool]:
        """
        Hold the folder; False when another supervisor does.

        The lock ends with its process however that ends, so unlike a pid file it is never out of date.
        """
        # Whoever can open a file can lock it.
        self._lock.touch(mode=0o600)
        with self._lock.open("a") as lock:
            ours = _locks(lock, fcntl.LOCK_EX)
            for _ in range(_LOCK_TRIES):
                if ours:
                    break
                # Whoever only asks, as `is_held` does, holds it for a moment too.
                time.sleep(_LOCK_PAUSE_S)
                ours = _locks(lock, fcntl.LOCK_EX)
            yield ours

    def is_held(self) -> bool:
        """Does a supervisor run here now?"""
        if not self._lock.exists():
            return False
        with self._lock.open("a") as lock:
            return not _locks(lock, fcntl.LOCK_SH)

    def write_state(self, state: StackState) -> None:
        write_private(self._state, json.dumps(asdict(state), indent=2) + "\n")

    def read_state(self) -> StackState | None:
        """What a supervisor last said here; None when none ever ran."""
        if not self._state.exists():
            return None
        told: dict[str, Any] = json.loads(self._state.read_text())
        rows = [Row(**row) for row in told.pop("rows")]
        return StackState(**told, rows=rows)


def _locks(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
