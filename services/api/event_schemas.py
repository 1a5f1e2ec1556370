"""What clients ask of events, and what they get."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from services.api.fields import QueryInt, Sent
from services.api.schemas import EventName


def _number(value: object) -> object:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value, re.ASCII) else value


class EventsQuery(Sent):
    """Which events."""

    after: Annotated[int, BeforeValidator(_number)] | None = Field(
        default=None, ge=0, description="`seq` of the last event that is known: those after it. A stream's Last-Event-ID goes before it."
    )
    types: list[EventName] = Field(default=[], max_length=32, description="Any of these; repeat it, or separate by commas.")
    limit: QueryInt = Field(default=20, ge=1, le=100, description="How many on a page of a list.")


class EventAnswer(BaseModel):
    """Something that happened."""

    id: str
    object: Literal["event"]
    type: str
    timestamp: str
    created_at: int = Field(description="The same in seconds since 1970.")
    seq: int = Field(description="Counts the events of a tenant, without gaps.")
    api_version: str
    data: dict[str, Any] = Field(description="The job as it was then, with URLs presigned now; of an erased job its id alone.")


class EventListAnswer(BaseModel):
    """A page of events, oldest first."""

    object: Literal["list"]
    data: list[EventAnswer]
    has_more: bool
    first_id: str | None
    last_id: str | None
    next_after: int = Field(description="What to send as `after` to go on from here, also after events that `types` left out.")
