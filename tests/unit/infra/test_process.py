"""Processes are started and ended so that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from infra.embedded.process import ProcessMark, end, end_leftover, has_exited, spawn

STUBBORN = "trap '' TERM; sleep 60 & echo $!; wait; sleep 60"
"""A program that ignores SIGTERM and has started another."""


def start(tmp_path: Path, script: str) -> subprocess.Popen[bytes]:
    process = spawn(["/bin/sh", "-c", script], env={}, log=tmp_path / "log", cwd=tmp_path)
    # The launcher becomes the program a moment after the fork.
    wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == "sh")
    return process


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def child_of(tmp_path: Path) -> ProcessMark:
    wait_until(lambda: (tmp_path / "log").read_text().strip())
    mark = ProcessMark.of(int((tmp_path / "log").read_text()))
    assert mark is not None
    return mark


def test_a_program_that_stops_is_not_killed(tmp_path: Path) -> None:
    """A program that obeys its stop signal ends by itself."""
    process = start(tmp_path, "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    wait_until((tmp_path / "log").read_text)

    assert end(process, signal.SIGTERM) is True
    assert process.returncode == 7


def test_a_program_that_does_not_stop_is_killed_with_what_it_started(tmp_path: Path) -> None:
    """After its patience the whole group is killed, not only its leader."""
    process = start(tmp_path, STUBBORN)
    child = child_of(tmp_path)

    assert end(process, signal.SIGTERM, patience_s=0.3) is False
    wait_until(lambda: not child.is_alive())


def test_what_a_dead_program_started_ends_with_it(tmp_path: Path) -> None:
    """kill -9 of a program does not leave its children running."""
    process = start(tmp_path, STUBBORN)
    child = child_of(tmp_path)
    process.kill()

    wait_until(lambda: has_exited(process))

    wait_until(lambda: not child.is_alive())


def test_ignored_signals_are_not_inherited(tmp_path: Path) -> None:
    """A supervisor in a shell's background has SIGINT ignored; what it starts can be stopped by SIGINT all the same."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start(tmp_path, "trap 'exit 8' INT; echo ready; while :; do sleep 0.05; done")
    finally:
        signal.signal(signal.SIGINT, before)
    wait_until((tmp_path / "log").read_text)

    assert end(process, signal.SIGINT) is True
    assert process.returncode == 8


def test_a_mark_is_not_fooled_by_a_reused_id(tmp_path: Path) -> None:
    """A process id that now belongs to another process is not taken for the old one, and that process is left alone."""
    mark = ProcessMark.of(os.getpid())
    assert mark is not None
    assert mark.is_alive()

    reused = ProcessMark(mark.pid, "of another time")

    assert not reused.is_alive()
    assert end_leftover(reused) is False


def test_remains_are_not_alive(tmp_path: Path) -> None:
    """A process that ended and was not reaped yet counts as gone."""
    process = subprocess.Popen(["/bin/true"])
    wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "Z")

    assert ProcessMark.of(process.pid) is None
    process.wait()


def test_a_leftover_is_ended(tmp_path: Path) -> None:
    """What an earlier run left behind is ended by its mark, stubborn or not."""
    script = (
        "import sys; from pathlib import Path; from infra.embedded.process import spawn\n"
        f"folder = Path(sys.argv[1]); args = ['/bin/sh', '-c', {STUBBORN!r}]\n"
        "print(spawn(args, env={}, log=folder / 'log', cwd=folder, outlive=True).pid)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    mark, child = ProcessMark.of(int(told.stdout)), child_of(tmp_path)
    assert mark is not None

    assert end_leftover(mark, patience_s=0.3) is True

    assert not mark.is_alive()
    wait_until(lambda: not child.is_alive())
