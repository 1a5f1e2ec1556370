"""
The supervisor with small commands in place of glmq's roles.

A scenario is a generator: the supervisor's own `should_stop` advances it, so the test acts while the stack runs, on one thread.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cli.data_folder import DataFolder, StackState
from cli.roles import Role
from cli.supervisor import StackError, Supervisor
from infra.embedded.find import redis_program
from infra.embedded.memory import Memory
from infra.embedded.ports import free_port, is_free
from infra.embedded.process import ProcessMark
from infra.embedded.redis import RedisServer
from infra.embedded.server import Server

Scenario = Callable[[Supervisor], Iterator[None]]

READY = "import http.server as h; h.ThreadingHTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler).serve_forever()"
"""A role that answers over HTTP."""


def shell(name: str, script: str) -> Role:
    return Role(name, ("/bin/sh", "-c", script))


def http_role(port: int) -> Role:
    return Role("api", (sys.executable, "-c", READY.format(port=port)), port, ready_url=f"http://127.0.0.1:{port}/")


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    data = DataFolder(tmp_path / "data")
    data.make()
    return data


def supervise(
    data: DataFolder,
    roles: Sequence[Role],
    scenario: Scenario,
    *,
    servers: Sequence[Server] = (),
    prepare: Sequence[tuple[str, Sequence[str]]] = (),
    ready_timeout_s: float = 20,
) -> Supervisor:
    """Run a stack until the scenario is over."""
    steps: Iterator[None] | None = None

    def should_stop() -> bool:
        nonlocal steps
        if steps is None:
            steps = scenario(supervisor)
        return next(steps, True) is True

    def environment() -> dict[str, str]:
        return dict(os.environ) | {name: value for server in servers for name, value in server.env().items()}

    supervisor = Supervisor(
        data, servers, environment, prepare, roles, should_stop, StackState("starting"), ready_timeout_s, role_patience_s=0.5
    )
    supervisor.run()
    return supervisor


def until(condition: Callable[[], object], timeout_s: float = 15) -> Iterator[None]:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the scenario waits in vain"
        yield None


def ready(supervisor: Supervisor) -> Iterator[None]:
    yield from until(lambda: supervisor.state.phase == "ready")


def marks(supervisor: Supervisor) -> list[ProcessMark]:
    return [row.mark for row in supervisor.state.rows if row.mark is not None]


def test_a_stack_is_ready_when_its_roles_answer(data: DataFolder) -> None:
    """The stack says ready only once the role that answers does, and nothing runs when it was stopped."""
    port = free_port()
    seen: list[ProcessMark] = []

    def scenario(supervisor: Supervisor) -> Iterator[None]:
        yield from ready(supervisor)
        told = data.read_state()
        assert told is not None
        assert [row.name for row in told.rows] == ["api", "worker"]
        seen.extend(marks(supervisor))
        assert all(mark.is_alive() for mark in seen)

    supervise(data, [http_role(port), shell("worker", "sleep 60")], scenario)

    assert len(seen) == 2
    assert not any(mark.is_alive() for mark in seen)
    told = data.read_state()
    assert told is not None
    assert told.phase == "stopped"


def test_a_killed_role_starts_again(data: DataFolder) -> None:
    """kill -9 of a role takes what it started with it, and a new one takes its place."""

    def scenario(supervisor: Supervisor) -> Iterator[None]:
        yield from ready(supervisor)
        yield from until(lambda: data.log("worker").read_text().strip())
        child = ProcessMark.of(int(data.log("worker").read_text()))
        (first,) = marks(supervisor)
        os.kill(first.pid, signal.SIGKILL)
        yield from until(lambda: marks(supervisor) not in ([], [first]))
        assert child is not None
        yield from until(lambda: not child.is_alive())

    supervisor = supervise(data, [shell("worker", "sleep 60 & echo $!; wait")], scenario)

    assert supervisor.state.rows[0].restarts == 1


def test_a_role_that_dies_again_and_again_waits_longer(data: DataFolder) -> None:
    """After the stack was ready a role may die as often as it likes; each time it starts later."""
    flag = data.path / "broken"

    def scenario(supervisor: Supervisor) -> Iterator[None]:
        yield from ready(supervisor)
        flag.touch()
        os.kill(marks(supervisor)[0].pid, signal.SIGKILL)
        yield from until(lambda: supervisor.state.rows[0].restarts == 3)

    started = time.monotonic()
    supervisor = supervise(data, [shell("worker", f"[ -e {flag} ] || sleep 60")], scenario)

    assert time.monotonic() - started > 0.5 + 1.0
    assert supervisor.children[0].pause_s == 4.0


def test_a_role_that_does_not_start_fails_the_stack(data: DataFolder) -> None:
    """The reason is the end of that role's log, and the other roles are ended."""
    other = data.path / "other"

    with pytest.raises(StackError, match=r"worker does not start\n  the weights are rotten"):
        supervise(
            data,
            [
                shell("other", f"echo $$ > {other}; sleep 60"),
                shell("worker", "sleep 0.2; echo the weights are rotten; exit 1"),
                Role("api", ("/bin/sleep", "60"), ready_url="http://127.0.0.1:1/"),
            ],
            lambda _: until(lambda: False),
        )

    assert ProcessMark.of(int(other.read_text())) is None
    told = data.read_state()
    assert told is not None
    assert told.phase == "failed"
    assert "rotten" in told.step


def test_a_role_that_never_gets_ready_fails_the_stack(data: DataFolder) -> None:
    """A role that runs and does not answer is not waited for without end; the reason says what it answered."""
    port = free_port()
    role = Role("api", http_role(port).command, port, ready_url=f"http://127.0.0.1:{port}/missing")

    with pytest.raises(StackError, match="api is not ready after 2 s: HTTP 404"):
        supervise(data, [role], lambda _: until(lambda: False), ready_timeout_s=2)


def test_preparations_come_first_and_must_succeed(data: DataFolder) -> None:
    """A failed migration starts no role, and its log says why."""
    with pytest.raises(StackError, match=r"migrate failed\n  no such table"):
        supervise(
            data,
            [shell("worker", f"touch {data.path}/started; sleep 60")],
            lambda _: until(lambda: False),
            prepare=[("miniature", ["/bin/true"]), ("migrate", ["/bin/sh", "-c", "echo no such table; exit 3"])],
        )

    assert not (data.path / "started").exists()


def test_a_stubborn_role_is_killed(data: DataFolder) -> None:
    """A role that ignores SIGTERM is killed after its patience, with what it started."""
    seen: list[ProcessMark | None] = []

    def scenario(supervisor: Supervisor) -> Iterator[None]:
        yield from ready(supervisor)
        yield from until(lambda: data.log("worker").read_text().strip())
        seen.extend([ProcessMark.of(int(data.log("worker").read_text())), *marks(supervisor)])

    supervise(data, [shell("worker", "trap '' TERM; sleep 60 & echo $!; wait; sleep 60")], scenario)

    started, role = seen
    assert started is not None
    assert role is not None
    assert not role.is_alive()
    # What a role started is not ours to wait for: it got its SIGKILL, and goes when the system gets to it.
    for _ in until(lambda: not started.is_alive()):
        time.sleep(0.02)


def test_a_killed_server_starts_again(data: DataFolder) -> None:
    """kill -9 of a server brings a new one at the same address; the roles are left alone."""
    server = RedisServer(data.path / "redis", Memory(data.path / "memory.json"), data.log("redis"), redis_program())

    def scenario(supervisor: Supervisor) -> Iterator[None]:
        yield from ready(supervisor)
        redis, worker = marks(supervisor)
        address = server.url()
        os.kill(redis.pid, signal.SIGKILL)
        yield from until(lambda: supervisor.state.rows[0].restarts == 1)
        assert server.healthy()
        assert server.url() == address
        assert marks(supervisor)[1] == worker

    supervise(data, [shell("worker", "sleep 60")], scenario, servers=[server])

    assert not server.healthy()


def test_roles_follow_a_server_to_another_port(data: DataFolder) -> None:
    """When a killed server had to move, the roles start again with its new address."""
    server = RedisServer(data.path / "redis", Memory(data.path / "memory.json"), data.log("redis"), redis_program())

    def scenario(supervisor: Supervisor) -> Iterator[None]:
        yield from ready(supervisor)
        yield from until(lambda: server.url() in data.log("worker").read_text())
        redis = marks(supervisor)[0]
        os.kill(redis.pid, signal.SIGKILL)
        # Also a child of its own, writing its file anew, may hold the port for a moment.
        while redis.is_alive() or not is_free(server.port):
            time.sleep(0.01)
        with socket.create_server(("127.0.0.1", server.port)):
            yield from until(lambda: supervisor.state.rows[1].restarts == 1)
        yield from until(lambda: server.url() in data.log("worker").read_text())

    supervise(data, [shell("worker", 'echo "$GLMQ_REDIS_URL"; sleep 60')], scenario, servers=[server])
