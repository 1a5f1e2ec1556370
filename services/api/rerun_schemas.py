"""What clients send to retry a job, and what they get when they erase one."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from services.api.fields import FutureMoment, Sent


class RetryRequest(Sent):
    """How to run a job once more. All else is as it was."""

    deadline: FutureMoment | None = Field(
        default=None, description="Of this run. Absent: the job's deadline if it has not passed, otherwise none."
    )


class ErasedAnswer(BaseModel):
    """A job that is erased."""

    id: str
    object: Literal["job"]
    deleted: Literal[True]
