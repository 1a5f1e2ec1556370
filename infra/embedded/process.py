"""
Starting and ending processes so that none is left behind. Knows no server and no role.

Every process leads a session of its own: a Ctrl-C in the terminal reaches only the supervisor, and what the process starts in turn
can be ended with it as one group. On Linux it also gets its stop signal when the supervisor dies, however that dies.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.embedded.unprivileged import RunAs

_POLL_S = 0.02
_LAUNCHER = Path(__file__).with_name("launch.py")
_PS = "/bin/ps"


@dataclass(frozen=True)
class ProcessMark:
    """Names one process for good: ids are used again, an id together with its time of birth is not."""

    pid: int
    birth: str

    @classmethod
    def of(cls, pid: int) -> ProcessMark | None:
        """The mark of a living process; None when there is none, or only its unreaped remains."""
        birth = _birth(pid)
        return None if birth is None else cls(pid, birth)

    def is_alive(self) -> bool:
        return _birth(self.pid) == self.birth


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    cwd: Path,
    stop_signal: int = signal.SIGTERM,
    run_as: RunAs | None = None,
    outlive: bool = False,
) -> subprocess.Popen[bytes]:
    """
    Start a program in a session of its own, its output appended to `log`.

    Call it from the main thread: Linux ties the parent-death signal to the thread that started the process, not to the process.

    Args:
        command: the program's absolute path and its arguments.
        stop_signal: what it gets when this process dies.
        outlive: the program goes on when this process ends.
    """
    run_as = run_as or RunAs()
    parent = 0 if outlive else os.getpid()
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(parent), str(int(stop_signal)), str(run_as.uid), str(run_as.gid)]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*run_as.prefix, *launcher, *command],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def has_exited(process: subprocess.Popen[bytes]) -> bool:
    """
    Has the process ended? What it started is ended with it.

    The group is killed before the leader is reaped: until then its id cannot belong to anybody else.
    """
    if process.returncode is not None:
        return True
    # macOS has no waitid before Python 3.13; there the leader is reaped first.
    if sys.platform == "linux":
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    else:
        ended = process.poll() is not None
    if ended:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
    return ended


def end(process: subprocess.Popen[bytes], stop_signal: int = signal.SIGTERM, patience_s: float = 10.0) -> bool:
    """Ask the process to stop, and kill its group when it has not after `patience_s`. True when it went by itself."""
    return end_all([process], stop_signal, patience_s)


def end_all(processes: Sequence[subprocess.Popen[bytes]], stop_signal: int = signal.SIGTERM, patience_s: float = 10.0) -> bool:
    """As `end`, for several processes at the same time."""
    for process in processes:
        if not has_exited(process):
            _signal_one(process.pid, stop_signal)
    deadline = time.monotonic() + patience_s
    while running := [process for process in processes if not has_exited(process)]:
        if time.monotonic() > deadline:
            for process in running:
                _signal_group(process.pid, signal.SIGKILL)
                process.wait()
            return False
        time.sleep(_POLL_S)
    return True


def end_leftover(mark: ProcessMark, stop_signal: int = signal.SIGTERM, patience_s: float = 10.0) -> bool:
    """End a process that an earlier run left behind, with its group. True when there was one."""
    if not mark.is_alive():
        return False
    _signal_one(mark.pid, stop_signal)
    deadline = time.monotonic() + patience_s
    while mark.is_alive():
        if time.monotonic() > deadline:
            _signal_group(mark.pid, signal.SIGKILL)
        time.sleep(_POLL_S)
    # It died a moment ago: what remains of its group still holds the id, and an empty group's id is not used again so soon.
    _signal_group(mark.pid, signal.SIGKILL)
    return True


def end_marked(variable: str, value: str) -> int:
    """
    Kill every process that was started with this environment variable; says how many there were.

    For what outlived its leader, whose group id may be somebody else's by now. Finds nothing where there is no /proc.
    """
    wanted = f"{variable}={value}".encode()
    num_ended = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            carries_it = wanted in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            # Gone meanwhile, or another user's.
            continue
        if carries_it and int(folder.name) != os.getpid():
            _signal_one(int(folder.name), signal.SIGKILL)
            num_ended += 1
    return num_ended


def _signal_one(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _signal_group(pid: int, number: int) -> None:
    # EPERM: macOS says so for a group that holds only the unreaped leader.
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _birth(pid: int) -> str | None:
    """When a living process started, in the system's own words."""
    if sys.platform != "linux":
        told = subprocess.run([_PS, "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.split(
            maxsplit=1
        )
        return told[1].strip() if len(told) == 2 and not told[0].startswith("Z") else None
    try:
        # The name, in parentheses, may hold spaces and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Field 3 of proc(5) is the state, field 22 the start in clock ticks since boot; the boot's own id tells two boots apart.
    if fields[0] in "ZX":
        return None
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{fields[19]}"
