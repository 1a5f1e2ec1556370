"""Ten attempts over three days, success on 2xx alone, and an end where it is asked for."""

from __future__ import annotations

import random

import pytest

from services.webhook_sender.schedule import DELAYS_S, MAX_ATTEMPTS, Answer, outcome_of

RNG = random.Random(1)


def test_the_schedule_is_the_specs() -> None:
    """0, 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h: ten attempts in 75.6 hours."""
    assert MAX_ATTEMPTS == 10
    assert DELAYS_S == (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
    assert round(sum(DELAYS_S) / 3600, 1) == 75.6


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    """Every 2xx ends the delivery, with what the receiver said."""
    outcome = outcome_of(Answer(status, b"ok", latency_ms=7), 3, RNG)
    assert (outcome.state, outcome.status, outcome.reply, outcome.error, outcome.latency_ms) == ("delivered", status, b"ok", None, 7)


@pytest.mark.parametrize("status", [101, 301, 302, 304, 400, 404, 429, 500, 503, None])
def test_all_else_is_tried_again(status: int | None) -> None:
    """Redirects, errors and no answer at all wait for the schedule's time, give or take a fifth."""
    for attempt in range(1, MAX_ATTEMPTS):
        waits = [outcome_of(Answer(status, error=None if status else "no answer"), attempt, RNG) for _ in range(50)]
        assert {outcome.state for outcome in waits} == {"pending"}
        assert all(0.8 * DELAYS_S[attempt - 1] <= outcome.retry_in_s <= 1.2 * DELAYS_S[attempt - 1] for outcome in waits)
        assert len({outcome.retry_in_s for outcome in waits}) > 40
        assert (waits[0].error or "").startswith(f"status {status}" if status else "no answer")


def test_a_redirect_is_told_as_one() -> None:
    """Whoever reads the log learns why a receiver that answered got nothing."""
    assert outcome_of(Answer(302), 1, RNG).error == "status 302: redirects are not followed; register the URL that it leads to"


def test_a_test_is_tried_once() -> None:
    """Who asked for it is waiting for the answer."""
    assert outcome_of(Answer(500), 1, RNG, max_tries=1).state == "exhausted"


def test_the_tenth_failure_exhausts() -> None:
    """Nothing is tried for ever."""
    assert outcome_of(Answer(500), MAX_ATTEMPTS, RNG).state == "exhausted"
    assert outcome_of(Answer(200), MAX_ATTEMPTS, RNG).state == "delivered"


def test_gone_exhausts_at_once() -> None:
    """410 is a receiver's way to say never again."""
    outcome = outcome_of(Answer(410), 1, RNG)
    assert (outcome.state, outcome.is_gone) == ("exhausted", True)
    assert not outcome_of(Answer(404), 1, RNG).is_gone


@pytest.mark.parametrize(("asked_s", "least_s", "most_s"), [(60, 60, 60), (0, 4, 6), (-5, 4, 6), (1e9, 86_400, 86_400)])
def test_retry_after_lengthens_the_wait(asked_s: float, least_s: float, most_s: float) -> None:
    """A receiver may ask for up to a day, but not to be asked ten times in ten seconds."""
    outcome = outcome_of(Answer(503, retry_after_s=asked_s), 1, RNG)
    assert least_s <= outcome.retry_in_s <= most_s
