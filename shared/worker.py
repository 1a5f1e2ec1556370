"""
The process around an engine: registers the worker, takes work from Celery and from Postgres, shuts down.

Knows slots and claims; what becomes of a claim is the matter of `attempts.py`, and what the work is, that of its `Handler`.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, NoReturn

import structlog

from shared.attempts import Attempts, ClaimT, Handler
from shared.cost import Speed
from shared.db import Database, DatabaseDownError
from shared.errors import EngineBrokenError
from shared.ids import new_id
from shared.interpreter import begin_to_serve
from shared.lease import LeaseKeeper, StopReason
from shared.lifecycle import workers
from shared.progress import LiveState
from shared.queue import consume, make_celery
from shared.settings import WorkerSettings
from shared.wakeup import READY, RELEASED, Listener, Topic

_BEAT_S = 3.0
_EAGER_S = 0.05
_EAGER_FOR_S = 1.5
"""Celery listens again only up to a second after all slots were busy; until then we look in Postgres often, unless wake-ups are heard."""

_REMEMBERED = 512
"""Units claimed here of which a message may still come; that message is dropped without asking Postgres."""

log = structlog.get_logger()


class WorkerProcess(Generic[ClaimT]):
    """One worker process of one stage."""

    def __init__(
        self,
        settings: WorkerSettings,
        db: Database,
        live: LiveState,
        handler: Handler[ClaimT],
        model: dict[str, Any],
        slots: int,
        speed: Callable[[], Speed | None],
    ) -> None:
        """
        Args:
            speed: the engine's.
            slots: units held at once, as many as the engine takes.
        """
        self._settings = settings
        self._db = db
        self._live = live
        self._handler = handler
        self._model = model
        self._id = new_id("wrk")
        self._keeper = LeaseKeeper(db, live, handler.stage, settings)
        self._num_slots = slots
        self._speed = speed
        self._slots = threading.Semaphore(self._num_slots)
        self._released = RELEASED[handler.stage]
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._hints: set[Topic] = set()
        self._is_idling = False
        self._eager_until = 0.0
        self._listener: Listener | None = None
        self._claimed: deque[str] = deque(maxlen=_REMEMBERED)
        self._attempts = Attempts(db, live, self._keeper, handler, settings.attempt_s, self._stopping, self.begin_shutdown)

    def serve(self) -> NoReturn:
        """Work until SIGTERM or SIGINT, then hand back what is held and end the process."""
        begin_to_serve()
        self._keeper.start()
        self._register()
        threads = [threading.Thread(target=target, daemon=True) for target in (self._beat, self.poll, self._leave, self._end_in_time)]
        for thread in threads:
            thread.start()
        self._listener = self._live.listen(self._wake_ups())
        log.info("worker_ready", worker_id=self._id, stage=self._handler.stage, slots=self._num_slots)
        app = make_celery(self._settings.redis_url.get_secret_value())
        consume(app, self._handler.stage, self._num_slots, self._take_released, self.begin_shutdown)
        self.begin_shutdown()
        while True:
            time.sleep(1)

    def _wake_ups(self) -> dict[Topic, Callable[[], object]]:
        topics = [self._released] if self._handler.idle is None else [self._released, Topic.SPARE_WORK]
        return {Topic.STOPS: self._keeper.look, **{topic: partial(self._wake, topic) for topic in topics}}

    def _wake(self, *hints: Topic) -> None:
        """Have the poll look again, for what these tell of."""
        self._hints.update(hints)
        self._woken.set()

    def begin_shutdown(self) -> None:
        """Take nothing more, and stop what is held. Sets flags only: signal handlers call it."""
        self._stopping.set()
        self._woken.set()
        self._keeper.stop_all(StopReason.SHUTDOWN)

    def _take_released(self, work_id: str) -> None:
        if work_id in self._claimed:
            return
        while not self._slots.acquire(timeout=0.2):
            if self._stopping.is_set():
                return
        self._use_slot(self._claim(work_id))

    def poll(self) -> None:
        """Take released work whose message was lost, or all of it while Redis is off."""
        # Celery's threads are Celery's: while Redis is off it starts none.
        with ThreadPoolExecutor(self._num_slots, "slot") as threads:
            while not self._stopping.is_set():
                was_woken = self._woken.wait(_EAGER_S if self._is_eager() else self._settings.poll_s)
                self._woken.clear()
                if not was_woken:
                    self._hints |= {self._released, Topic.SPARE_WORK}
                if self._released in self._hints:
                    self._hints.discard(self._released)
                    self._fill_slots(threads)
                if Topic.SPARE_WORK in self._hints:
                    self._begin_idle_work(threads)

    def _is_eager(self) -> bool:
        return time.monotonic() < self._eager_until and not self._is_hearing()

    def _is_hearing(self) -> bool:
        return self._listener is not None and self._listener.is_hearing

    def _fill_slots(self, threads: ThreadPoolExecutor) -> None:
        while self._slots.acquire(blocking=False):
            claim = self._claim(None)
            if claim is None:
                self._slots.release()
                return
            threads.submit(self._use_slot, claim)

    def _begin_idle_work(self, threads: ThreadPoolExecutor) -> None:
        """One piece of what is done only while nothing is released, if there is a slot for it; where there is none, the hint stays."""
        if self._handler.idle is None or self._is_idling or self._stopping.is_set() or not self._slots.acquire(blocking=False):
            return
        self._hints.discard(Topic.SPARE_WORK)
        self._is_idling = True
        threads.submit(self._do_idle_work, self._handler.idle)

    def _do_idle_work(self, idle: Callable[[str], bool]) -> None:
        is_more = False
        try:
            is_more = idle(self._id)
        except EngineBrokenError as error:
            # Before it costs a job an attempt: the next piece would fail on this device as well.
            log.error("engine_broken", error=str(error))
            self.begin_shutdown()
        except Exception:  # nobody waits for it, and the next piece may go well
            log.exception("idle_work_failed")
        finally:
            self._is_idling = False
            self._slots.release()
        if is_more:
            # Between two pieces of what can wait, the work that counts comes first.
            self._wake(self._released, Topic.SPARE_WORK)

    def _use_slot(self, claim: ClaimT | None) -> None:
        """Do this unit, then whatever else is released; the slot is ours, and is free afterwards."""
        worked = claim is not None
        try:
            while claim is not None:
                self._run(claim)
                claim = self._claim(None)
        finally:
            self._slots.release()
        if worked:
            self._eager_until = time.monotonic() + _EAGER_FOR_S
            # What is released was just asked for; whoever is not told of more has to ask again.
            self._wake(*(() if self._is_hearing() else (self._released,)))
            # A slot is free and nothing is released for it.
            self._live.ring(READY[self._handler.stage])

    def attempt(self, work_id: str | None) -> bool:
        """Claim and do one unit on this thread. False: there was none."""
        claim = self._claim(work_id)
        if claim is not None:
            self._run(claim)
        return claim is not None

    def _claim(self, work_id: str | None) -> ClaimT | None:
        if self._stopping.is_set():
            return None
        try:
            return self._handler.claim(self._id, work_id)
        except DatabaseDownError as error:
            log.warning("claim_failed", error=str(error))
        except Exception:  # a row that cannot be claimed must not end the thread that looks for others
            log.exception("claim_crashed", work_id=work_id)
        return None

    def _run(self, claim: ClaimT) -> None:
        self._claimed.append(claim.id)
        self._attempts.run(claim)

    def _register(self) -> None:
        """Say that we live, and wait for a database that does not answer yet."""
        while not self._say_alive() and not self._stopping.wait(1):
            pass

    def _beat(self) -> None:
        while not self._stopping.wait(_BEAT_S):
            try:
                self._say_alive()
            except Exception:  # the next beat may succeed
                log.exception("worker_beat_failed")

    def _say_alive(self) -> bool:
        try:
            here = (socket.gethostname(), os.getpid(), self._num_slots)
            workers.beat_worker(self._db, self._id, self._handler.stage, *here, self._model, self._speed())
        except DatabaseDownError as error:
            log.warning("worker_beat_failed", error=str(error))
            return False
        return True

    def _leave(self) -> None:
        """
        End the process once every attempt has ended and handed its work back.

        From a thread, and at once: Celery looks at its own flag only every few seconds, and torch takes seconds to be taken apart.
        """
        self._stopping.wait()
        for _ in range(self._num_slots):
            self._slots.acquire()
        try:
            workers.stop_worker(self._db, self._id)
        except DatabaseDownError as error:
            log.warning("farewell_failed", error=str(error))
        log.info("worker_stopped", worker_id=self._id)
        os._exit(0)

    def _end_in_time(self) -> None:
        """A stopped engine may wait for a kernel, a farewell for the database. The process ends all the same."""
        self._stopping.wait()
        time.sleep(self._settings.shutdown_s)
        log.error("shutdown_forced", worker_id=self._id)
        os.kill(os.getpid(), signal.SIGKILL)
