"""
What the fields of all requests are made of: the strict base of every model, and the types that several models share.

Strict: no number in quotes, no unknown field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from services.api.times import parse_rfc3339

MAX_METADATA = 16


class Sent(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Fields that are looked for here and that another route takes: which one."""


def refuse(reason: str, detail: str) -> PydanticCustomError:
    """A validator's error: a code for programs and a text for people, which follows the field's name and a colon."""
    # In braces Pydantic would look for values to fill in.
    return PydanticCustomError(reason, "{detail}", {"detail": detail})


def _moment(value: object) -> object:
    if not isinstance(value, str):
        raise refuse("datetime_type", "should be a string with a time, such as 2026-11-22T18:30:00Z")
    try:
        return parse_rfc3339(value)
    except ValueError as error:
        raise refuse("datetime_format", str(error)) from None


def _in_future(moment: datetime) -> datetime:
    if moment <= datetime.now(UTC):
        raise refuse("datetime_past", "should be in the future")
    return moment


def _digits(value: object) -> object:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value, re.ASCII) else value


Moment = Annotated[datetime, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
FutureMoment = Annotated[Moment, AfterValidator(_in_future)]
QueryInt = Annotated[int, BeforeValidator(_digits)]
"""A whole number in a query string, where everything is text."""
CustomId = Annotated[str, Field(min_length=1, max_length=128)]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class PageQuery(Sent):
    """How to page through a list."""

    limit: QueryInt = Field(default=20, ge=1, le=100, description="How many on a page.")
    after: str | None = Field(default=None, max_length=64, description="Id of the last one of the page before.")
    order: Literal["asc", "desc"] = Field(default="desc", description="By time of creation.")
