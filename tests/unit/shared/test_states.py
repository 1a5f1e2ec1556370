"""The table of states and moves."""

from __future__ import annotations

from shared.states import JOB_MOVES, LIVE_WORK, NEW_WORK, TERMINAL_JOB, WORK_MOVES, JobStatus, WorkState


def test_every_state_has_its_moves() -> None:
    """No state is missing in the tables."""
    assert set(WORK_MOVES) == set(WorkState)
    assert set(JOB_MOVES) == set(JobStatus)


def test_every_state_can_be_reached_and_left() -> None:
    """From the first states every other is reachable, and every live state leads to an end."""
    reached = set(NEW_WORK)
    while more := {target for state in reached for target in WORK_MOVES[state]} - reached:
        reached |= more
    assert reached == set(WorkState)
    for state in LIVE_WORK:
        assert WorkState.CANCELED in WORK_MOVES[state]


def test_ends_are_final() -> None:
    """A job that ended never changes again."""
    assert {"succeeded", "failed", "canceled", "expired"} == TERMINAL_JOB
