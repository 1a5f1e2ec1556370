"""What pictures share."""

from __future__ import annotations

import torch

from services.decoder_worker.sharing import SharedResults

_KIB = torch.Size([256])
"""Of float32: one KiB."""


def _ones() -> torch.Tensor:
    return torch.ones(_KIB)


def test_a_result_is_computed_once() -> None:
    """The same kind and key give the same object; another kind or key is another result."""
    shared = SharedResults(1 << 20)
    first = shared.get("a", 1, _ones)
    assert shared.get("a", 1, _ones) is first
    assert shared.get("a", 2, _ones) is not first
    assert shared.get("b", 1, _ones) is not first
    assert shared.num_computed == {"a": 2, "b": 1}


def test_what_is_used_least_recently_goes_first() -> None:
    """Of three results in room for two, the one goes that was asked for longest ago; the bound holds."""
    shared = SharedResults(2048)
    for key in (1, 2, 1, 3):
        shared.get("a", key, _ones)
        assert shared.kept_bytes <= 2048
    assert [shared.has("a", key) for key in (1, 2, 3)] == [True, False, True]


def test_what_a_picture_holds_is_found_whatever_the_bound() -> None:
    """With no room to keep anything, results are shared as long as somebody holds them, and gone with the last."""
    shared = SharedResults(0)
    held = shared.get("a", 1, _ones)
    assert shared.get("a", 1, _ones) is held
    assert shared.kept_bytes == 0
    del held
    assert not shared.has("a", 1)


def test_what_is_expected_stays_for_the_last_who_expects_it() -> None:
    """With no room to keep anything, a result stays from the first who had it computed until the last who expects it has let go."""
    shared = SharedResults(0)
    first, second = shared.expect("a", 1), shared.expect("a", 1)
    shared.get("a", 1, _ones)
    del first
    assert shared.has("a", 1)
    del second
    assert not shared.has("a", 1)


def test_what_is_there_is_kept_for_who_expects_it_later() -> None:
    """Expected while a picture holds it, a result outlives that picture."""
    shared = SharedResults(0)
    held = shared.get("a", 1, _ones)
    expectation = shared.expect("a", 1)
    assert expectation.result is held
    del held
    assert shared.has("a", 1)


def test_a_result_too_large_to_keep_pushes_out_nothing() -> None:
    """A result larger than the bound leaves the others where they are."""
    shared = SharedResults(2048)
    shared.get("a", 1, _ones)
    shared.get("a", 2, lambda: torch.ones(1024))
    assert shared.has("a", 1)
    assert not shared.has("a", 2)


def test_clearing_lets_go_of_what_nobody_holds() -> None:
    """After clear(), what a picture holds is still shared, and the rest is gone, expected or not; what is expected is then kept anew."""
    shared = SharedResults(1 << 20)
    held = shared.get("a", 1, _ones)
    shared.get("a", 2, _ones)
    expectation = shared.expect("a", 3)
    shared.get("a", 3, _ones)
    shared.clear()
    assert shared.kept_bytes == 0
    assert shared.get("a", 1, _ones) is held
    assert not shared.has("a", 2)
    assert not shared.has("a", 3)
    assert shared.get("a", 3, _ones) is expectation.result
