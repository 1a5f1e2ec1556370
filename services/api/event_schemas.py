"""What clients ask of events, and what they get."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema

from services.api.fields import QueryInt, Sent, refuse
from services.api.list_answer import ListAnswer
from shared.lifecycle.events import EVENT_FILTERS


def _number(value: object) -> object:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value, re.ASCII) else value


def _is_filter(name: str) -> str:
    if name not in EVENT_FILTERS:
        raise refuse("unknown_event", f"should be one of {', '.join(EVENT_FILTERS)}")
    return name


EventFilter = Annotated[str, AfterValidator(_is_filter), WithJsonSchema({"type": "string", "enum": list(EVENT_FILTERS)})]


class EventsQuery(Sent):
    """Which events."""

    after: Annotated[int, BeforeValidator(_number)] | None = Field(
        default=None, ge=0, description="`seq` of the last event that is known: those after it. A stream's Last-Event-ID goes before it."
    )
    types: list[EventFilter] = Field(
        default=[], max_length=len(EVENT_FILTERS), description="Any of these; repeat it, or separate by commas."
    )
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
    data: dict[str, Any] = Field(description="What it is about as it was then, with URLs presigned now; of an erased job its id alone.")


class EventListAnswer(ListAnswer[EventAnswer]):
    """A page of events, oldest first."""

    next_after: int = Field(description="What to send as `after` to go on from here, also after events that `types` left out.")
