"""The catalogue: the one list of what can go wrong at the door, and in a job. Knows no exception and no request."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from services.api.problem_texts import TEXTS

PROBLEM_TYPE = "application/problem+json"
QUOTA_TYPE = "https://iana.org/assignments/http-problem-types#quota-exceeded"
"""What draft-ietf-httpapi-ratelimit-headers calls a request that broke a policy of `RateLimit-Policy`; `code` still says which."""


class Problem(Enum):
    """
    Every problem: its status, its title, and whether the same request may succeed later. The name in lower case is the code.

    Those without a status are told in the `error` of a job that failed or expired; so may some of the others be.
    """

    INVALID_REQUEST = 400, "The request is not valid", False
    UNSUPPORTED_PARAMETER = 400, "The parameter is not supported", False
    INVALID_IMAGE = 400, "The image cannot be used", False
    FORBIDDEN_ADDRESS = 400, "The URL leads to an address that is not allowed", False
    UNAUTHORIZED = 401, "A valid API key is needed", False
    BUDGET_EXHAUSTED = 402, "The day's seconds of workers are used up", True
    FORBIDDEN_SCOPE = 403, "The API key may not do this", False
    FORBIDDEN_PRIORITY = 403, "The API key may not ask for this priority", False
    NOT_FOUND = 404, "There is nothing here", False
    MODEL_NOT_FOUND = 404, "There is no such model", False
    METHOD_NOT_ALLOWED = 405, "The method is not allowed here", False
    DEADLINE_UNMEETABLE = 409, "The deadline cannot be met", False
    ALREADY_TERMINAL = 409, "The job has ended", False
    NAME_TAKEN = 409, "The name is taken", False
    NOT_AWAITING_APPROVAL = 409, "No draft of the job waits for approval", True
    TOO_MANY_DRAFTS = 409, "The job has had all its drafts", False
    NOT_RETRYABLE = 409, "It cannot be retried", False
    LAYOUT_UNAVAILABLE = 409, "The layouts of the job cannot be used now", True
    REQUEST_IN_FLIGHT = 409, "The same request is being worked on", True
    GONE = 410, "It is not there any more", False
    PAYLOAD_TOO_LARGE = 413, "Too large", False
    URI_TOO_LONG = 414, "The URL is too long", False
    UNSUPPORTED_MEDIA = 415, "The media type is not supported", False
    IDEMPOTENCY_MISMATCH = 422, "The Idempotency-Key belongs to another request", False
    UNPROCESSABLE_PROMPT = 422, "The prompt cannot be used", False
    CONTENT_REJECTED = 422, "What is asked for may not be drawn here", False
    # Not 409, which OpenAI's clients take for a reason to try again.
    BATCH_SEALED = 422, "The batch takes no more items", False
    ENDPOINT_DISABLED = 422, "The webhook endpoint is disabled", False
    TOO_MANY_ENDPOINTS = 422, "There are as many webhook endpoints as there may be", False
    INPUT_FETCH_FAILED = 422, "An input could not be fetched", True
    JOB_CANCELED = 422, "The job was canceled", False
    JOB_FAILED = 500, "The job failed", False
    TOO_MANY_REQUESTS = 429, "Too many requests", True
    QUEUE_FULL = 429, "Too many jobs are queued", True
    TOO_MANY_BATCHES = 429, "Too many batches have not ended", True
    HEADERS_TOO_LARGE = 431, "The headers are too large", False
    INTERNAL = 500, "Something went wrong here", False
    ENGINE_UNAVAILABLE = 503, "The service is not available now", True
    DEADLINE = 504, "The images are not ready in time", False

    FILE_TOO_LARGE = None, "The picture cannot be made small enough", False
    AR_OOM = None, "The AR model ran out of memory", True
    DECODER_OOM = None, "The decoder ran out of memory", True
    AR_INCOMPLETE_GRID = None, "The layout is not complete", True
    AR_TIMEOUT = None, "The layout took too long", True
    DECODER_TIMEOUT = None, "The picture took too long", True
    AR_OVERFLOW = None, "The AR model's numbers overflowed", False
    DECODER_OVERFLOW = None, "The decoder's numbers overflowed", False
    LORA_BROKEN = None, "An adapter cannot be loaded", True
    UNKNOWN_LORA = None, "An adapter is not there any more", True
    ARTIFACT_BROKEN = None, "An intermediate result is damaged", True
    ARTIFACT_MISMATCH = None, "An intermediate result does not fit", True
    ARTIFACT_LOST = None, "An intermediate result was lost", True
    ENGINE_BROKEN = None, "The worker's device failed", True
    MODEL_MISMATCH = None, "The model was changed", True
    UPLOAD_FAILED = None, "The picture could not be stored", True
    APPROVAL_EXPIRED = None, "Nobody decided on the draft in time", False
    DEADLINE_EXCEEDED = None, "The deadline has passed", False
    WORKER_LOST = None, "The worker was lost", True
    POISON = None, "The job's workers were lost again and again", False
    CANCELED_BY_USER = None, "Somebody canceled the job", False

    def __init__(self, status: int | None, title: str, retryable: bool) -> None:
        self.status = status
        self.title = title
        self.retryable = retryable

    @property
    def code(self) -> str:
        return self.name.lower()

    @property
    def path(self) -> str:
        """Where the type's URI leads."""
        return f"/problems/{self.code.replace('_', '-')}"

    @property
    def text(self) -> str:
        """What it means, and what to do."""
        return TEXTS[self.code]

    @property
    def openai_status(self) -> int:
        """Its status on OpenAI's routes: their clients take 409 for a reason to try again."""
        return 422 if self.status == 409 and not self.retryable else self.status or 500

    @property
    def openai_type(self) -> str:
        """Its kind, as OpenAI's errors have it."""
        match self.status or 500:
            case 401:
                return "authentication_error"
            case 403:
                return "permission_error"
            case 429:
                return "rate_limit_error"
            case status:
                return "invalid_request_error" if status < 500 else "server_error"

    @classmethod
    def find(cls, code: str) -> Problem | None:
        """The problem that a request may be answered with."""
        found = cls.__members__.get(code.upper())
        return found if found is not None and found.status is not None else None

    def describe(self, base_url: str) -> dict[str, Any]:
        """The entry as the catalogue shows it."""
        return {
            "type": base_url + self.path,
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "retryable": self.retryable,
        }


def problem_body(
    problem: Problem,
    detail: str,
    base_url: str,
    path: str,
    request_id: str,
    param: str | None = None,
    trace_id: str | None = None,
    errors: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """
    The body of an answer.

    Args:
        path: of the request, in the form of a URI; empty if none was read.
        errors: the wrong fields, as `problem_answers.py` has them.
    """
    return {
        **problem.describe(base_url),
        "detail": detail,
        "instance": f"{path}#{request_id}",
        "param": param,
        "request_id": request_id,
        "trace_id": trace_id,
        "errors": list(errors),
        # What OpenAI's and Replicate's clients read.
        "error": {"message": detail, "type": problem.openai_type, "param": param, "code": problem.code},
    }


def example_problem(problem: Problem) -> dict[str, Any]:
    """The body of an answer, for the OpenAPI document."""
    request_id, trace_id = "req_01kb2w5n0v7f9rqs8d3xz4m6ht", "4bf92f3577b34da6a3ce929d0e0e4736"
    body = problem_body(problem, problem.title, "https://glmq.example", "/v1/jobs", request_id, trace_id=trace_id)
    return {**body, "type": QUOTA_TYPE, "violated-policies": ["create"]} if problem.status in (402, 429) else body
