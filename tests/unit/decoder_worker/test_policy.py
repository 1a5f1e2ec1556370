"""Whose turn it is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.decoder_worker.policy import Candidate, Choice, choose

_SHARE = 1 / 16


def _candidate(shape: str, work_left: float, **changes: object) -> Candidate:
    fields: dict[str, object] = {"num_patches": 64, "step_work": 1.0, "passed_over": 0.0}
    return Candidate(shape=shape, work_left=work_left, **(fields | changes))


def _chosen(*candidates: Candidate, token_budget: int = 256, since_favour: float = 0.0) -> Choice:
    return choose(candidates, token_budget, _SHARE, since_favour)


def test_the_least_work_left_goes_first() -> None:
    """A small picture that comes late passes a large one that has begun; of equals the older one goes."""
    assert _chosen(_candidate("large", 500), _candidate("small", 20), _candidate("other", 20)) == Choice((1,), False)


def test_equal_shapes_join_within_the_budget() -> None:
    """Pictures of the leader's shape join it, the shortest first, until their patches fill the budget."""
    group = [_candidate("a", work) for work in (9, 5, 7, 3, 8, 6)]
    assert _chosen(*group, _candidate("b", 4)).members == (3, 1, 5, 2)
    assert _chosen(*group, token_budget=1).members == (3,), "one larger than the budget goes alone"


def test_a_picture_that_goes_alone_shares_no_batch() -> None:
    """A fast picture neither takes mates along nor joins others."""
    exact, fast = _candidate("a", 3), _candidate("a", 2, is_alone=True)
    assert _chosen(exact, fast).members == (1,)
    assert _chosen(exact, _candidate("a", 5, is_alone=True), _candidate("a", 4)).members == (0, 2)


def test_previews_wait_for_all_others() -> None:
    """A preview, however short, goes when nothing else wants the engine; of its shape it fills what the others leave."""
    preview = _candidate("a", 1, is_preview=True)
    assert _chosen(preview, _candidate("b", 90)).members == (1,)
    assert _chosen(preview, _candidate("a", 90)).members == (1, 0)
    assert _chosen(preview).members == (0,)


def test_who_was_passed_over_for_long_gets_one_step() -> None:
    """Once sixteen times its step was done for others, a large picture or a preview goes first; of several the longest waiting one."""
    small = _candidate("small", 2)
    large = _candidate("large", 500, step_work=10, passed_over=160)
    assert _chosen(small, large, since_favour=160) == Choice((1,), True)
    assert _chosen(small, large, since_favour=159) == Choice((0,), False), "favours are counted for all together"
    preview = _candidate("preview", 5, is_preview=True, passed_over=400)
    assert _chosen(small, large, preview, since_favour=400) == Choice((2,), True)
    soon = _candidate("middle", 50, step_work=2, passed_over=100)
    assert _chosen(small, large, soon, since_favour=100) == Choice((0,), False), "short steps do not use up what a long one waits for"


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 10), min_size=1, max_size=6), num_steps=st.integers(1, 6))
def test_nobody_starves(sizes: list[int], num_steps: int) -> None:
    """
    In an endless stream of pictures that are always shorter, everyone ends, after at most 17 times the work of all of them.

    The share is that of all overdue pictures together, so the bound is of all together; a step more is for the waiting before the first.
    """
    left = dict.fromkeys(range(len(sizes)), num_steps)
    moved_at = dict.fromkeys(left, 0.0)
    work_done = favoured_at = 0.0
    bound = 17 * num_steps * sum(sizes) + 17 * max(sizes)
    while left:
        indices = list(left)
        waiting = [
            _candidate(str(index), left[index] * sizes[index] + 100, step_work=float(sizes[index]), passed_over=work_done - moved_at[index])
            for index in indices
        ]
        # Always a fresh one, shorter than all of them.
        choice = choose([_candidate("stream", 1, step_work=1.0), *waiting], 1, _SHARE, work_done - favoured_at)
        if choice.is_favour:
            favoured_at = work_done
        (member,) = choice.members
        work_done += 1.0 if member == 0 else sizes[indices[member - 1]]
        if member:
            index = indices[member - 1]
            moved_at[index] = work_done
            left[index] -= 1
            if left[index] == 0:
                del left[index]
        assert work_done <= bound
