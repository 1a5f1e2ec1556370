"""The `webhooks` of the OpenAPI document: what a receiver gets for each type of event. Knows types and models; knows no route."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from services.api.answers import JobAnswer
from services.api.event_schemas import EventAnswer
from shared.lifecycle.events import EVENT_TYPES, JOB_EVENTS

_HEADERS = {
    "webhook-id": "Id of the event; the same at every attempt and replay.",
    "webhook-timestamp": "When this attempt was signed, in seconds since 1970.",
    "webhook-signature": "`v1,<base64>` of HMAC-SHA256 over `id.timestamp.body`; several, by spaces, while a secret is being rotated.",
    "X-Attempt": "Counts the attempts.",
}


class JobEvent(EventAnswer):
    """Something that happened to a job. Too large, or to an endpoint that wants thin events: `data` has its id and version only."""

    data: JobAnswer | dict[str, Any] = Field(description="The job as it was then.")  # type: ignore[assignment]  # narrower than any dict


class OtherEvent(EventAnswer):
    """Something that happened to what is no job."""


def webhook_models() -> tuple[type[BaseModel], ...]:
    """The bodies."""
    return JobEvent, OtherEvent


def webhook_items(references: dict[str, dict[str, Any]], examples: dict[str, Any]) -> dict[str, Any]:
    """
    The section, by event type.

    Args:
        references: to the schemas of the bodies, by the name of their model.
        examples: of the bodies, likewise.
    """
    return {name: {"post": _operation(name, references, examples)} for name in EVENT_TYPES}


def _operation(event_type: str, references: dict[str, dict[str, Any]], examples: dict[str, Any]) -> dict[str, Any]:
    model = "JobEvent" if event_type in JOB_EVENTS else "OtherEvent"
    schema = {"allOf": [references[model], {"type": "object", "properties": {"type": {"const": event_type}}}]}
    return {
        "summary": f"{event_type}",
        "operationId": "on_" + event_type.replace(".", "_"),
        "tags": ["Webhooks"],
        "description": "Signed as Standard Webhooks says. Any 2xx within 15 seconds is an answer; redirects are not followed.",
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
