"""What is said to one receiver, whether it is kept until it has arrived (`deliveries.py`) or said once, as progress is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from shared.trace import TraceContext


@dataclass(eq=False)
class Letter:
    """An event, and whom it is for."""

    tenant_id: str
    endpoint_id: str | None
    """None: to the job's own URL."""
    url: str
    sealed_secrets: tuple[bytes, ...]
    """All that sign it now: during a rotation there are two."""
    is_thin: bool
    event_id: str
    event_type: str
    event_seq: int | None
    """None: it is not kept."""
    event_data: dict[str, Any]
    event_created_at: datetime
    now: datetime
    """The database's clock, for the signature."""
    dialect: dict[str, Any] | None
    """Of a job's own webhook: what the interface that the job came by has noted, to speak its words."""
    trace: TraceContext | None
    """That of the job's request."""

    @cached_property
    def host(self) -> str:
        return urlsplit(self.url).netloc.lower()
