"""What clients ask of events, and what they get."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema

from services.api.fields import QueryInt, Sent, refuse
from services.api.list_answer import ListAnswer
from shared.lifecycle.events import EVENT_FILTERS, JOB_PROGRESS


def _number(value: object) -> object:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value, re.ASCII) else value


def _one_of(known: Sequence[str]) -> Callable[[str], str]:
    def check(name: str) -> str:
        if name not in known:
            raise refuse("unknown_event", f"should be one of {', '.join(known)}")
        return name

    return check


_OF_A_JOB = (*EVENT_FILTERS, JOB_PROGRESS)
EventFilter = Annotated[str, AfterValidator(_one_of(EVENT_FILTERS)), WithJsonSchema({"type": "string", "enum": list(EVENT_FILTERS)})]
JobEventFilter = Annotated[str, AfterValidator(_one_of(_OF_A_JOB)), WithJsonSchema({"type": "string", "enum": list(_OF_A_JOB)})]


class EventsQuery(Sent):
    """Which events."""

    after: Annotated[int, BeforeValidator(_number)] | None = Field(
        default=None, ge=0, description="`seq` of the last event that is known: those after it. A stream's Last-Event-ID goes before it."
    )
    types: list[EventFilter] = Field(
        default=[], max_length=len(EVENT_FILTERS), description="Any of these; repeat it, or separate by commas."
    )
    limit: QueryInt = Field(default=20, ge=1, le=100, description="How many on a page of a list.")


class JobEventsQuery(EventsQuery):
    """Which events of a job."""

    types: list[JobEventFilter] = Field(
        default=[],
        max_length=len(_OF_A_JOB),
        description="Any of these, repeated or separated by commas. Only streams have `job.progress`.",
    )

    def tells_progress(self) -> bool:
        """Is the job's progress asked for? A stream has it among all, and among all of the job."""
        return not self.types or not {"*", "job.*", JOB_PROGRESS}.isdisjoint(self.types)


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
