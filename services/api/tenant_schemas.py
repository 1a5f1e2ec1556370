"""What operators send and receive about tenants, and what a tenant learns of its own usage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from services.api.fields import PageQuery, Sent, refuse
from services.api.list_answer import ListAnswer
from services.api.schemas import MAX_EXPIRES_S
from shared.ids import is_id

_MAX_LIMIT = 10**12
Count = Annotated[int, Field(ge=0, le=_MAX_LIMIT)]
Seconds = Annotated[float, Field(ge=0, le=_MAX_LIMIT)]

_QUEUED = "Jobs that were accepted and have not begun."
_RUNNING = "Layouts and images that workers have in hand at once; more of them wait."
_REQUESTS = "Requests that make jobs, accepted or not."
_BATCHES = "Batches that have not ended."
_KEPT = "Seconds after its end until a job is erased that names no `expires_in`. Of jobs from now on."
_SECONDS = "Seconds of workers of either kind, from midnight to midnight UTC."


class LimitsRequest(Sent):
    """A tenant's own limits. What is left out stays; null: the service's default; 0: no limit."""

    max_queued: Count | None = Field(default=None, description=_QUEUED)
    max_running: Count | None = Field(default=None, description=_RUNNING)
    requests_per_minute: Count | None = Field(default=None, description=_REQUESTS)
    gpu_seconds_per_day: Seconds | None = Field(default=None, description=_SECONDS)
    results_kept_s: Annotated[int, Field(ge=0, le=MAX_EXPIRES_S)] | None = Field(default=None, description=_KEPT)
    live_batches: Count | None = Field(default=None, description=_BATCHES)


def _no_id(name: str) -> str:
    if is_id(name, "ten"):
        raise refuse("reserved", "should not look like the id of a tenant, which stands for one wherever a name does")
    return name


class TenantRequest(Sent):
    """A tenant to be made."""

    name: Annotated[str, AfterValidator(_no_id)] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,62}$", description="Its name; no other tenant has it."
    )
    limits: LimitsRequest = Field(default=LimitsRequest(), description="Where they differ from the service's.")


class TenantChange(Sent):
    """What to change of a tenant."""

    limits: LimitsRequest = Field(description="The limits to change.")


class TenantListQuery(PageQuery):
    """Which tenants."""

    name: str | None = Field(default=None, max_length=100, description="Only the one of this name, or id.")


class OwnLimitsAnswer(BaseModel):
    """A tenant's own limits; null: the service's default; 0: no limit."""

    max_queued: int | None
    max_running: int | None
    requests_per_minute: int | None
    gpu_seconds_per_day: float | None
    results_kept_s: int | None
    live_batches: int | None


class LimitsAnswer(BaseModel):
    """What holds for a tenant; null: no limit."""

    max_queued: int | None = Field(description=_QUEUED)
    max_running: int | None = Field(description=_RUNNING)
    requests_per_minute: int | None = Field(description=_REQUESTS)
    gpu_seconds_per_day: float | None = Field(description=_SECONDS)
    results_kept_s: int | None = Field(description=_KEPT)
    live_batches: int | None = Field(description=_BATCHES)


class TenantAnswer(BaseModel):
    """A tenant."""

    id: str
    object: Literal["tenant"]
    name: str
    limits: OwnLimitsAnswer
    created_at: str


class TenantListAnswer(ListAnswer[TenantAnswer]):
    """A page of tenants."""


class UsageToday(BaseModel):
    """What was used since midnight UTC."""

    began_at: str
    ends_at: str
    gpu_seconds: float = Field(description="What finished work took.")
    predicted_gpu_seconds: float = Field(description="What work that is not done yet will take, as far as it is known.")


class UsageAnswer(BaseModel):
    """What your tenant uses, and what it may use."""

    object: Literal["usage"]
    tenant_id: str
    queued: int = Field(description=_QUEUED)
    running: int = Field(description="Jobs that have begun and are not over.")
    in_hand: int = Field(description="Layouts and images that workers have now or are about to get.")
    today: UsageToday
    limits: LimitsAnswer
