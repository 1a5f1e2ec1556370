"""What clients may put behind the question mark, of jobs and images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from services.api.fields import MAX_METADATA, CustomId, MetadataKey, MetadataValue, Moment, PageQuery, QueryInt, Sent
from shared.states import JobStatus


class ListQuery(PageQuery):
    """How to list jobs: all given conditions together."""

    # Not strict: an enum is what we make of the text.
    status: list[Annotated[JobStatus, Field(strict=False)]] = Field(
        default=[], description="Any of these; repeat it, or separate by commas."
    )
    batch: str | None = Field(default=None, max_length=64, description="Id of the batch that made them.")
    custom_id: CustomId | None = None
    metadata: dict[MetadataKey, MetadataValue] = Field(default={}, max_length=MAX_METADATA, description="As `metadata[key]=value`.")
    created_after: Moment | None = None
    created_before: Moment | None = None


class JobQuery(Sent):
    """How to read a job."""

    wait: QueryInt = Field(
        default=0,
        ge=0,
        description="Seconds to wait for the job's end, at most 55; with If-None-Match, for any change.",
    )


class ImageQuery(Sent):
    """How to hand out an image."""

    download: Literal["0", "1"] = Field(default="0", description="1: browsers save it instead of showing it.")
    variant: str | None = Field(
        default=None, min_length=1, max_length=32, description="Name of a rendition, or `thumb256`, a small picture that every image has."
    )
