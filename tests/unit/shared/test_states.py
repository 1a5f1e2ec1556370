"""The table of states and moves."""

from __future__ import annotations

from shared.states import (
    GRID_MOVES,
    IMAGE_MOVES,
    JOB_MOVES,
    LIVE_WORK,
    NEW_GRID,
    NEW_IMAGE,
    RETRYABLE_JOB,
    TERMINAL_JOB,
    JobStatus,
    WorkState,
)


def test_every_state_has_its_moves() -> None:
    """No state is missing in the tables."""
    assert set(IMAGE_MOVES) == set(WorkState) - {WorkState.HELD}
    assert set(GRID_MOVES) == set(WorkState) - {WorkState.WAITING}
    assert set(JOB_MOVES) == set(JobStatus)


def test_every_state_can_be_reached_and_left() -> None:
    """From the first states every other is reachable, and every live state leads to an end."""
    for new, moves in ((NEW_GRID, GRID_MOVES), (NEW_IMAGE, IMAGE_MOVES)):
        reached = set(new)
        while more := {target for state in reached for target in moves[state]} - reached:
            reached |= more
        assert reached == set(moves)
        assert all(WorkState.CANCELED in moves[state] for state in LIVE_WORK & set(moves))


def test_ends_are_final() -> None:
    """A job that ended never changes again, but for a retry: it begins another run, and only of what did not succeed."""
    assert {"succeeded", "failed", "canceled", "expired"} == TERMINAL_JOB
    assert {"failed", "canceled", "expired"} == RETRYABLE_JOB
    for status in TERMINAL_JOB:
        assert JOB_MOVES[status] == ({"queued"} if status in RETRYABLE_JOB else set())
