"""What clients send about native batches: items, what they inherit, and how long they may take."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema

from services.api.fields import MAX_METADATA, CustomId, MetadataKey, MetadataValue, QueryInt, Sent, refuse
from services.api.schemas import JobRequest
from shared.lifecycle.batch_reads import ENDED, ITEM_STATUSES

MAX_ITEMS = 50_000
"""Of a batch, as of OpenAI's."""
MAX_ITEMS_AT_ONCE = 1000
"""Of a request: a second's work, most of it spent on reading their prompts."""
MAX_ITEMS_BYTES = 8 << 20
"""Of a request: with prompts of a page each."""

_UNITS = {"m": 60, "h": 3600, "d": 86_400}
_WINDOW = re.compile(r"[1-9][0-9]{0,3}[mhd]", re.ASCII)
_MAX_WINDOW_S = 30 * 86_400

_MAX_FAILURES = Field(
    default=None, ge=1, le=MAX_ITEMS, description="When so many items have failed it is paused, and counts anew once it is resumed."
)
_EXAMPLE: dict[str, Any] = {
    "name": "autumn catalogue",
    "defaults": {"size": "1024x1024", "format": "jpeg"},
    "items": [{"custom_id": "sku-17", "prompt": "a red mug"}, {"custom_id": "sku-18", "prompt": "a tea pot", "seed": 7}],
}
_CUSTOM_ID = "Yours; names the item within its batch. The same one with the same request is the same item."
_NAME = Field(default=None, max_length=256, description="Yours, for people.")
_Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA)]


def window_seconds(window: str) -> int:
    """A completion window in seconds."""
    return int(window[:-1]) * _UNITS[window[-1]]


def _is_window(window: str) -> str:
    if not _WINDOW.fullmatch(window) or window_seconds(window) > _MAX_WINDOW_S:
        raise refuse("window_format", "should be a number with m, h or d, such as 90m or 24h, and at most 30d")
    return window


Window = Annotated[str, AfterValidator(_is_window), WithJsonSchema({"type": "string", "pattern": f"^{_WINDOW.pattern}$", "example": "24h"})]


class ItemDefaults(JobRequest):
    """Members of a job request that every item inherits which does not have them; `metadata` is joined key by key."""

    prompt: str | None = Field(default=None, max_length=8000, description="What to draw.")  # type: ignore[assignment]  # items have their own
    custom_id: None = Field(default=None, description="Every item has its own.")


class BatchItemRequest(JobRequest):
    """A job request with a name of its own. Its `priority` is `bulk` unless it or the defaults say otherwise."""

    prompt: str | None = Field(  # type: ignore[assignment]  # the batch's defaults may have it
        default=None, max_length=8000, description="What to draw, unless the batch's defaults say it."
    )
    custom_id: CustomId = Field(description=_CUSTOM_ID)


Items = Annotated[list[BatchItemRequest], Field(max_length=MAX_ITEMS_AT_ONCE)]


class NativeBatchRequest(Sent):
    """Job requests that are run as one, without a file."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    items: Items = Field(
        description=f"The first items: at most {MAX_ITEMS_AT_ONCE} of them, {MAX_ITEMS} in all. None, and they are all appended."
    )
    defaults: ItemDefaults = Field(default=ItemDefaults(), description="What items inherit, appended ones too.")
    sealed: bool | None = Field(default=None, description="No items can be appended. Absent: true, if there are items here.")
    name: str | None = _NAME
    metadata: _Metadata = Field(default={}, description="Yours; echoed.")
    max_failures: int | None = _MAX_FAILURES
    completion_window: Window = Field(
        default="24h", description="What is not done by then expires: minutes, hours or days, at most 30 of these."
    )


class AppendRequest(Sent):
    """More items for a batch that is not sealed."""

    items: Items = Field(min_length=1)


class BatchChange(Sent):
    """What is to be another way. What is left out stays; null: as of a batch that was made without it."""

    name: str | None = _NAME
    metadata: _Metadata | None = Field(default=None, description="All of it: what is not named here is gone.")
    max_failures: int | None = _MAX_FAILURES


class _PageQuery(Sent):
    limit: QueryInt = Field(default=20, ge=1, le=100, description="How many on a page.")
    after: str | None = Field(default=None, max_length=64, description="Id of the last item of the page before.")
    order: Literal["asc", "desc"] = Field(default="asc", description="By line: the order in which the items came.")


class ItemQuery(_PageQuery):
    """Which items."""

    status: list[Literal[ITEM_STATUSES]] = Field(default=[], description="Any of these; repeat it, or separate by commas.")  # type: ignore[valid-type]  # names that are computed


class ResultQuery(_PageQuery):
    """Which results."""

    status: list[Literal[ENDED]] = Field(default=[], description="Any of these; repeat it, or separate by commas.")  # type: ignore[valid-type]  # names that are computed
