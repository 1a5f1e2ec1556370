"""
Calls that come while one is under way are made as one, after it: many requests at once cost few trips to Postgres.

A lone call is made at once, by its own thread. Nobody is answered by what began before he came. Knows threads; knows no rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Call(Generic[Item, Result]):
    def __init__(self, item: Item) -> None:
        self.item = item
        self.told = threading.Event()
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.leads = False


class Together(Generic[Item, Result]):
    """Makes calls together. Thread-safe."""

    def __init__(self, do: Callable[[Sequence[Item]], Sequence[Result]], most: int) -> None:
        """
        Args:
            do: all calls as one; a result for each, in their order. What it raises, every one of the calls raises.
            most: calls that are made as one.
        """
        self._do = do
        self._most = most
        self._lock = threading.Lock()
        self._calls: list[_Call[Item, Result]] = []
        self._is_busy = False

    @property
    def num_waiting(self) -> int:
        """Calls that wait for the one that is under way."""
        return len(self._calls)

    def __call__(self, item: Item) -> Result:
        """Make a call, with others or alone."""
        call: _Call[Item, Result] = _Call(item)
        with self._lock:
            self._calls.append(call)
            call.leads = not self._is_busy
            self._is_busy = True
        if not call.leads:
            call.told.wait()
        if call.leads:
            self._lead()
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[return-value]  # one of the two is there

    def _lead(self) -> None:
        """Make the calls that have come, the leader's own first among them, and let the next one lead."""
        with self._lock:
            calls, self._calls = self._calls[: self._most], self._calls[self._most :]
        try:
            for call, result in zip(calls, self._do([call.item for call in calls]), strict=True):
                call.result = result
        except BaseException as error:  # each of the threads has to hear of it
            for call in calls:
                call.error = error
        with self._lock:
            successor = self._calls[0] if self._calls else None
            self._is_busy = successor is not None
        for call in calls[1:]:
            call.told.set()
        if successor is not None:
            successor.leads = True
            successor.told.set()
