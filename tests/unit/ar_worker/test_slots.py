"""Rows lie side by side by group, whatever comes and goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.ar_worker.slots import SlotTable, Span

NUM_SLOTS = 6
PART = 2


class Memory:
    """What lies in each slot; a move copies it."""

    def __init__(self) -> None:
        self.slots: list[object] = [None] * NUM_SLOTS
        self.num_moves = 0

    def move(self, source: int, target: int) -> None:
        self.slots[target] = self.slots[source]
        self.num_moves += 1


class Row:
    def __init__(self, group: str, length: int = 0) -> None:
        self.group = group
        self.length = length


def make_table(memory: Memory, part: int = PART) -> SlotTable[Row]:
    return SlotTable(NUM_SLOTS, memory.move, part, lambda row: row.length)


@given(st.lists(st.one_of(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), st.integers(0, NUM_SLOTS - 1)), max_size=40))
def test_every_row_keeps_its_memory_and_every_group_is_one_span(events: list[tuple[str, int] | int]) -> None:
    """After any arrivals (group and length) and departures (a slot), memory and table agree, and spans cover the rows without a hole."""
    memory = Memory()
    table = make_table(memory)
    for event in events:
        before = memory.num_moves
        num_groups = len(table.spans())
        num_parts = 0
        if isinstance(event, tuple):
            if not table.num_free:
                continue
            row = Row(*event)
            slot = table.insert(row, row.group)
            memory.slots[slot] = row
        elif event < len(table.rows):
            num_parts = (len(table.rows) - 1) // PART
            table.remove(table.rows[event])
        assert memory.num_moves - before <= num_groups + num_parts
        assert memory.slots[: len(table.rows)] == table.rows
        assert table.num_free == NUM_SLOTS - len(table.rows)
        spans = table.spans()
        assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])][: len(spans)]
        assert sum(span.stop - span.start for span in spans) == len(table.rows)
        assert all(row.group == span.group for span in spans for row in table.rows[span.start : span.stop])
        assert len({span.group for span in spans}) == len(spans)


def test_the_last_row_fills_the_hole() -> None:
    """In one group of equal rows, one that leaves costs one move."""
    memory = Memory()
    table = make_table(memory)
    first, second, third = (Row("a") for _ in range(3))
    for row in (first, second, third):
        table.insert(row, "a")

    table.remove(first)

    assert table.rows == [third, second]
    assert table.spans() == [Span("a", 0, 2)]
    assert memory.num_moves == 1


def test_the_longest_move_up() -> None:
    """A hole goes from part to part, each time to where the longest row was; so the newest, which are short, stay together at the end."""
    memory = Memory()
    table = make_table(memory)
    rows = [Row("a", length) for length in (9, 8, 5, 6, 2, 1)]
    for row in rows:
        table.insert(row, "a")

    table.remove(rows[0])

    assert [row.length for row in table.rows] == [6, 8, 5, 2, 1]
    assert memory.num_moves == 3


def test_a_group_of_one_part_is_in_any_order() -> None:
    """Where all rows are read together, nothing is sorted."""
    memory = Memory()
    table = make_table(memory, NUM_SLOTS)
    rows = [Row("a", length) for length in (9, 8, 5, 6)]
    for row in rows:
        table.insert(row, "a")

    table.remove(rows[0])

    assert [row.length for row in table.rows] == [6, 8, 5]
    assert memory.num_moves == 1
