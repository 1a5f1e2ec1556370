"""The `webhooks` of the OpenAPI document: what a receiver gets for each type of event. Knows types and models; knows no route."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from services.api.answers import JobAnswer, Progress
from services.api.event_schemas import EventAnswer
from shared.lifecycle.events import JOB_EVENTS, JOB_PROGRESS, WEBHOOK_TYPES

_HEADERS = {
    "webhook-id": "Id of the event; the same at every attempt and replay.",
    "webhook-timestamp": "When this attempt was signed, in seconds since 1970.",
    "webhook-signature": "`v1,<base64>` of HMAC-SHA256 over `id.timestamp.body`; several, by spaces, while a secret is being rotated.",
    "X-Attempt": "Counts the attempts.",
}

_DESCRIPTION = "Signed as Standard Webhooks says. Any 2xx within 15 seconds is an answer; redirects are not followed."
_OF_PROGRESS = (
    " Only for those who name it: `*` and `job.*` do not. At most every 500 ms for each job, posted once whatever comes of it, and not in"
    " the log of deliveries; a prediction's own URL gets the prediction."
)


class JobEvent(EventAnswer):
    """Something that happened to a job. Too large, or to an endpoint that wants thin events: `data` has its id and version only."""

    data: JobAnswer | dict[str, Any] = Field(description="The job as it was then.")  # type: ignore[assignment]  # narrower than any dict


class MovingJob(BaseModel):
    """How far a job is."""

    id: str
    object: Literal["job"]
    status: Literal["running"]
    stage: Literal["ar", "decoder"]
    progress: Progress
    version: int


class ProgressEvent(EventAnswer):
    """How far a job is, told as it moves and kept nowhere. To an endpoint that wants thin events `data` has the id and version only."""

    seq: None = Field(description="It is no part of what is counted.")  # type: ignore[assignment]  # narrower than what is kept
    data: MovingJob | dict[str, Any] = Field(description="Of the job what moves.")  # type: ignore[assignment]  # as above


class OtherEvent(EventAnswer):
    """Something that happened to what is no job."""


def webhook_models() -> tuple[type[BaseModel], ...]:
    """The bodies."""
    return JobEvent, ProgressEvent, OtherEvent


def webhook_items(references: dict[str, dict[str, Any]], examples: dict[str, Any]) -> dict[str, Any]:
    """
    The section, by event type.

    Args:
        references: to the schemas of the bodies, by the name of their model.
        examples: of the bodies, likewise.
    """
    return {name: {"post": _operation(name, references, examples)} for name in WEBHOOK_TYPES}


def _operation(event_type: str, references: dict[str, dict[str, Any]], examples: dict[str, Any]) -> dict[str, Any]:
    model = "ProgressEvent" if event_type == JOB_PROGRESS else "JobEvent" if event_type in JOB_EVENTS else "OtherEvent"
    schema = {"allOf": [references[model], {"type": "object", "properties": {"type": {"const": event_type}}}]}
    return {
        "summary": f"{event_type}",
        "operationId": "on_" + event_type.replace(".", "_"),
        "tags": ["Webhooks"],
        "description": _DESCRIPTION + (_OF_PROGRESS if event_type == JOB_PROGRESS else ""),
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": text, "schema": {"type": "string"}}
            for name, text in _HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": {**examples[model], "type": event_type}}},
        },
        "responses": {"2XX": {"description": "It has arrived."}, "410": {"description": "Send nothing more: the endpoint is disabled."}},
    }
