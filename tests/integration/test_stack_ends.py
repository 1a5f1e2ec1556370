"""
However a stack ends, nothing of it runs afterwards.

The real supervisor and the real servers; small commands, one of which starts another and one of which is slow to stop, stand in
for glmq's roles.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cli.background import stop_stack
from cli.data_folder import DataFolder

PROJECT = Path(__file__).parents[2]

STACK = """
import sys
from cli import stack
from cli.roles import Role
answer = "import http.server as h; h.ThreadingHTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler).serve_forever()"
def roles(port):
    url = f"http://127.0.0.1:{port}/"
    yield Role("api", (sys.executable, "-c", answer.format(port=port)), port, ready_url=url)
    yield Role("worker", ("/bin/sh", "-c", "sleep 300 & wait"))
    yield Role("slow", ("/bin/sh", "-c", "trap 'sleep 1; exit' TERM; while :; do sleep 0.1; done"))
sys.exit(stack.main(sys.argv[1:], lambda port: list(roles(port)), ("/bin/sleep", "0.3")))
"""
"""In place of `python -m cli.stack`."""

FRONT = """
import sys, time
from pathlib import Path
from cli.background import background_stack
from cli.data_folder import DataFolder
data = DataFolder(Path(sys.argv[1]))
data.make()
with background_stack(data, (sys.executable, sys.argv[2])) as stack:
    stack.start("/checkpoint", 0, outlive=sys.argv[3] == "outlive")
    stack.await_ready(lambda step: None)
    print("ready", flush=True)
    if sys.argv[3] == "outlive":
        stack.leave()
    while not stack.has_ended():
        time.sleep(0.1)
"""
"""In place of `glmq up`."""


@pytest.fixture
def data(tmp_path: Path) -> Iterator[DataFolder]:
    data = DataFolder(tmp_path / "data")
    yield data
    stop_stack(data)


def start_front(data: DataFolder, mode: str = "tied", **shell: str) -> subprocess.Popen[str]:
    script = data.path.parent / "stack.py"
    script.write_text(STACK)
    # No server of the caller's: those that are started here are what must end.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GLMQ_")}
    env |= {"PYTHONPATH": str(PROJECT), "GLMQ_DATA": str(data.path), **shell}
    return subprocess.Popen(
        [sys.executable, "-c", FRONT, str(data.path), str(script), mode], stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
    )


def await_ready(front: subprocess.Popen[str]) -> None:
    assert front.stdout is not None
    assert front.stdout.readline() == "ready\n"


def members(data: DataFolder) -> list[str]:
    """Every process whose command line or environment names the data folder."""
    mark = str(data.path).encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b") Z " in (entry / "stat").read_bytes():
                continue
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if mark in told:
            found.append(f"{entry.name} {told[:80]!r}")
    return found


def await_none(data: DataFolder, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while left := members(data):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def finish(front: subprocess.Popen[str]) -> None:
    front.wait(30)
    assert front.stdout is not None
    front.stdout.close()


@pytest.mark.parametrize("moment", [0.0, 0.3, 0.6, *random.Random(2).choices([step / 100 for step in range(60, 500)], k=2)])
def test_ctrl_c_at_any_moment(data: DataFolder, moment: float) -> None:
    """Ctrl-C leaves nothing behind: during initdb, between two servers, during the migration, while the roles start, when all runs."""
    front = start_front(data)
    time.sleep(moment)

    os.killpg(front.pid, signal.SIGINT)
    finish(front)

    assert members(data) == []
    assert front.returncode != 0


def test_an_impatient_second_ctrl_c(data: DataFolder) -> None:
    """More Ctrl-Cs do not cut off the stopping that the first began."""
    front = start_front(data)
    await_ready(front)

    for _ in range(5):
        os.killpg(front.pid, signal.SIGINT)
        time.sleep(0.1)
    finish(front)

    assert members(data) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ways_to_ask(data: DataFolder, number: int) -> None:
    """SIGTERM and a closed terminal stop the stack as Ctrl-C does."""
    front = start_front(data)
    await_ready(front)

    front.send_signal(number)
    finish(front)

    assert members(data) == []


def test_nohup(data: DataFolder) -> None:
    """Under nohup a closed terminal stops nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        front = start_front(data)
    finally:
        signal.signal(signal.SIGHUP, before)
    await_ready(front)

    front.send_signal(signal.SIGHUP)

    time.sleep(1)
    assert data.is_held()
    os.killpg(front.pid, signal.SIGINT)
    finish(front)
    assert members(data) == []


def test_kill_9_of_the_command(data: DataFolder) -> None:
    """When the command in the terminal is killed, its stack stops by itself."""
    front = start_front(data)
    await_ready(front)

    front.kill()
    finish(front)

    await_none(data)


def test_kill_9_of_the_supervisor(data: DataFolder) -> None:
    """When the supervisor is killed, servers and roles end without it, and `down` ends what a role had started."""
    front = start_front(data)
    await_ready(front)
    state = data.read_state()
    assert state is not None
    assert state.pid is not None

    os.kill(state.pid, signal.SIGKILL)
    finish(front)
    deadline = time.monotonic() + 20
    while any(row.mark is not None and row.mark.is_alive() for row in state.rows):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    assert stop_stack(data) == f"ended 1 processes that a killed stack had left in {data.path}"
    await_none(data)


def test_kill_9_of_everything_and_another_start(data: DataFolder) -> None:
    """After everything was killed at once, another start works, with the same ports and keys, from a shell that knows the first."""
    front = start_front(data)
    await_ready(front)
    before = data.read_state()
    assert before is not None
    for member in members(data):
        # Those that are listed may end at any time by themselves.
        with suppress(ProcessLookupError):
            os.kill(int(member.split()[0]), signal.SIGKILL)
    finish(front)
    await_none(data)

    again = start_front(data, **before.exports)
    await_ready(again)
    after = data.read_state()
    os.killpg(again.pid, signal.SIGINT)
    finish(again)

    assert after is not None
    assert after.exports == before.exports
    assert members(data) == []


def test_a_left_stack_outlives_its_command(data: DataFolder) -> None:
    """A detached stack goes on when its command is killed; `down` stops it, and says so; a second `down` finds nothing."""
    front = start_front(data, "outlive")
    await_ready(front)
    front.kill()
    finish(front)
    time.sleep(1)
    assert members(data) != []
    assert data.is_held()

    assert stop_stack(data) == f"stopped the stack in {data.path}"

    assert members(data) == []
    assert stop_stack(data) == f"nothing runs in {data.path}"


def test_two_stacks_side_by_side(data: DataFolder, tmp_path: Path) -> None:
    """Stacks in two folders share nothing: no port, no key, and the end of one leaves the other alone."""
    (tmp_path / "second").mkdir()
    other = DataFolder(tmp_path / "second" / "data")
    front, other_front = start_front(data), start_front(other)
    await_ready(front)
    await_ready(other_front)
    state, other_state = data.read_state(), other.read_state()
    assert state is not None
    assert other_state is not None
    assert not {row.port for row in state.rows if row.port} & {row.port for row in other_state.rows if row.port}
    assert state.exports["GLMQ_API_KEY"] != other_state.exports["GLMQ_API_KEY"]

    os.killpg(front.pid, signal.SIGINT)
    finish(front)

    assert members(data) == []
    assert all(row.mark is not None and row.mark.is_alive() for row in other_state.rows)
    stop_stack(other)
    finish(other_front)
    assert members(other) == []


def test_a_second_stack_in_the_same_folder(data: DataFolder) -> None:
    """Whoever comes second does not start, and does not disturb the first."""
    front = start_front(data)
    await_ready(front)

    second = start_front(data)
    finish(second)

    assert second.returncode == 1
    assert data.is_held()
    os.killpg(front.pid, signal.SIGINT)
    finish(front)
    assert members(data) == []
