"""
Results that pictures share: computed once for all who want them at a time, and kept for those to come within a bound of bytes.

Knows neither what is computed nor for whom. For one thread.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakValueDictionary


class Sized(Protocol):
    """Something that knows how much memory it holds."""

    @property
    def nbytes(self) -> int: ...


Result = TypeVar("Result", bound=Sized)


@dataclass(eq=False)
class Expectation:
    """Held by all who will ask for one result; holds it for them as soon as one of them had it computed."""

    result: Any = None


class SharedResults:
    """
    Results by kind and key.

    One that a picture still holds, or that one to come expects, is always found. Those that nobody holds any more stay while all of them
    fit `max_bytes`; the one that was used least recently goes first.
    """

    def __init__(self, max_bytes: int) -> None:
        self.num_computed: Counter[str] = Counter()
        self._max_bytes = max_bytes
        self._held: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self._expected: WeakValueDictionary[Hashable, Expectation] = WeakValueDictionary()
        self._kept: OrderedDict[Hashable, Sized] = OrderedDict()
        self._kept_bytes = 0

    def get(self, kind: str, key: Hashable, compute: Callable[[], Result]) -> Result:
        """The result of this kind and key, computed unless it is there."""
        full_key = (kind, key)
        result = self._held.get(full_key)
        if result is None:
            result = compute()
            self.num_computed[kind] += 1
            self._held[full_key] = result
        expectation = self._expected.get(full_key)
        if expectation is not None:
            expectation.result = result
        self._keep(full_key, result)
        return cast(Result, result)

    def expect(self, kind: str, key: Hashable) -> Expectation:
        """Say that somebody will ask for this; while what is returned is held, so is the result, once it was computed."""
        full_key = (kind, key)
        expectation = self._expected.get(full_key)
        if expectation is None:
            expectation = self._expected[full_key] = Expectation(self._held.get(full_key))
        return expectation

    def has(self, kind: str, key: Hashable) -> bool:
        """Would `get` find it?"""
        return (kind, key) in self._held

    def clear(self) -> None:
        """Let go of everything that no picture holds, expected or not."""
        for expectation in self._expected.values():
            expectation.result = None
        self._kept.clear()
        self._kept_bytes = 0

    @property
    def kept_bytes(self) -> int:
        """Memory of what is kept for later, held by pictures or not."""
        return self._kept_bytes

    def _keep(self, full_key: Hashable, result: Sized) -> None:
        if full_key in self._kept:
            self._kept.move_to_end(full_key)
            return
        if result.nbytes > self._max_bytes:
            return  # it would push out everything else, and then itself
        self._kept[full_key] = result
        self._kept_bytes += result.nbytes
        while self._kept_bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.nbytes
