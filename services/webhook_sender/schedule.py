"""What follows from an attempt: delivered, tried again later, or given up. Pure; knows no sockets."""

from __future__ import annotations

import random
from dataclasses import dataclass

from shared.lifecycle.deliveries import Outcome

DELAYS_S = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
"""Waits after attempts 1 to 9, 75.6 hours in all: the example table of the Standard Webhooks spec."""

MAX_ATTEMPTS = len(DELAYS_S) + 1

_JITTER = 0.2
"""A receiver that comes back is not met by everything that failed while it was away at once."""

_RETRY_AFTER_S = (1.0, 24 * 3600.0)
_GONE = 410


@dataclass(frozen=True)
class Answer:
    """What one post brought: a status and the beginning of the reply, or the error that came instead."""

    status: int | None = None
    reply: bytes | None = None
    error: str | None = None
    latency_ms: int = 0
    retry_after_s: float | None = None


def outcome_of(answer: Answer, attempt: int, rng: random.Random) -> Outcome:
    """
    2xx is success and nothing else is: a redirect is not followed, and whoever answers 410 is never asked again.

    A receiver's Retry-After can make the wait longer than the schedule's, not shorter, or ten attempts would be gone in no time.
    """
    if answer.status is not None and 200 <= answer.status < 300:
        return Outcome("delivered", status=answer.status, reply=answer.reply, latency_ms=answer.latency_ms)
    error = answer.error or f"status {answer.status}"
    if answer.status == _GONE or attempt >= MAX_ATTEMPTS:
        return Outcome("exhausted", status=answer.status, error=error, reply=answer.reply, latency_ms=answer.latency_ms)
    delay_s = DELAYS_S[attempt - 1] * rng.uniform(1 - _JITTER, 1 + _JITTER)
    if answer.retry_after_s is not None:
        shortest, longest = _RETRY_AFTER_S
        delay_s = max(delay_s, min(max(answer.retry_after_s, shortest), longest))
    return Outcome("pending", delay_s, answer.status, error, answer.reply, answer.latency_ms)
