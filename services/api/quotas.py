"""
What a tenant may ask for now: requests per minute, jobs in the queue, seconds of workers per day; and the headers that tell it.

The queue is bounded by the statement that writes the job (`shared/lifecycle/submit.py`), exactly; here it is only refused early. Requests
are counted in Redis by `limits`, and while that is away by each process for itself: bounded then, too, and nobody is shut out.
Headers: draft-ietf-httpapi-ratelimit-headers, and those that OpenAI's clients know.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TypeVar

import structlog
from apiflask import APIFlask
from flask import Response, g
from limits import RateLimitItemPerMinute, WindowStats
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from shared.db import Database, DatabaseDownError
from shared.errors import QueueFullError, QuotaError
from shared.lifecycle.quota_warnings import WARN_AT, warn
from shared.lifecycle.quotas import Limits, default_limits, read_budget
from shared.lifecycle.tenants import Caller
from shared.settings import QuotaSettings

Result = TypeVar("Result")

_AWAY_S = 1.0
"""How long Redis is not asked after it failed."""
_MINUTE_S = 60
_DAY_S = 86_400

log = structlog.get_logger()


@dataclass
class QuotaState:
    """What this request has learned of its tenant's limits; `remaining` and seconds until more, where known."""

    limits: Limits
    num_queued: int
    requests: tuple[int, int] | None = None
    admission: tuple[bool, WindowStats] | None = None
    """What came of counting the request."""
    gpu_seconds: tuple[float, int] | None = None
    num_batches: int | None = None
    """That have not ended; None where the request makes none."""

    def policies(self) -> list[str]:
        """Items of `RateLimit-Policy`."""
        limits = self.limits
        found = []
        if limits.requests_per_minute is not None:
            found.append(f'"create";q={limits.requests_per_minute};w={_MINUTE_S}')
        if limits.max_queued is not None:
            found.append(f'"queued";q={limits.max_queued};qu="jobs"')
        if limits.max_running is not None:
            found.append(f'"running";q={limits.max_running};qu="images"')
        if limits.gpu_seconds_per_day is not None:
            found.append(f'"gpu-seconds";q={math.floor(limits.gpu_seconds_per_day)};qu="gpu-seconds";w={_DAY_S}')
        if limits.live_batches is not None and self.num_batches is not None:
            found.append(f'"batches";q={limits.live_batches};qu="batches"')
        return found

    def used(self) -> list[tuple[str, float, float]]:
        """What is used of each limit that is known, and what the limit is."""
        limits, found = self.limits, []
        if limits.requests_per_minute is not None and self.requests is not None:
            found.append(("requests_per_minute", float(limits.requests_per_minute - self.requests[0]), float(limits.requests_per_minute)))
        if limits.max_queued is not None:
            found.append(("max_queued", float(self.num_queued), float(limits.max_queued)))
        if limits.gpu_seconds_per_day is not None and self.gpu_seconds is not None:
            found.append(("gpu_seconds_per_day", limits.gpu_seconds_per_day - self.gpu_seconds[0], limits.gpu_seconds_per_day))
        return found

    def remaining(self) -> list[str]:
        """Items of `RateLimit`."""
        found = []
        if self.requests is not None:
            found.append(f'"create";r={self.requests[0]};t={self.requests[1]}')
        if self.limits.max_queued is not None:
            found.append(f'"queued";r={max(0, self.limits.max_queued - self.num_queued)}')
        if self.gpu_seconds is not None:
            found.append(f'"gpu-seconds";r={math.floor(self.gpu_seconds[0])};t={self.gpu_seconds[1]}')
        if self.limits.live_batches is not None and self.num_batches is not None:
            found.append(f'"batches";r={max(0, self.limits.live_batches - self.num_batches)}')
        return found


class Quotas:
    """The limits of all tenants. Thread-safe."""

    def __init__(self, db: Database, redis_url: str, defaults: QuotaSettings) -> None:
        self._db = db
        self.defaults = default_limits(defaults)
        """What holds for tenants without limits of their own."""
        shared_count = RedisStorage(
            redis_url, key_prefix="glmq:rate", wrap_exceptions=True, socket_timeout=1, socket_connect_timeout=1, health_check_interval=10
        )
        self._shared = SlidingWindowCounterRateLimiter(shared_count)
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._down_until = 0.0
        self._warned: dict[tuple[str, str], date] = {}

    def limits_of(self, caller: Caller) -> Limits:
        """What holds for the caller's tenant."""
        return caller.own_limits.over(self.defaults)

    def admit(self, caller: Caller) -> None:
        """
        Count a request that may make a job, and refuse it before anything else is done for it.

        Raises:
            QuotaError: `too_many_requests`.
        """
        before: QuotaState | None = g.get("quota")
        state = g.quota = QuotaState(self.limits_of(caller), caller.num_queued)
        per_minute = state.limits.requests_per_minute
        if per_minute is not None:
            item = RateLimitItemPerMinute(per_minute)
            if before is not None and before.limits.requests_per_minute == per_minute:
                # Asked for once more, with the caller as he is now.
                state.admission = before.admission
            is_admitted, stats = state.admission = state.admission or self._count(
                lambda limiter: (limiter.hit(item, caller.tenant_id), limiter.get_window_stats(item, caller.tenant_id))
            )
            reset_s = max(1, math.ceil(stats.reset_time - time.time()))
            state.requests = (stats.remaining, reset_s)
            if not is_admitted:
                raise QuotaError("too_many_requests", f"{per_minute} requests a minute that make jobs are allowed", "create", reset_s)

    def check_room(self, caller: Caller) -> None:
        """
        Is there room in the queue, as far as can be told before the job is written, and anything left of the day's seconds?

        Raises:
            QuotaError: `queue_full` or `budget_exhausted`.
        """
        limits = self.limits_of(caller)
        if limits.max_queued is not None and caller.num_queued >= limits.max_queued:
            raise QueueFullError(limits.max_queued)
        budget = read_budget(self._db, caller.tenant_id, limits)
        if budget is None:
            return
        midnight_s = max(1, math.ceil(budget.new_in_s))
        if "quota" in g:
            g.quota.gpu_seconds = (max(0.0, budget.left_s), midnight_s)
        if budget.left_s <= 0:
            detail = f"the {budget.most_s:g} seconds of workers that this tenant has a day are used up until midnight UTC"
            raise QuotaError("budget_exhausted", detail, "gpu-seconds", midnight_s)

    def note_queued(self, num_queued: int | None) -> None:
        """A job was stored; so many of the tenant's are queued now."""
        if num_queued is not None and "quota" in g:
            g.quota.num_queued = num_queued

    def warn(self, tenant_id: str, used: Iterable[tuple[str, float, float]]) -> None:
        """
        Tell the tenant of each limit of which most is used, once a day.

        Args:
            used: the limit's name, what is used of it, and what it is.
        """
        today = datetime.now(UTC).date()
        for limit, amount, most in used:
            # What this process has told or found told costs no query again.
            if amount < WARN_AT * most or self._warned.get((tenant_id, limit)) == today:
                continue
            try:
                warn(self._db, tenant_id, limit, amount, most, today)
            except DatabaseDownError:
                # What was asked for is done; the next one tells.
                return
            self._warned[tenant_id, limit] = today

    def warn_caller(self, caller: Caller) -> None:
        """The same, of what this request has learned."""
        if "quota" in g:
            self.warn(caller.tenant_id, g.quota.used())

    def note_batches(self, num_batches: int | None) -> None:
        """So many batches of the tenant have not ended, the one among them that this request made; None: it made none."""
        g.quota.num_batches = num_batches

    def _count(self, ask: Callable[[SlidingWindowCounterRateLimiter], Result]) -> Result:
        if time.monotonic() >= self._down_until:
            try:
                return ask(self._shared)
            except StorageError as error:
                self._down_until = time.monotonic() + _AWAY_S
                log.warning("rate_limits_away", error=type(error.storage_error).__name__)
        return ask(self._own)


def install(app: APIFlask) -> None:
    """Tell what is left on every answer to a request that was counted."""

    @app.after_request
    def tell(response: Response) -> Response:
        state: QuotaState | None = g.get("quota")
        if state is None:
            return response
        for name, items in (("RateLimit-Policy", state.policies()), ("RateLimit", state.remaining())):
            if items:
                response.headers[name] = ", ".join(items)
        if state.requests is not None:
            remaining, reset_s = state.requests
            response.headers["X-RateLimit-Limit-Requests"] = str(state.limits.requests_per_minute)
            response.headers["X-RateLimit-Remaining-Requests"] = str(remaining)
            response.headers["X-RateLimit-Reset-Requests"] = f"{reset_s}s"
        return response
