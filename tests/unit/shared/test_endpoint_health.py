"""The circuit breaker as plain numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from shared.lifecycle.endpoint_health import BREAKER_AFTER, Health, after_failure, breaker_wait_s, is_given_up

NOW = datetime(2026, 11, 26, tzinfo=UTC)


def failed(health: Health, times: int, now: datetime = NOW, is_probe: bool = False) -> Health:
    for _ in range(times):
        health = after_failure(health, now, is_probe)
    return health


def test_five_failures_open_it() -> None:
    """Four do not."""
    assert failed(Health(), 4) == Health(4, NOW)
    assert failed(Health(), 5) == Health(5, NOW, 1, NOW + timedelta(seconds=60))


@pytest.mark.parametrize(("openings", "wait_s"), [(1, 60), (2, 120), (3, 240), (6, 1920), (7, 3600), (8, 3600), (10**9, 3600)])
def test_waits_double_up_to_an_hour(openings: int, wait_s: int) -> None:
    """A minute first."""
    assert breaker_wait_s(openings) == wait_s


def test_only_a_probe_makes_the_wait_longer() -> None:
    """What fails late was sent before the breaker opened."""
    opened = failed(Health(), BREAKER_AFTER)
    late = failed(opened, 3)
    assert (late.failures, late.openings, late.breaker_until) == (8, 1, opened.breaker_until)
    later = NOW + timedelta(seconds=61)
    assert failed(late, 1, later, is_probe=True) == Health(9, NOW, 2, later + timedelta(seconds=120))


def test_given_up_after_five_days_of_failures() -> None:
    """Of failures only, and of more than a few."""
    late = NOW + timedelta(days=5)
    failing = failed(Health(), BREAKER_AFTER)
    assert is_given_up(failing, late)
    assert not is_given_up(failing, late - timedelta(seconds=1))
    assert not is_given_up(failed(Health(), BREAKER_AFTER - 1), late)
    assert not is_given_up(Health(), late)
