"""Rows lie side by side by group, whatever comes and goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.ar_worker.slots import SlotTable, Span

NUM_SLOTS = 6


class Memory:
    """What lies in each slot; a move copies it."""

    def __init__(self) -> None:
        self.slots: list[object] = [None] * NUM_SLOTS
        self.num_moves = 0

    def move(self, source: int, target: int) -> None:
        self.slots[target] = self.slots[source]
        self.num_moves += 1


class Row:
    def __init__(self, group: str) -> None:
        self.group = group


@given(st.lists(st.one_of(st.sampled_from("abc"), st.integers(0, NUM_SLOTS - 1)), max_size=40))
def test_every_row_keeps_its_memory_and_every_group_is_one_span(events: list[str | int]) -> None:
    """After any arrivals (a group's name) and departures (a slot), memory and table agree, and spans cover the rows without a hole."""
    memory = Memory()
    table: SlotTable[Row] = SlotTable(NUM_SLOTS, memory.move)
    for event in events:
        before = memory.num_moves
        num_groups = len(table.spans())
        if isinstance(event, str):
            if not table.num_free:
                continue
            row = Row(event)
            slot = table.insert(row, event)
            memory.slots[slot] = row
        elif event < len(table.rows):
            table.remove(table.rows[event])
        assert memory.num_moves - before <= num_groups
        assert memory.slots[: len(table.rows)] == table.rows
        assert table.num_free == NUM_SLOTS - len(table.rows)
        spans = table.spans()
        assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])][: len(spans)]
        assert sum(span.stop - span.start for span in spans) == len(table.rows)
        assert all(row.group == span.group for span in spans for row in table.rows[span.start : span.stop])
        assert len({span.group for span in spans}) == len(spans)


def test_the_last_row_fills_the_hole() -> None:
    """In one group, a row that leaves costs one move."""
    memory = Memory()
    table: SlotTable[Row] = SlotTable(NUM_SLOTS, memory.move)
    first, second, third = (Row("a") for _ in range(3))
    for row in (first, second, third):
        table.insert(row, "a")

    table.remove(first)

    assert table.rows == [third, second]
    assert table.spans() == [Span("a", 0, 2)]
    assert memory.num_moves == 1
