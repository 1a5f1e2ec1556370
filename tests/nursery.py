"""
Starts processes for tests as forks of one process that has imported what they would: the service's, of which a GPU worker imports for ten
seconds of CPU and the tests start some fifty, and xdist's own workers, each of which imports all tests and with them all of the service.

What runs in a child is what `python -m MODULE` runs, with an environment, a session and a log of its own. That the real command
works too, the tests of `glmq demo` prove.

    nursery = Nursery.begin(folder)
    process = nursery.start("services.api", environment, log)
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_IMPORTS = {
    "infra.migrate": "infra.migrate",
    "services.api": "services.api.app",
    "services.api.batch_clerk": "services.api.app",
    "services.dispatcher": "services.dispatcher.main",
    "services.webhook_sender": "services.webhook_sender.main",
    "services.ar_worker": "services.ar_worker.worker",
    "services.decoder_worker": "services.decoder_worker.worker",
}
"""What is imported before the first process of a kind is forked; the rest of it is imported by the child."""
_NUMBER = struct.Struct("i")
_START_S = 240
"""Imports take ten seconds on a quiet machine, and minutes on one that is full."""


class Child:
    """A forked process, with as much of `subprocess.Popen` as tests use. Not a child of ours: its end is told through a socket."""

    def __init__(self, pid: int, told: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._told = told

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """The exit status, as `Popen.poll` tells it; None while the process lives."""
        return self.returncode if self.returncode is not None else self._read(0)

    def wait(self, timeout: float | None = None) -> int:
        """
        The exit status once the process has ended.

        Raises:
            subprocess.TimeoutExpired
        """
        code = self.returncode if self.returncode is not None else self._read(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def _read(self, timeout: float | None) -> int | None:
        if select.select([self._told], [], [], timeout)[0]:
            self.returncode = _receive(self._told)
            self._told.close()
        return self.returncode


class Nursery:
    """The way to the process that has imported."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._pid = 0

    @classmethod
    def begin(cls, folder: Path) -> Nursery:
        """
        Start that process; it ends with this one.

        Args:
            folder: of a path that is short, for a socket's path may not be longer than 107 bytes.
        """
        nursery = cls(str(folder / "nursery.sock"))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "tests.nursery", nursery.address, str(os.getpid())]
        # Not with our output: xdist waits until nobody has it open.
        outputs = [
            (os.POSIX_SPAWN_OPEN, stream, str(folder / "nursery.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for stream in (1, 2)
        ]
        nursery._pid = os.posix_spawn(sys.executable, command, environment, file_actions=outputs)
        return nursery

    def python(self) -> str:
        """A command line to be used instead of Python's, which runs the code behind `-c` in a fork, with its own streams."""
        return shlex.join([sys.executable, __file__, self.address])

    def start(self, module: str, environment: Mapping[str, str], log: Path) -> Child:
        """Run `python -m MODULE` with this environment and nothing of ours, its output appended to `log`."""
        return self._fork({"module": module, "environment": dict(environment), "log": str(log)})

    def run_here(self, code: str) -> int:
        """Run `python -c CODE` with our streams and environment; its exit status."""
        return self._fork({"code": code, "environment": dict(os.environ)}, [0, 1, 2]).wait()

    def _fork(self, wanted: dict[str, Any], streams: Sequence[int] = ()) -> Child:
        give_up_at = time.monotonic() + _START_S
        told = socket.socket(socket.AF_UNIX)
        told.settimeout(_START_S)
        while told.connect_ex(self.address):
            assert not (self._pid and os.waitpid(self._pid, os.WNOHANG)[0]), "the nursery ended"
            assert time.monotonic() < give_up_at
            time.sleep(0.02)
        socket.send_fds(told, [b"\n"], streams)
        told.sendall(json.dumps(wanted).encode() + b"\n")
        return Child(_receive(told), told)


def _receive(told: socket.socket) -> int:
    data = told.recv(_NUMBER.size, socket.MSG_WAITALL)
    assert len(data) == _NUMBER.size, "the nursery ended"
    return int(_NUMBER.unpack(data)[0])


def _serve(address: str, owner: int) -> None:
    """Fork for whoever connects, while the owner lives. A connection lives as long as its child, and hears how that ended."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    told: dict[int, socket.socket] = {}
    while _is_alive(owner):
        ready, _, _ = select.select([listener, woken], [], [], 1)
        if woken in ready:
            os.read(woken, 4096)
        if listener in ready:
            connection, _ = listener.accept()
            _, streams, _, _ = socket.recv_fds(connection, 1, 3)
            wanted = json.loads(connection.makefile().readline())
            # A worker of xdist's imports every test, and so everything.
            for name in [_IMPORTS[wanted["module"]]] if "module" in wanted else _IMPORTS.values():
                importlib.import_module(name)
            # Or every collection of a child would copy all pages of what was imported.
            gc.collect()
            gc.freeze()
            pid = os.fork()
            if pid == 0:
                for other in (listener, connection, *told.values()):
                    other.close()
                os.close(woken)
                _become(wanted, streams)
                return
            for stream in streams:
                os.close(stream)
            connection.sendall(_NUMBER.pack(pid))
            told[pid] = connection
        while told and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with told.pop(ended[0]) as connection, contextlib.suppress(BrokenPipeError):
                connection.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(ended[1])))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _become(wanted: dict[str, Any], streams: list[int]) -> None:
    """Be the process that Python would have been, to its end: what it raises ends this process."""
    os.close(signal.set_wakeup_fd(-1))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if "module" in wanted:
        os.setsid()
        output = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        streams = [os.open(os.devnull, os.O_RDONLY), output, os.dup(output)]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    if "module" in wanted:
        sys.argv = [wanted["module"]]
        runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c"]
        exec(wanted["code"], {"__name__": "__main__"})  # noqa: S102 - what `python -c` is for


if __name__ == "__main__":
    if "-c" in sys.argv:
        sys.exit(Nursery(sys.argv[1]).run_here(sys.argv[-1]))
    _serve(sys.argv[1], int(sys.argv[2]))
