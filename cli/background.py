"""
A stack beside this process: started, waited for, stopped. `up` and `demo` use it; the stack itself is `cli/stack.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cli.data_folder import PROJECT, DataFolder, StackState
from cli.leftovers import end_leftovers
from cli.stack import EXIT_HELD, STOP_SIGNALS
from cli.supervisor import StackError
from infra.embedded.process import end, end_leftover, has_exited, spawn

_STACK = (sys.executable, "-m", "cli.stack")
_POLL_S = 0.1
_STOP_PATIENCE_S = 60.0
"""Roles have 10 s, S3 15, the others less, one after the other."""


class BackgroundStack:
    """The process of one stack, and what it tells."""

    def __init__(self, data: DataFolder, command: Sequence[str]) -> None:
        self._data = data
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, checkpoint: str | None, port: int, *, outlive: bool, settings: dict[str, str] | None = None) -> None:
        """
        Start it.

        Args:
            checkpoint: a folder or hub id; None for the random miniature.
            port: of the API; 0 for any.
            outlive: it goes on when this process ends; otherwise it stops then, however this process ends.
            settings: what is set for it beside the environment.
        """
        command = [*self._command, str(self._data.path), checkpoint or "", str(port)]
        log = self._data.log("supervisor")
        # No signal between the start and the note of it, or the stack would run on unknown to `stop`.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = spawn(command, env={**os.environ, **(settings or {})}, log=log, cwd=PROJECT, outlive=outlive)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def await_ready(self, tell_step: Callable[[str], None]) -> StackState:
        """
        Wait until every process of it runs and the API answers.

        Args:
            tell_step: called with what the stack does at the moment.
        Raises:
            StackError: it failed; says why, with the end of the log of what failed.
        """
        while True:
            state = self._own_state()
            if state is not None and state.phase == "ready":
                return state
            if state is not None and state.step:
                tell_step(state.step)
            if self.has_ended():
                raise StackError(self._reason())
            time.sleep(_POLL_S)

    def has_ended(self) -> bool:
        return self._process is None or has_exited(self._process)

    def leave(self) -> None:
        """Let it run: `stop` does nothing from now on."""
        self._process = None

    def stop(self) -> None:
        """Stop it, and return when nothing of it runs."""
        if self._process is not None:
            end(self._process, signal.SIGTERM, _STOP_PATIENCE_S)

    def _own_state(self) -> StackState | None:
        """What this run told; not what the last one left."""
        state = self._data.read_state()
        return state if state is not None and self._process is not None and state.pid == self._process.pid else None

    def _reason(self) -> str:
        if self._process is not None and self._process.returncode == EXIT_HELD:
            return f"another stack has just been started in {self._data.path}"
        state = self._own_state()
        if state is not None and state.phase == "failed":
            return state.step
        if state is not None and state.phase == "stopped":
            return "the stack was stopped while it started"
        return f"the stack ended while it started\n{self._data.log_tail('supervisor')}"


@contextmanager
def background_stack(data: DataFolder, command: Sequence[str] = _STACK) -> Iterator[BackgroundStack]:
    """
    A stack that is stopped at the end, whatever ends it, unless it was told to be left. A stop signal raises KeyboardInterrupt.

    Args:
        command: what runs the stack.
    """
    stack = BackgroundStack(data, command)
    with stoppable():
        try:
            try:
                yield stack
            finally:
                stack.stop()
        except KeyboardInterrupt:
            # Once more: the signal may have cut the first stop off. There is no second signal.
            stack.stop()
            raise


@contextmanager
def stoppable() -> Iterator[None]:
    """
    Turn the first stop signal, of whatever kind, into KeyboardInterrupt, and hold off all others.

    The second Ctrl-C of an impatient person then does not cut off the stopping that the first began.
    """
    raised = False

    def raise_once(number: int, frame: object) -> None:
        nonlocal raised
        if not raised:
            raised = True
            raise KeyboardInterrupt

    # Under nohup a closed terminal is to be ignored, and stays so.
    numbers = [number for number in STOP_SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, raise_once) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_stack(data: DataFolder) -> str:
    """Stop the stack of a data folder, whoever started it. Says what there was to stop."""
    if not data.path.is_dir():
        return f"nothing runs in {data.path}"
    was_held = data.is_held()
    while data.is_held():
        # A stack that has only just been started has not told its process yet.
        state = data.read_state()
        if state is None or state.mark is None or not end_leftover(state.mark, signal.SIGTERM, _STOP_PATIENCE_S):
            time.sleep(_POLL_S)
    with data.held() as ours:
        num_left = end_leftovers(data) if ours else 0
    if was_held:
        return f"stopped the stack in {data.path}"
    if num_left:
        return f"ended {num_left} processes that a killed stack had left in {data.path}"
    return f"nothing runs in {data.path}"
