"""Settings of the dispatcher."""

from __future__ import annotations

from pydantic import Field, Json, PositiveFloat

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
        default=1, ge=0.005, le=10, description="Seconds between two looks for work to release while wake-ups are heard."
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
    lane_weight_interactive: float = Field(
        default=16,
        gt=0,
        description="Share of the lane `interactive` while more is ready than fits, beside those of the other two. A lane that "
        "wants less leaves the rest to the others.",
    )
    lane_weight_standard: float = Field(default=4, gt=0, description="Share of the lane `standard`.")
    lane_weight_bulk: float = Field(default=1, gt=0, description="Share of the lane `bulk`; it grows as the lane ages.")
    bulk_ages_s: float = Field(
        default=3600,
        gt=0,
        description="Seconds that the oldest work of `bulk` waits until the lane's share is twice its own, and as many more until it is "
        "three times. It grows no larger than that of `standard`.",
    )
    quantum_s: float = Field(
        default=5,
        gt=0,
        description="Predicted seconds of a worker that a tenant gets in its turn before the next one of its lane has its own. About "
        "so long, or for one unit of work that takes longer, it may hold up another one.",
    )
    tenant_weights: Json[dict[str, PositiveFloat]] = Field(
        default={},
        validate_default=False,
        description="Shares of tenants that are to have more or less than others while more is ready than fits, by their ids, as "
        '`{"ten_…": 2, "ten_…": 0.5}`. All others have 1.',
    )
    deadline_near_s: float = Field(
        default=600,
        ge=0,
        description="Seconds before its `deadline` from which work goes before other work of its tenant and lane, if it can still be done "
        "in time.",
    )
