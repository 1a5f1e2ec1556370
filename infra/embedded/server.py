"""
What Postgres, Redis and S3 have in common here: found somewhere, started, asked for health, stopped. Knows no one of them.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from infra.embedded.memory import Memory
from infra.embedded.ports import COMPANION, free_port, is_free
from infra.embedded.process import ProcessMark, end, end_leftover, has_exited, spawn
from infra.embedded.unprivileged import RunAs

_START_TRIES = 3
_START_TIMEOUT_S = 120.0
"""Recovery after a crash may take a while. Guess, unmeasured."""

_RETRY_S = 0.5
_POLL_S = 0.05
_TAIL_LINES = 15
_DIAL_TIMEOUT_S = 2.0


class ServerError(Exception):
    """A server is not usable; the message says why and what to do."""


class CalledOffError(ServerError):
    """`should_stop` turned true while something was being started."""


def never() -> bool:
    """A `should_stop` that lets a start run to its end."""
    return False


class Server(ABC):
    """One of the three servers that every glmq process talks to."""

    name: str
    """`postgres`, `redis` or `s3`."""

    origin: str
    """Where it comes from, in words for a person."""

    process: ProcessMark | None = None
    """The process; None when it is not ours or does not run."""

    @property
    @abstractmethod
    def port(self) -> int:
        """Where it listens."""

    @abstractmethod
    def env(self) -> dict[str, str]:
        """The settings (GLMQ_…) with which a glmq process reaches it."""

    @abstractmethod
    def healthy(self) -> bool:
        """Does it answer, with our credentials where that can be asked?"""

    @abstractmethod
    def start(self, should_stop: Callable[[], bool] = never) -> None:
        """Return once it answers. Raises ServerError, and then nothing of it is left running."""

    @abstractmethod
    def stop(self) -> None:
        """Return once nothing of it runs."""

    @abstractmethod
    def has_exited(self) -> bool:
        """Did it end by itself since it was started?"""


class ExternalServer(Server):
    """A server named in the environment: neither started nor stopped here."""

    def __init__(self, name: str, variable: str, settings: Mapping[str, str], default_port: int) -> None:
        parts = urlsplit(settings[variable])
        self.name = name
        self.origin = f"{variable} in the environment"
        self._host = parts.hostname or "localhost"
        self._port = parts.port or default_port
        self._variable = variable
        self._settings = dict(settings)

    @property
    def port(self) -> int:
        return self._port

    def env(self) -> dict[str, str]:
        return dict(self._settings)

    def healthy(self) -> bool:
        # Only a connection: whether it takes our credentials is found out, and said, by the migration.
        try:
            socket.create_connection((self._host, self.port), _DIAL_TIMEOUT_S).close()
        except OSError:
            return False
        return True

    def start(self, should_stop: Callable[[], bool] = never) -> None:
        if not self.healthy():
            raise ServerError(f"nothing answers at {self._host}:{self.port}, which {self._variable} names; start it, or unset the variable")

    def stop(self) -> None:
        return

    def has_exited(self) -> bool:
        return False


@dataclass(frozen=True)
class Launch:
    """How to run a server in the foreground."""

    command: list[str]
    cwd: Path
    env: dict[str, str] = field(default_factory=dict)
    run_as: RunAs = field(default_factory=RunAs)


class EmbeddedServer(Server):
    """
    A real server run by glmq for this machine alone.

    Args:
        folder: its own folder, made here.
        memory: remembers its ports and passwords, so that URLs stay the same from run to run.
        log: its output is appended here.
        durable: data survives stop, crash and power cut; otherwise nothing is synced to disk.
    """

    stop_signal: int = signal.SIGTERM
    patience_s: float = 10.0
    has_companions: bool = False
    """Does it also listen COMPANION above each port?"""

    ports_of: tuple[str, ...] = ("port",)
    """Names of the ports it takes; the first is where clients connect."""

    def __init__(self, folder: Path, memory: Memory, log: Path, *, durable: bool) -> None:
        self.folder = folder
        self.durable = durable
        self.ports: dict[str, int] = {}
        self._memory = memory
        self._log = log
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @abstractmethod
    def prepare(self, should_stop: Callable[[], bool]) -> None:
        """Make its folder fit to start in."""

    @abstractmethod
    def launch(self) -> Launch:
        """How to run it on the chosen ports."""

    @property
    def port(self) -> int:
        return self.ports[self.ports_of[0]]

    def start(self, should_stop: Callable[[], bool] = never) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        self._end_leftover()
        self.prepare(should_stop)
        for _ in range(_START_TRIES):
            self._choose_ports()
            self._run()
            if self._await_health(should_stop):
                return
            exited = self.has_exited()
            self.stop()
            if not exited:
                break
            # Somebody was quicker with one of the ports, or what a killed run left is still going away. Anything else happens again.
            time.sleep(_RETRY_S)
        raise ServerError(f"{self.name} ({self.origin}) does not start\n{self._log_tail()}")

    def stop(self) -> None:
        if self._popen is not None:
            end(self._popen, self.stop_signal, self.patience_s)
        self._popen = self.process = None

    def has_exited(self) -> bool:
        return self._popen is not None and has_exited(self._popen)

    def run_tool(self, launch: Launch, should_stop: Callable[[], bool]) -> None:
        """Run one of the server's own tools to its end, its output in the server's log."""
        tool = spawn(launch.command, env=launch.env, cwd=launch.cwd, log=self._log, run_as=launch.run_as)
        try:
            while not has_exited(tool):
                if should_stop():
                    raise CalledOffError(f"stopped while preparing {self.name}")
                time.sleep(_POLL_S)
        finally:
            end(tool)
        if tool.returncode != 0:
            raise ServerError(f"{launch.command[0]} fails\n{self._log_tail()}")

    def _run(self) -> None:
        launch = self.launch()
        self._popen = spawn(
            launch.command, env=launch.env, cwd=launch.cwd, log=self._log, stop_signal=self.stop_signal, run_as=launch.run_as
        )
        self.process = ProcessMark.of(self._popen.pid)
        if self.process is not None:
            self._memory.note(self.name, pid=self.process.pid, birth=self.process.birth)

    def _await_health(self, should_stop: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and not self.has_exited():
            if self.healthy():
                return True
            if should_stop():
                self.stop()
                raise CalledOffError(f"stopped while starting {self.name}")
            time.sleep(_POLL_S)
        return False

    def _end_leftover(self) -> None:
        """End what a run that was killed left behind; on Linux it ended with its supervisor already."""
        pid, birth = self._memory.peek(self.name, "pid"), self._memory.peek(self.name, "birth")
        if isinstance(pid, int) and isinstance(birth, str):
            end_leftover(ProcessMark(pid, birth), self.stop_signal, self.patience_s)

    def _choose_ports(self) -> None:
        """The ports of the last run where they are free, others where they are not."""
        self.ports = {}
        for name in self.ports_of:
            last = self._memory.peek(self.name, name)
            if not isinstance(last, int) or not self._free(last):
                last = free_port(with_companion=self.has_companions, avoid=self.ports.values())
            self.ports[name] = last
        self._memory.note(self.name, **self.ports)

    def _free(self, port: int) -> bool:
        return is_free(port) and (not self.has_companions or is_free(port + COMPANION))

    def _log_tail(self) -> str:
        if not self._log.exists():
            return ""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join(f"  {line}" for line in [*lines, f"whole log: {self._log}"])
