"""
The attempts that a unit of work leaves behind: its row tells of the newest one alone, and forgets it at the next claim.

Written where a unit goes back to be claimed again, and only there: work that succeeds at its first attempt writes nothing of it.
"""

from __future__ import annotations

from datetime import datetime

from shared.job_document import attempt_entry
from shared.states import WorkState
from shared.tables import Grid, Image

MOST_KEPT = 10
"""Of a unit, the newest. Five errors and three lost workers end it (`MAX_ERRORS`, `MAX_LOST`); the rest is for retries."""


def keep_attempt(unit: Grid | Image, now: datetime) -> None:
    """
    Keep the newest attempt at a unit, with how it ended. To be called before the row is changed for the next one.

    Args:
        now: when it ended, if the unit itself was not over.
    """
    if not unit.attempt or any(past["attempt"] == unit.attempt for past in unit.past_attempts):
        return  # there was none since the last one that is kept
    state = unit.state
    if state == WorkState.RUNNING:
        state = WorkState.READY if unit.error is None else WorkState.FAILED
    entry = attempt_entry(unit, state, unit.finished_at or now)
    # A new list: the row's own would change unnoticed.
    unit.past_attempts = [*unit.past_attempts, entry][-MOST_KEPT:]
