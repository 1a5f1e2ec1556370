"""What woke the dispatcher: the stages that were rung for since it last looked."""

from __future__ import annotations

import threading

from shared.states import Stage


class Doorbell:
    """Rung on the listener's thread, answered on the dispatcher's. Rings that come together are answered together."""

    def __init__(self) -> None:
        self._rung: set[Stage] = set()
        self._lock = threading.Lock()
        self._ringing = threading.Event()

    def ring(self, stage: Stage) -> None:
        """Something of this stage may be released."""
        with self._lock:
            self._rung.add(stage)
        self._ringing.set()

    def take(self) -> set[Stage]:
        """The stages rung for since the last call."""
        self._ringing.clear()
        with self._lock:
            rung, self._rung = self._rung, set()
        return rung

    def wait(self, timeout_s: float) -> None:
        """Wait for a ring; at once if there was one since the last `take`."""
        self._ringing.wait(max(0.0, timeout_s))
