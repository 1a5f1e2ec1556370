"""
Runs a stack: starts servers and roles in order, starts again what dies, stops all in reverse order. Shows nothing to anybody;
what it does stands in the data folder's state. Knows no HTTP but the readiness of a role.

One thread and no handler that raises: a signal sets a flag, and every wait asks for it. So there is no moment at which a process
could be started and forgotten.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from cli.data_folder import PROJECT, DataFolder, Row, StackState
from cli.roles import Role
from infra.embedded.process import ProcessMark, end, end_all, has_exited, spawn
from infra.embedded.server import CalledOffError, Server, ServerError

_POLL_S = 0.1
_STEADY_S = 60.0
"""Who ran this long and then died starts at once again."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_START_TRIES = 3
"""A role that dies this often before the stack is ready has a fault that trying again does not mend."""

_PROBE_PAUSE_S = 0.2
_PROBE_TIMEOUT_S = 2.0
_ANSWER_CHARS = 300


class StackError(Exception):
    """The stack cannot be started; the message says why, with the end of the log."""


@dataclass
class Child:
    """One role and its process."""

    role: Role
    row: Row
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    """On the monotonic clock, as is `not_before`."""

    not_before: float = 0.0
    pause_s: float = _FIRST_PAUSE_S


@dataclass
class Supervisor:
    """
    One run of a stack.

    Args:
        servers: started in this order, before everything else.
        environment: of the roles, asked for once the servers run.
        prepare: commands that must succeed, one after the other, before the roles start: a name for each, and its arguments.
        roles: started in this order.
        should_stop: turns true for good when the stack must go.
    """

    data: DataFolder
    servers: Sequence[Server]
    environment: Callable[[], Mapping[str, str]]
    prepare: Sequence[tuple[str, Sequence[str]]]
    roles: Sequence[Role]
    should_stop: Callable[[], bool]
    state: StackState
    ready_timeout_s: float
    role_patience_s: float = 10.0
    """A role must have handed its work back within this time of SIGTERM."""

    children: list[Child] = field(default_factory=list, init=False)
    _settings: Mapping[str, str] = field(default_factory=dict, init=False)

    def run(self) -> None:
        """
        Run the stack until `should_stop`. Nothing of it runs when this returns or raises.

        Raises:
            StackError: it could not be started, or one of its servers not started again.
        """
        try:
            self._start()
            while not self.should_stop():
                self._tend_servers()
                self._tend_roles()
                time.sleep(_POLL_S)
            end_state = ("stopped", "")
        except CalledOffError:
            end_state = ("stopped", "")
        except (ServerError, StackError) as error:
            end_state = ("failed", str(error))
            raise StackError(str(error)) from None
        except BaseException as error:
            end_state = ("failed", repr(error))
            raise
        finally:
            self._stop()
            self._tell(*end_state)

    def _start(self) -> None:
        for server in self.servers:
            self._tell("starting", f"starting {server.name}")
            server.start(self.should_stop)
            self.state.rows.append(_server_row(server))
        self._settings = self.environment()
        for name, command in self.prepare:
            self._tell("starting", f"running {name}")
            self._run_once(name, command)
        for role in self.roles:
            self.children.append(Child(role, Row(role.name, role.origin, role.port)))
            self.state.rows.append(self.children[-1].row)
        self._tell("starting", "starting the services")
        self._await_ready()
        self._tell("ready")

    def _run_once(self, name: str, command: Sequence[str]) -> None:
        process = spawn(command, env=self._settings, log=self.data.log(name), cwd=PROJECT)
        try:
            while not has_exited(process):
                self._check_stop()
                time.sleep(_POLL_S)
        finally:
            end(process)
        if process.returncode != 0:
            raise StackError(f"{name} failed\n{self.data.log_tail(name)}")

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self.ready_timeout_s
        while True:
            self._tend_servers()
            self._tend_roles()
            for child in self.children:
                if child.row.restarts >= _START_TRIES:
                    raise StackError(f"{child.role.name} does not start\n{self.data.log_tail(child.role.name)}")
            waiting = [(child.role.name, why) for child in self.children if (why := _why_not_ready(child)) is not None]
            if not waiting:
                return
            if time.monotonic() > deadline:
                name, why = waiting[0]
                raise StackError(f"{name} is not ready after {self.ready_timeout_s:.0f} s: {why}\n{self.data.log_tail(name)}")
            self._check_stop()
            time.sleep(_PROBE_PAUSE_S)

    def _check_stop(self) -> None:
        if self.should_stop():
            raise CalledOffError("stopped while starting")

    def _tend_servers(self) -> None:
        for index, server in enumerate(self.servers):
            if server.has_exited():
                restarts = self.state.rows[index].restarts + 1
                server.start(self.should_stop)
                self.state.rows[index] = _server_row(server, restarts)
                self._tell(self.state.phase, self.state.step)
                self._follow_settings()

    def _follow_settings(self) -> None:
        """A server that lost its port came back at another one: the roles must be told, and they read settings only at their start."""
        settings = self.environment()
        if settings == self._settings:
            return
        self._settings = settings
        running = [child for child in self.children if child.process is not None]
        end_all([child.process for child in running if child.process is not None], patience_s=self.role_patience_s)
        for child in running:
            self._plan_restart(child)

    def _tend_roles(self) -> None:
        for child in self.children:
            if child.process is None:
                if time.monotonic() >= child.not_before:
                    self._start_role(child)
            elif has_exited(child.process):
                self._plan_restart(child)

    def _start_role(self, child: Child) -> None:
        command = child.role.command
        child.process = spawn(command, env=self._settings, log=self.data.log(child.role.name), cwd=PROJECT)
        child.started = time.monotonic()
        mark = ProcessMark.of(child.process.pid)
        child.row.pid, child.row.birth = child.process.pid, mark.birth if mark else ""
        child.row.started_at = time.time()
        self._tell(self.state.phase, self.state.step)

    def _plan_restart(self, child: Child) -> None:
        """A worker that one job killed must not take the queue with it: it starts again, later each time."""
        if time.monotonic() - child.started > _STEADY_S:
            child.pause_s = _FIRST_PAUSE_S
        child.not_before = time.monotonic() + child.pause_s
        child.pause_s = min(child.pause_s * 2, _LONGEST_PAUSE_S)
        child.process = child.row.pid = None
        child.row.restarts += 1
        self._tell(self.state.phase, self.state.step)

    def _stop(self) -> None:
        # A full disk must not keep the processes alive: telling comes second.
        with suppress(OSError):
            self._tell("stopping", "stopping the services")
        end_all([child.process for child in self.children if child.process is not None], patience_s=self.role_patience_s)
        for server in reversed(self.servers):
            server.stop()
        for row in self.state.rows:
            row.pid = None

    def _tell(self, phase: str, step: str = "") -> None:
        self.state.phase, self.state.step = phase, step
        self.data.write_state(self.state)


def _server_row(server: Server, restarts: int = 0) -> Row:
    row = Row(server.name, server.origin, server.port, started_at=time.time(), restarts=restarts, is_external=server.process is None)
    if server.process is not None:
        row.pid, row.birth = server.process.pid, server.process.birth
    return row


def _why_not_ready(child: Child) -> str | None:
    """None when the role can be used; else what is wrong."""
    role = child.role
    if child.process is None:
        return "it does not run"
    if role.ready_url is None:
        return None
    try:
        answer = httpx.get(role.ready_url, timeout=_PROBE_TIMEOUT_S, trust_env=False)
        if answer.status_code == httpx.codes.OK and all(answer.json()["checks"][name] for name in role.needs):
            return None
    except httpx.HTTPError as error:
        return str(error)
    return f"HTTP {answer.status_code} {answer.text[:_ANSWER_CHARS]}"
