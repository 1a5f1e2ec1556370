"""
An engine as the tasks around it see it: a thread of its own that takes requests and gives Futures. For GPU workers only: needs torch.

Knows neither nets nor jobs. A subclass says what a turn is; progress, stopping and what comes before the end go through callables that
touch memory alone.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from shared.cost import Speed, SpeedMeter
from shared.errors import EngineBrokenError, TransientWorkError, WorkStoppedError

Request = TypeVar("Request")
Work = TypeVar("Work")
Result = TypeVar("Result")
Interim = TypeVar("Interim")

Progress = Callable[[str, int, int], None]
"""Called with phase, done and total on the engine's thread: it must be quick."""

ShouldStop = Callable[[], bool]
"""Asked on the engine's thread between any two pieces of work: it must be quick."""


@dataclass(eq=False)
class Ticket(Generic[Work, Result, Interim]):
    """One request on its way: the work that it is, who wants to hear of it, and the future that ends it."""

    work: Work
    on_progress: Progress
    should_stop: ShouldStop
    on_interim: Callable[[Interim], None]
    future: Future[Result]


class BatchEngine(ABC, Generic[Request, Work, Result, Interim]):
    """
    Serves many requests at once, turn by turn. A request that fails, fails alone.

    A subclass keeps its live tickets, and in `turn` takes waiting ones up, moves some of the live ones on, and ends those that are
    done. Everything below but `prepare`, `start`, `submit`, `run` and `close` happens on the engine's thread.
    """

    def __init__(self, name: str, oom_code: str) -> None:
        """
        Args:
            name: for people, such as `AR engine`.
            oom_code: error code of a request that ran out of memory.
        """
        self._name = name
        self._oom_code = oom_code
        self._waiting: deque[Ticket[Work, Result, Interim]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._fault: EngineBrokenError | None = None
        self._meter = SpeedMeter()
        # A daemon: a process that was told to exit must not wait for a picture of four minutes.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    @abstractmethod
    def prepare(self, request: Request) -> Work:
        """
        What can be done for a request alone, on the thread that submits it, while the engine's serves others.

        What it raises fails the request.
        """

    @abstractmethod
    def live(self) -> Collection[Ticket[Work, Result, Interim]]:
        """The tickets that were taken up and have not ended."""

    @abstractmethod
    def turn(self) -> None:
        """
        One round of work. What it raises fails every live ticket, so it catches what belongs to one of them (`fail`).

        Called while anything waits or lives; must take up or move something, or the loop spins.
        """

    @abstractmethod
    def drop(self, ticket: Ticket[Work, Result, Interim]) -> None:
        """Forget a live ticket that has just ended, and free what it held. What this raises ends the engine."""

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def submit(
        self, request: Request, on_progress: Progress, should_stop: ShouldStop, on_interim: Callable[[Interim], None] = lambda _: None
    ) -> Future[Result]:
        """
        Prepare a request, and queue it.

        The future fails with WorkStoppedError once `should_stop` is true or the engine closes, with TransientWorkError when memory ran
        out, EngineBrokenError when the device is lost, and with what the subclass says of a bad request; any other exception is a
        fault of this program or of the machine.

        Args:
            on_interim: told, on the engine's thread, of what exists before the end: it must be quick.
        """
        future = Future[Result]()
        try:
            ticket = Ticket(self.prepare(request), on_progress, should_stop, on_interim, future)
        except Exception as error:  # whatever it is, it belongs to this request
            future.set_exception(self._explain(error))
            return future
        with self._changed:
            if self._closing:
                future.set_exception(WorkStoppedError(f"the {self._name} is closed"))
            elif self._fault is not None:
                future.set_exception(self._fault)
            else:
                self._waiting.append(ticket)
                self._changed.notify()
        return future

    def run(
        self,
        request: Request,
        on_progress: Progress,
        should_stop: ShouldStop,
        handle: Callable[[Interim], None],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Result:
        """
        Submit, and wait on the calling thread, which handles what comes before the end: it may store, upload and take its time.

        Args:
            meanwhile: done first, while the engine already has the request. What it raises stops the request and is raised here.

        All of it is handled, in order, before this returns or raises what `submit` says of the future. What `handle` raises stops the
        request and is raised here.
        """
        came: queue.SimpleQueue[Interim | None] = queue.SimpleQueue()
        unwanted = threading.Event()
        future = self.submit(request, on_progress, lambda: unwanted.is_set() or should_stop(), came.put)
        future.add_done_callback(lambda _: came.put(None))
        try:
            meanwhile()
            while (interim := came.get()) is not None:
                handle(interim)
        finally:
            unwanted.set()
        return future.result()

    def close(self) -> None:
        """Stop the live requests at their next token or step, fail the waiting ones, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def speed(self) -> Speed | None:
        """How fast it was lately; None before it has done anything. From any thread."""
        return self._meter.speed()

    def count_work(self, units: float) -> None:
        """So much was done in this turn."""
        self._meter.count(units)

    def take_waiting(self, room: int) -> list[Ticket[Work, Result, Interim]]:
        """Up to `room` of those who wait, oldest first. Those who were stopped meanwhile end here."""
        taken: list[Ticket[Work, Result, Interim]] = []
        while len(taken) < room:
            with self._changed:
                if not self._waiting:
                    break
                ticket = self._waiting.popleft()
            if ticket.future.set_running_or_notify_cancel() and not self.stopped(ticket):
                taken.append(ticket)
        return taken

    def num_waiting(self) -> int:
        """Requests that nobody has taken up yet."""
        return len(self._waiting)

    def stopped(self, ticket: Ticket[Work, Result, Interim]) -> bool:
        """Was it told to stop? Then it has ended with this call."""
        try:
            if not (self._closing or ticket.should_stop()):
                return False
        except Exception as error:  # the caller's own callable: its fault is its request's
            self.fail(ticket, error)
            return True
        self.fail(ticket, WorkStoppedError(f"the {self._name} was told to stop"))
        return True

    def tell(self, ticket: Ticket[Work, Result, Interim], phase: str, done: int, total: int) -> bool:
        """Report progress. False: the caller's callable failed, and the ticket has ended with it."""
        return self._call(ticket, lambda: ticket.on_progress(phase, done, total))

    def show(self, ticket: Ticket[Work, Result, Interim], interim: Interim) -> bool:
        """Hand out what exists before the end. False: the caller's callable failed, and the ticket has ended with it."""
        return self._call(ticket, lambda: ticket.on_interim(interim))

    def finish(self, ticket: Ticket[Work, Result, Interim], result: Result) -> None:
        """End a ticket with its result."""
        if (fault := self._let_go(ticket)) is not None:
            ticket.future.set_exception(fault)
        else:
            ticket.future.set_result(result)

    def fail(self, ticket: Ticket[Work, Result, Interim], error: Exception) -> None:
        """End a ticket, live or just taken, with an error."""
        fault = self._let_go(ticket)
        # The frames hold caches and latents, and the future would keep them alive with the traceback.
        traceback.clear_frames(error.__traceback__)
        if not ticket.future.done():  # only where the engine is broken, and does not know any more who is there
            ticket.future.set_exception(fault or self._explain(error))

    def _let_go(self, ticket: Ticket[Work, Result, Interim]) -> EngineBrokenError | None:
        """
        Drop a ticket.

        Returns:
            why that failed, as on a device that is lost. What the others hold is then not known any more: they end with the same fault.
        """
        try:
            self.drop(ticket)
        except Exception as error:  # whatever it is, whoever waits for a future must hear of it
            with self._changed:
                self._fault = EngineBrokenError(f"the {self._name} cannot go on: {error!r}")
            return self._fault
        return None

    def _call(self, ticket: Ticket[Work, Result, Interim], call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:  # the caller's own callable: its fault is its request's
            self.fail(ticket, error)
            return False
        return True

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._waiting or self.live()):
                    self._changed.wait()
            if self._closing:
                break
            started = time.monotonic()
            try:
                self.turn()
            except Exception as error:  # whatever it is, it must not end the thread
                for ticket in list(self.live()):
                    self.fail(ticket, error)
            self._meter.end_turn(time.monotonic() - started)
            if self._fault is not None:
                break
        for ticket in [*self.live(), *self.take_waiting(len(self._waiting))]:
            if self._fault is None:
                self.stopped(ticket)
            else:
                self.fail(ticket, self._fault)

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
