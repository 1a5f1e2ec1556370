"""Messages to Celery from a thread of their own: the dispatcher never waits for a broker. Knows no database."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import structlog

from shared.queue import BrokerDownError, Traced, send_work
from shared.states import Stage

_MAX_WAITING = 1000
_BEHIND_S = 0.02
"""A message comes behind the ring, which is what idle workers are woken by: at the same moment the two would ask for the same unit."""
_PAUSE_S = 5.0
"""A dead broker costs kombu some six seconds to notice; ask it no more often than this."""

log = structlog.get_logger()


class Publisher:
    """Sends ids, and drops what cannot be sent: a message is a hint, and idle workers ask Postgres."""

    def __init__(self, celery: Any) -> None:
        self._celery = celery
        self._waiting: queue.Queue[tuple[Stage, Traced]] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._publish, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def send(self, stage: Stage, work_ids: Traced) -> None:
        """Send soon, or never. With each id, the trace that its message tells of."""
        try:
            self._waiting.put_nowait((stage, work_ids))
        except queue.Full:
            log.warning("messages_dropped", stage=stage, units=len(work_ids))

    def _publish(self) -> None:
        down_until = float("-inf")
        while True:
            stage, work_ids = self._waiting.get()
            if time.monotonic() < down_until:
                continue
            time.sleep(_BEHIND_S)
            try:
                send_work(self._celery, stage, work_ids)
            except BrokerDownError as error:
                down_until = time.monotonic() + _PAUSE_S
                log.warning("broker_away", stage=stage, units=len(work_ids), error=str(error))
            except Exception:  # a message is a hint: whatever is wrong with one must not end the thread that sends the others
                log.exception("message_lost", stage=stage, units=len(work_ids))
