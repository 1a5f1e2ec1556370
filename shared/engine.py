"""
An engine as the tasks around it see it: a thread of its own that takes requests and gives Futures. For GPU workers only: needs torch.

Knows neither nets nor jobs. A subclass says what one request is; progress and stopping come in as callables that touch memory alone.
"""

from __future__ import annotations

import queue
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from shared.errors import EngineBrokenError, TransientWorkError, WorkStoppedError

Request = TypeVar("Request")
Result = TypeVar("Result")

Progress = Callable[[str, int, int], None]
"""Called with phase, done and total on the engine's thread: it must be quick."""

ShouldStop = Callable[[], bool]
"""Asked on the engine's thread between any two pieces of work: it must be quick."""

CheckStop = Callable[[], None]
"""Raises WorkStoppedError when the work is to stop."""


@dataclass(frozen=True)
class _Ticket(Generic[Request, Result]):
    request: Request
    on_progress: Progress
    should_stop: ShouldStop
    future: Future[Result]


class SerialEngine(ABC, Generic[Request, Result]):
    """Serves requests one after another, in the order they came. A request that fails, fails alone."""

    def __init__(self, name: str, oom_code: str) -> None:
        """
        Args:
            name: for people, such as `AR engine`.
            oom_code: error code of a request that ran out of memory.
        """
        self._name = name
        self._oom_code = oom_code
        self._tickets: queue.SimpleQueue[_Ticket[Request, Result] | None] = queue.SimpleQueue()
        # A daemon: a process that was told to exit must not wait for a picture of four minutes.
        self._thread = threading.Thread(target=self._serve_all, name=name, daemon=True)
        self._closing = threading.Event()
        self._submit_lock = threading.Lock()

    @abstractmethod
    def run(self, request: Request, on_progress: Progress, check_stop: CheckStop) -> Result:
        """Do one request, on the engine's thread."""

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def submit(self, request: Request, on_progress: Progress, should_stop: ShouldStop) -> Future[Result]:
        """
        Queue a request.

        The future fails with WorkStoppedError once `should_stop` is true or the engine closes, with TransientWorkError when memory ran
        out, EngineBrokenError when the device is lost, and with what `run` says of a bad request; any other exception is a fault of
        this program or of the machine.
        """
        ticket = _Ticket(request, on_progress, should_stop, Future[Result]())
        # Under the lock, or a ticket could land behind the last one that close() ever looks at.
        with self._submit_lock:
            if self._closing.is_set():
                ticket.future.set_exception(WorkStoppedError(f"the {self._name} is closed"))
            else:
                self._tickets.put(ticket)
        return ticket.future

    def close(self) -> None:
        """Stop the running request at its next token or step, fail the waiting ones, and end the thread."""
        with self._submit_lock:
            self._closing.set()
            self._tickets.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _serve_all(self) -> None:
        while (ticket := self._tickets.get()) is not None:
            if ticket.future.set_running_or_notify_cancel():
                self._serve(ticket)

    def _serve(self, ticket: _Ticket[Request, Result]) -> None:
        def check_stop() -> None:
            if self._closing.is_set() or ticket.should_stop():
                raise WorkStoppedError(f"the {self._name} was told to stop")

        error: Exception | None = None
        try:
            result = self.run(ticket.request, ticket.on_progress, check_stop)
        except Exception as caught:  # whatever it is, it belongs to this request and must not end the thread
            # The frames hold caches and latents, and the future would keep them alive with the traceback.
            traceback.clear_frames(caught.__traceback__)
            error = caught
        if error is None:
            ticket.future.set_result(result)
        else:
            ticket.future.set_exception(self._explain(error))

    def _explain(self, error: Exception) -> Exception:
        """The error as the tasks should hear of it."""
        if _is_out_of_memory(error):
            try:
                torch.cuda.empty_cache()  # does nothing where there is no GPU
            except torch.AcceleratorError as fault:
                return EngineBrokenError(f"the {self._name} lost its device: {fault}")
            return TransientWorkError(self._oom_code, f"the {self._name} ran out of memory")
        if isinstance(error, torch.AcceleratorError):
            return EngineBrokenError(f"the {self._name} lost its device: {error}")
        return error


def _is_out_of_memory(error: Exception) -> bool:
    # On the CPU torch raises a plain RuntimeError, which only its words tell from a programming fault.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
