"""What follows from an attempt: delivered, tried again later, or given up. Pure; knows no sockets."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.lifecycle.deliveries import Outcome

DELAYS_S = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
"""Waits after attempts 1 to 9, 75.6 hours in all: the example table of the Standard Webhooks spec."""

MAX_ATTEMPTS = len(DELAYS_S) + 1

_JITTER = 0.2
"""A receiver that comes back is not met by everything that failed while it was away at once."""

_RETRY_AFTER_S = (1.0, 24 * 3600.0)
_GONE = 410
OVERLOADED = frozenset({429, 502, 503, 504})
"""Whoever answers so is left in peace for a while, and not only by this delivery."""


@dataclass
class Answer:
    """What one post brought: a status and the beginning of the reply, or the error that came instead."""

    status: int | None = None
    reply: bytes | None = None
    error: str | None = None
    latency_ms: int = 0
    retry_after_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the request, without its signatures."""
    is_own_fault: bool = False
    """Nothing was posted, and not because of the receiver."""

    @property
    def is_success(self) -> bool:
        """2xx is success and nothing else is."""
        return self.status is not None and 200 <= self.status < 300


def outcome_of(answer: Answer, tries: int, rng: random.Random, max_tries: int = MAX_ATTEMPTS) -> Outcome:
    """
    2xx is success: a redirect is not followed, and whoever answers 410 is never asked again.

    A receiver's Retry-After can make the wait longer than the schedule's, not shorter, or ten attempts would be gone in no time.

    Args:
        tries: attempts so far, this one included.
    """
    told: dict[str, Any] = {
        "status": answer.status,
        "reply": answer.reply,
        "latency_ms": answer.latency_ms,
        "headers": answer.headers,
        "is_own_fault": answer.is_own_fault,
    }
    if answer.is_success:
        return Outcome("delivered", **told)
    error = answer.error or _describe(answer.status)
    if answer.status == _GONE or tries >= max_tries:
        return Outcome("exhausted", error=error, is_gone=answer.status == _GONE, **told)
    delay_s = DELAYS_S[tries - 1] * rng.uniform(1 - _JITTER, 1 + _JITTER)
    if answer.retry_after_s is not None:
        shortest, longest = _RETRY_AFTER_S
        delay_s = max(delay_s, min(max(answer.retry_after_s, shortest), longest))
    return Outcome("pending", delay_s, error=error, **told)


def _describe(status: int | None) -> str:
    if status is not None and 300 <= status < 400:
        return f"status {status}: redirects are not followed; register the URL that it leads to"
    return f"status {status}"
