"""
Every row glmq keeps. The migrations in infra/migrations make these tables; `shared/lifecycle` is the only writer of states.

All times are UTC with time zone. Sizes are pixels, height before width.
"""

from __future__ import annotations

from shared.tables.base import Base
from shared.tables.batches import Batch, BatchItem
from shared.tables.events import Event
from shared.tables.files import DoomedObject, File
from shared.tables.jobs import Job, Output
from shared.tables.requests import ClientTry, IdempotencyKey, StoredAnswer
from shared.tables.tenants import ApiKey, Tenant
from shared.tables.webhooks import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from shared.tables.work import COST_CLASS, Grid, Image
from shared.tables.workers import Usage, Worker

__all__ = [
    "COST_CLASS",
    "ApiKey",
    "Base",
    "Batch",
    "BatchItem",
    "ClientTry",
    "DoomedObject",
    "Event",
    "File",
    "Grid",
    "IdempotencyKey",
    "Image",
    "Job",
    "Output",
    "StoredAnswer",
    "Tenant",
    "Usage",
    "WebhookAttempt",
    "WebhookDelivery",
    "WebhookEndpoint",
    "Worker",
]

# Left to the first use, it would keep a process's first request, grid or webhook waiting for 40 ms.
Base.registry.configure()
