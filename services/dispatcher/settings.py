"""Settings of the dispatcher."""

from __future__ import annotations

from pydantic import Field

from shared.settings import QuotaSettings


class DispatcherSettings(QuotaSettings):
    """How often the dispatcher looks, and how far ahead it releases."""

    tick_s: float = Field(
        default=0.05,
        ge=0.005,
        le=10,
        description="Seconds between two looks for work to release while Redis is away and no wake-up is heard.",
    )
    slow_tick_s: float = Field(
        default=0.25, ge=0.005, le=10, description="Seconds between two looks for work to release while wake-ups are heard."
    )
    events_kept_s: float = Field(default=30 * 86_400, ge=1, description="Seconds until an event is deleted, and with it its deliveries.")
    webhook_log_s: float = Field(default=30 * 86_400, ge=1, description="Seconds until a webhook delivery that is over leaves the log.")
    idempotency_s: float = Field(default=86_400, ge=1, description="Seconds until an `Idempotency-Key` may stand for another request.")
    retention_look_s: float = Field(
        default=10,
        ge=0.05,
        le=3600,
        description="Seconds between two looks for what has been kept for long enough.",
    )
    rescue_s: float = Field(default=2, gt=0, le=60, description="Seconds between two looks for lost leases and passed deadlines.")
    window_per_slot: int = Field(
        default=2, ge=1, le=100, description="Units of work released or running per slot of the live workers; the rest waits in Postgres."
    )
