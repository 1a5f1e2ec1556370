"""When what OpenAI's interface keeps goes by itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from services.api.fields import Sent


class ExpiresAfter(Sent):
    """When a file goes by itself."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=30 * 86_400)]
