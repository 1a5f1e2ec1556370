"""What clients send about webhook endpoints and deliveries, and what they get."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema, model_validator

from services.api.fields import MAX_METADATA, MetadataKey, MetadataValue, Moment, PageQuery, Sent, refuse
from services.api.list_answer import ListAnswer
from shared.lifecycle.events import EVENT_TYPES, WEBHOOK_FILTERS, WEBHOOK_TYPES

MAX_OVERLAP_S = 7 * 86_400
DEFAULT_OVERLAP_S = 86_400

_EVENTS = "Types, kinds of types such as `job.*`, or `*` for all; for all but `job.progress`, which is told to whoever names it."
_OVERLAP = "How long the secret before signs beside the new one. 0: not at all."


def _is_filter(name: str) -> str:
    if name not in WEBHOOK_FILTERS:
        raise refuse("unknown_event", f"should be one of {', '.join(WEBHOOK_FILTERS)}")
    return name


def _is_type(name: str) -> str:
    if name not in EVENT_TYPES:
        raise refuse("unknown_event", f"should be one of {', '.join(EVENT_TYPES)}")
    return name


def _is_told(name: str) -> str:
    if name not in WEBHOOK_TYPES:
        raise refuse("unknown_event", f"should be one of {', '.join(WEBHOOK_TYPES)}")
    return name


def _once(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


EventFilter = Annotated[str, AfterValidator(_is_filter), WithJsonSchema({"type": "string", "enum": list(WEBHOOK_FILTERS)})]
EventType = Annotated[str, AfterValidator(_is_type), WithJsonSchema({"type": "string", "enum": list(EVENT_TYPES)})]
ToldType = Annotated[str, AfterValidator(_is_told), WithJsonSchema({"type": "string", "enum": list(WEBHOOK_TYPES)})]
EventFilters = Annotated[list[EventFilter], Field(min_length=1, max_length=len(WEBHOOK_FILTERS)), AfterValidator(_once)]
EndpointUrl = Annotated[str, Field(min_length=1, max_length=4096, json_schema_extra={"format": "uri"})]
EndpointName = Annotated[str, Field(max_length=256)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA)]


class NewEndpointRequest(Sent):
    """A URL to tell of events."""

    url: EndpointUrl
    event_types: EventFilters = Field(default=["*"], description=_EVENTS)
    name: EndpointName = Field(default="", description="Yours, for people.")
    description: str = Field(default="", max_length=2000, description="Yours, for people.")
    thin: bool = Field(default=False, description="Send `data` with an id and a version only; the receiver fetches the rest.")
    metadata: Metadata = Field(default={}, description="Yours; echoed.")


class EndpointChange(Sent):
    """What is to be another way. What is left out stays; null: as of an endpoint that was made without it."""

    # A factory's default is not in the document: what is not said here is not changed.
    url: EndpointUrl = Field(default_factory=str)
    event_types: EventFilters | None = Field(default=None, description=_EVENTS)
    name: EndpointName | None = None
    description: str | None = Field(default=None, max_length=2000)
    thin: bool | None = None
    metadata: Metadata | None = Field(default=None, description="All of it; what is not in it is gone.")
    status: Literal["enabled", "disabled"] = Field(
        default_factory=lambda: "enabled", description="Enabled, it begins anew, as if it had never failed."
    )

    def changes(self) -> dict[str, Any]:
        """What is to be changed, by field."""
        made = NewEndpointRequest.model_fields
        return {name: made[name].default if value is None else value for name in self.model_fields_set for value in (getattr(self, name),)}


class RotationRequest(Sent):
    """How long the old secret goes on signing. Absent: 24 hours."""

    overlap_s: int | None = Field(default=None, ge=0, le=MAX_OVERLAP_S, description=_OVERLAP)

    @property
    def chosen_overlap_s(self) -> int:
        """In seconds."""
        return DEFAULT_OVERLAP_S if self.overlap_s is None else self.overlap_s


class EndpointRotationRequest(RotationRequest):
    """How long the old secret goes on signing, in seconds or as OpenAI's clients say it. Absent: 24 hours."""

    keep_old_secret_active_for_24_hours: bool | None = Field(default=None, description="true is 24 hours, false is not at all.")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.overlap_s is not None and self.keep_old_secret_active_for_24_hours is not None:
            raise refuse("overlap_doubled", "should have either overlap_s or keep_old_secret_active_for_24_hours")
        return self

    @property
    def chosen_overlap_s(self) -> int:
        """In seconds."""
        return 0 if self.keep_old_secret_active_for_24_hours is False else super().chosen_overlap_s


class EndpointTestRequest(Sent):
    """What the test says it is."""

    event_type: ToldType = Field(default="endpoint.test", description="The `type` of the body. Its `data` is the test's in any case.")


class EndpointQuery(PageQuery):
    """How to list webhook endpoints."""


class DeliveryQuery(PageQuery):
    """How to list webhook deliveries: all given conditions together."""

    status: list[Literal["pending", "delivered", "exhausted"]] = Field(
        default=[], description="Any of these; repeat it, or separate by commas."
    )
    event_type: EventType | None = None
    event: str | None = Field(default=None, max_length=64, description="Id of an event.")
    job: str | None = Field(default=None, max_length=64, description="Id of a job.")


class AllDeliveriesQuery(DeliveryQuery):
    """How to list webhook deliveries: all given conditions together."""

    endpoint: str | None = Field(default=None, max_length=64, description="Id of a webhook endpoint, which may be deleted.")


class ReplayQuery(Sent):
    """Which events to send once more."""

    since: Moment = Field(description="Events from then on.")
    until: Moment | None = Field(default=None, description="Events before then. Absent: now.")
    status: list[Literal["delivered", "exhausted", "missed"]] = Field(
        default=["delivered", "exhausted", "missed"],
        description="Which of them; `missed` are those that came while the endpoint was not there, or disabled. Separate by commas.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.until is not None and self.until <= self.since:
            raise refuse("range_empty", "should have until after since")
        return self


class EndpointAnswer(BaseModel):
    """A webhook endpoint. Times are seconds since 1970, as OpenAI's clients read them."""

    id: str
    object: Literal["webhook_endpoint"]
    name: str
    description: str
    url: str
    event_types: list[str]
    thin: bool
    metadata: dict[str, str]
    status: Literal["enabled", "disabled"]
    disabled_reason: Literal["manual", "gone", "failing"] | None = Field(
        description="`gone`: it answered 410. `failing`: nothing arrived for five days."
    )
    disabled_at: int | None
    consecutive_failures: int
    failing_since: int | None
    breaker_until: int | None = Field(description="After five failures in a row nothing is sent before then; null: all is sent.")
    signing_secret_hint: str
    previous_secret_until: int | None = Field(description="Until then deliveries carry a signature by the secret before, too.")
    created_at: int
    updated_at: int


class EndpointSecretAnswer(EndpointAnswer):
    """A webhook endpoint and its secret, which is shown this once."""

    signing_secret: str = Field(description="`whsec_` and 32 bytes in base64, as Standard Webhooks libraries take it.")


class EndpointListAnswer(ListAnswer[EndpointAnswer]):
    """A page of webhook endpoints."""


class DeletedEndpointAnswer(BaseModel):
    """The webhook endpoint is gone."""

    id: str
    object: Literal["webhook_endpoint.deleted"]
    deleted: Literal[True]


class EndpointTestAnswer(BaseModel):
    """What the receiver said."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    delivery_id: str
    event_id: str
    event_type: str
    success: bool = Field(description="It answered, whatever it answered.")
    status_code: int | None
    error: str | None
    latency_ms: int | None


class EventTypesAnswer(ListAnswer[str]):
    """Every type of event that a webhook endpoint can ask for, each its own id."""


class DeliveryAnswer(BaseModel):
    """One event on its way to one URL."""

    id: str
    object: Literal["webhook_delivery"]
    event_id: str = Field(description="The `webhook-id` of every attempt.")
    event_type: str
    event_seq: int
    job_id: str | None
    endpoint_id: str | None = Field(description="Null: to the job's own URL.")
    url: str
    status: Literal["pending", "delivered", "exhausted"] = Field(description="`exhausted`: given up; a replay sends it again.")
    kind: Literal["live", "replay", "test"]
    num_attempts: int
    next_attempt_at: str | None
    last_status_code: int | None
    last_error: str | None
    created_at: str
    delivered_at: str | None
    replayed_at: str | None


class AttemptAnswer(BaseModel):
    """One post."""

    attempt: int
    url: str
    request_headers: dict[str, Any] = Field(description="Without the signatures.")
    status_code: int | None
    error: str | None
    response_body: str | None = Field(description="The first 2 KiB.")
    latency_ms: int | None
    finished_at: str


class DeliveryDetailAnswer(DeliveryAnswer):
    """One event on its way to one URL, with what was sent and every attempt."""

    request_body: str | None = Field(description="Sent at every attempt; null before the first.")
    attempts: list[AttemptAnswer]


class DeliveryListAnswer(ListAnswer[DeliveryAnswer]):
    """A page of webhook deliveries."""


class ReplayAnswer(BaseModel):
    """What goes out once more."""

    object: Literal["webhook_replay"]
    webhook_endpoint_id: str
    since: str
    until: str
    replayed: int
    has_more: bool = Field(description="Ask again with the same `since` and `until` for the rest.")


class RotatedSecretAnswer(BaseModel):
    """The new default secret, in the form that Standard Webhooks libraries take."""

    key: str
    previous_until: str | None = Field(description="Until then deliveries carry a signature by the secret before, too.")
