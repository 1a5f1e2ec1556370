"""Values that are read again only when they are old."""

from __future__ import annotations

from itertools import count

import pytest

from services.api.kept import Kept


def test_it_is_read_once_while_it_is_good() -> None:
    """And again when it is old or to be forgotten."""
    numbers = count()
    good, old = Kept(lambda: next(numbers), 60), Kept(lambda: next(numbers), 0)
    assert [good.get(), good.get()] == [0, 0]
    good.forget()
    assert good.get() == 1
    assert [old.get(), old.get()] == [2, 3]


def test_what_is_worth_nothing_or_fails_is_not_kept() -> None:
    """Whoever asks next asks anew."""
    numbers = count()
    late = Kept(lambda: next(numbers), 60, is_worth=lambda number: number > 0)
    assert [late.get(), late.get(), late.get()] == [0, 1, 1]
    failing = Kept(lambda: 1 // next(numbers) // 0, 60)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            failing.get()
    assert next(numbers) == 4
