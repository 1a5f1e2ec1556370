"""A value that is read again only when it is some seconds old. Knows no value."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """What a reader told a few seconds ago at most. Thread-safe."""

    def __init__(self, read: Callable[[], Value], kept_s: float, is_worth: Callable[[Value], bool] = lambda value: True) -> None:
        """
        Args:
            read: asks for the value, perhaps at length; what it raises is raised to who asked, and nothing is kept.
            kept_s: seconds for which its answer is good.
            is_worth: is this value to be kept at all?
        """
        self._read = read
        self._kept_s = kept_s
        self._is_worth = is_worth
        self._lock = threading.Lock()
        self._kept: tuple[Value, float] | None = None

    def get(self) -> Value:
        """The value."""
        with self._lock:
            if self._kept is not None and time.monotonic() < self._kept[1]:
                return self._kept[0]
        # Outside the lock, so that a slow database holds up only who asks it.
        value = self._read()
        with self._lock:
            self._kept = (value, time.monotonic() + self._kept_s) if self._is_worth(value) else None
        return value

    def forget(self) -> None:
        """Ask anew at the next `get`."""
        with self._lock:
            self._kept = None
