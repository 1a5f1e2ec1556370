"""
How an endpoint that does not answer is spared: its circuit breaker, and when it is given up. Pure.

Closed, everything is sent. After `BREAKER_AFTER` failures in a row it opens: nothing is sent for a minute. Then one delivery goes, the
probe; if it fails the next wait is twice as long, up to an hour, and if it arrives the breaker is closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

BREAKER_AFTER = 5
"""Failures in a row that open it."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 60, 3600
GIVE_UP_AFTER = timedelta(days=5)
"""Of failures and nothing else: as Svix has it, longer than the schedule of one delivery takes."""


@dataclass(frozen=True)
class Health:
    """How an endpoint has been answering; as it is when all is well."""

    failures: int = 0
    """In a row."""
    failing_since: datetime | None = None
    openings: int = 0
    """Of the breaker, in a row."""
    breaker_until: datetime | None = None
    """Nothing is sent before, and a probe after. None: closed."""


def after_failure(health: Health, now: datetime, is_probe: bool) -> Health:
    """
    One more delivery did not arrive.

    What was in flight when the breaker opened fails too, and must not make the wait longer: only a probe does.
    """
    failures = health.failures + 1
    openings, until = health.openings, health.breaker_until
    if is_probe or (until is None and failures >= BREAKER_AFTER):
        openings += 1
        until = now + timedelta(seconds=breaker_wait_s(openings))
    return Health(failures, health.failing_since or now, openings, until)


def breaker_wait_s(openings: int) -> int:
    """How long the breaker stays open when it has opened so many times in a row."""
    # The exponent is bounded, or a year of failures would make a number of a thousand digits.
    return min(_FIRST_WAIT_S << min(openings - 1, 16), _LONGEST_WAIT_S)


def is_given_up(health: Health, now: datetime) -> bool:
    """
    Has nothing arrived for so long that it is time to stop?

    A handful of failures at least: two of them, a week apart with nothing between, say little.
    """
    return health.failing_since is not None and health.failures >= BREAKER_AFTER and now - health.failing_since >= GIVE_UP_AFTER
