"""What a refusal looks like (RFC 9457), for the OpenAPI document."""

from __future__ import annotations

from pydantic import BaseModel, Field


class FieldProblem(BaseModel):
    """One wrong field: a JSON pointer into the body, or the name of a query argument or header."""

    pointer: str | None = None
    parameter: str | None = None
    header: str | None = None
    code: str
    detail: str


class ErrorMember(BaseModel):
    """The same once more, where OpenAI's clients look for it."""

    message: str
    type: str
    param: str | None
    code: str


class ProblemAnswer(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    param: str | None = Field(description="The first wrong field.")
    retryable: bool = Field(description="May the same request succeed later?")
    request_id: str
    trace_id: str | None = Field(description="Of the `traceparent` that the request came with.")
    violated_policies: list[str] = Field(
        default=[], alias="violated-policies", description="Of a quota: which items of RateLimit-Policy were broken."
    )
    errors: list[FieldProblem]
    error: ErrorMember
