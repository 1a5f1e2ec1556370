"""
Which request sits in which slot: requests of one group side by side, the groups one after another, no hole between them. Pure.

Rows side by side are read as views of the cache, without copying. A row that comes or leaves moves at most one row of each later
group, and one of each later part of its own: the long rows of a group come first, roughly, because parts are read up to their longest row.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Span:
    """The slots `start` to `stop` (exclusive) of one group."""

    group: Hashable
    start: int
    stop: int


class SlotTable(Generic[RowT]):
    """
    Rows by slot.

    Args:
        move: told to copy slot `source` over slot `target`, which holds nothing that is needed.
        part: rows of a group that are read together.
        length: how long a row is now; all grow alike.
    """

    def __init__(self, num_slots: int, move: Callable[[int, int], None], part: int, length: Callable[[RowT], int]) -> None:
        self.rows: list[RowT] = []
        self._num_slots = num_slots
        self._groups: dict[Hashable, int] = {}  # group -> its rows, in the order of the slots
        self._move = move
        self._part = part
        self._length = length

    @property
    def num_free(self) -> int:
        return self._num_slots - len(self.rows)

    def spans(self) -> list[Span]:
        """The groups, in the order of their slots."""
        spans, start = [], 0
        for group, size in self._groups.items():
            spans.append(Span(group, start, start + size))
            start += size
        return spans

    def insert(self, row: RowT, group: Hashable) -> int:
        """Give `row` a slot behind its group's others, and say which."""
        self._groups.setdefault(group, 0)
        hole = len(self.rows)
        self.rows.append(row)
        for span in reversed(self.spans()):
            if span.group == group:
                break
            hole = self._shift(span.start, hole)
        self.rows[hole] = row
        self._groups[group] += 1
        return hole

    def remove(self, row: RowT) -> None:
        """Take a row out and close the hole."""
        hole = next(slot for slot, other in enumerate(self.rows) if other is row)
        spans = self.spans()
        own = next(i for i, span in enumerate(spans) if span.start <= hole < span.stop)
        hole = self._close_up(spans[own], hole)
        for span in spans[own:]:
            hole = self._shift(span.stop - 1, hole)
        self.rows.pop()
        group = spans[own].group
        self._groups[group] -= 1
        if not self._groups[group]:
            del self._groups[group]

    def _close_up(self, span: Span, hole: int) -> int:
        """Bring the hole into the group's last part: the longest row of each part moves up into the one before."""
        last = self._length(self.rows[span.stop - 1])
        for start in range(span.start, span.stop, self._part):
            if start <= hole:
                continue
            source = max(range(start, min(start + self._part, span.stop)), key=lambda slot: self._length(self.rows[slot]))
            if self._length(self.rows[source]) <= last:  # the last one fills the hole as well
                break
            hole = self._shift(source, hole)
        return hole

    def _shift(self, source: int, hole: int) -> int:
        """Move the row in `source` into the hole; the hole is then where it was."""
        if source != hole:
            self._move(source, hole)
            self.rows[hole] = self.rows[source]
        return source
