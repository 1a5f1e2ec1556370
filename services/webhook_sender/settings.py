"""Settings of the webhook sender."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from shared.settings import CoreSettings

LEASE_MARGIN_S = 10
"""What an attempt may take beside the post itself: waiting for the database, and writing down how it went."""


class WebhookSenderSettings(CoreSettings):
    """How many deliveries at once, and how patiently."""

    webhook_concurrency: int = Field(
        default=512, ge=1, le=4096, description="Webhook deliveries that a sender process holds; half of them may be one tenant's."
    )
    webhook_per_endpoint: int = Field(
        default=4,
        ge=1,
        le=256,
        description="Deliveries in flight to one endpoint, or of one tenant to one host; one that hangs holds no more.",
    )
    webhook_per_host: int = Field(default=8, ge=1, le=256, description="Deliveries in flight to one host and port, whoever's they are.")
    webhook_progress_concurrency: int = Field(
        default=16,
        ge=0,
        le=256,
        description="Webhooks with `job.progress` in flight, beside the deliveries; a quarter of them to one receiver. 0: none are sent.",
    )
    webhook_poll_s: float = Field(default=0.25, gt=0, le=60, description="Seconds between two looks for due deliveries.")
    webhook_timeout_s: float = Field(default=15, gt=0, le=120, description="Seconds until a receiver must have answered.")
    webhook_connect_s: float = Field(default=5, gt=0, le=60, description="Seconds for name, connection and TLS, within that.")
    webhook_lease_s: float = Field(default=30, ge=1, le=600, description="Seconds after which another sender may take over a delivery.")
    webhook_url_expires_s: int = Field(
        default=86_400, ge=60, le=604_800, description="Seconds that image links inside a webhook work; a retried webhook repeats them."
    )
    shutdown_s: float = Field(default=8, gt=0, le=600, description="Seconds from SIGTERM until the process ends in any case.")

    @model_validator(mode="after")
    def _lease_outlives_attempt(self) -> Self:
        if self.webhook_lease_s < self.webhook_timeout_s + LEASE_MARGIN_S:
            raise ValueError(f"GLMQ_WEBHOOK_LEASE_S must be at least GLMQ_WEBHOOK_TIMEOUT_S + {LEASE_MARGIN_S}")
        return self
