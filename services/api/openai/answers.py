"""A job's document -> what OpenAI's clients read: images, usage, errors. Knows no route."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from services.api.answers import Warning
from services.api.parts import Parts
from services.api.problem_catalogue import Problem
from services.api.unfinished import UnfinishedError
from shared.errors import RequestError
from shared.states import JobStatus
from shared.storage import PRESIGN_S

Document = Mapping[str, Any]


class InputTokens(BaseModel):
    """What the layout stage read."""

    text_tokens: int
    image_tokens: int


class OutputTokens(BaseModel):
    """What the layout stage wrote."""

    image_tokens: int
    text_tokens: int


class TokenUsage(BaseModel):
    """What was really run; what was in the store costs nothing."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class ImageDatum(BaseModel):
    """One image, as a file or by URL."""

    b64_json: str | None = None
    url: str | None = None
    expires_at: int | None = Field(default=None, description="When the URL ends.")
    seed: int


class ImagesAnswer(BaseModel):
    """The images; or, with `background: true`, the job that draws them."""

    created: int
    id: str = Field(description="Of the job.")
    data: list[ImageDatum] | None
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"] | None = None
    quality: Literal["low", "medium", "high"] | None = None
    size: str | None = None
    usage: TokenUsage | None = None
    status: JobStatus | None = None
    urls: dict[str, str] | None = None
    glyph_texts: list[str] = Field(description="What is drawn letter by letter.")
    warnings: list[Warning] = Field(description="What may not be as the writer of the prompt thinks.")


def unix(moment: str | datetime | None) -> int | None:
    """Seconds since 1970 of a time as documents have it."""
    if moment is None:
        return None
    return int((datetime.fromisoformat(moment) if isinstance(moment, str) else moment).timestamp())


def quality_name(asked: str) -> str:
    """The quality that a request was drawn with; OpenAI's answers know no `auto`."""
    return asked if asked in ("low", "medium") else "high"


def token_usage(document: Document) -> dict[str, Any]:
    """The job's usage in OpenAI's words."""
    usage = document["usage"]
    text, image, written = usage["text_tokens"], usage["image_tokens"], usage["ar_tokens"]
    return {
        "input_tokens": text + image,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image},
        "output_tokens": written,
        "output_tokens_details": {"image_tokens": written, "text_tokens": 0},
        "total_tokens": text + image + written,
    }


def split_usage(usage: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """A job's usage in as many parts, whose sum it is: of work that images shared nobody can say whose it was."""

    def share(value: Any, index: int) -> Any:
        if isinstance(value, Mapping):
            return {name: share(part, index) for name, part in value.items()}
        return value // count + (index < value % count)

    parts = []
    for index in range(count):
        part = share(usage, index)
        part["input_tokens"] = sum(part["input_tokens_details"].values())
        part["output_tokens"] = sum(part["output_tokens_details"].values())
        parts.append({**part, "total_tokens": part["input_tokens"] + part["output_tokens"]})
    return parts


def images_answer(parts: Parts, document: Document, quality: str, response_format: str) -> dict[str, Any]:
    """
    The images of a job that has succeeded.

    Raises:
        StorageDownError
    """
    outputs = document["outputs"]
    return {
        "created": unix(document["created_at"]),
        "id": document["id"],
        "background": "opaque",
        "data": [image_datum(parts, output, response_format) for output in outputs],
        "output_format": outputs[0]["format"],
        "quality": quality_name(quality),
        "size": document["params"]["size"],
        "usage": token_usage(document),
        **reading_of(document),
    }


def reading_of(document: Document) -> dict[str, Any]:
    """How the job's prompt was read; a member of every answer, which OpenAI's clients leave alone."""
    return {name: document[name] for name in ("glyph_texts", "warnings")}


def image_datum(parts: Parts, output: Document, response_format: str) -> dict[str, Any]:
    """One finished image: its bytes, or a URL that is good for an hour."""
    if response_format == "url":
        return {
            "url": parts.storage.presign(output["storage_key"]),
            "expires_at": int(time.time()) + PRESIGN_S,
            "seed": output["seed"],
        }
    return {"b64_json": read_base64(parts, output["storage_key"]), "seed": output["seed"]}


def read_base64(parts: Parts, storage_key: str) -> str:
    """A stored picture as JSON can hold it."""
    return base64.b64encode(parts.storage.get(storage_key)).decode()


def end_error(document: Document) -> UnfinishedError:
    """Why a job that has ended has no images, as an error of the request that waited for it."""
    reason = document["error"] or {"code": document["status"], "message": f"the job was {document['status']}"}
    match document["status"]:
        case JobStatus.CANCELED:
            code, detail = "job_canceled", "the job was canceled before its images were ready"
        case JobStatus.EXPIRED:
            code, detail = "deadline", f"the job expired: {reason['message']}"
        case _ if is_clients_fault(reason["code"]):
            code, detail = reason["code"], f"the job failed: {reason['message']}"
        case _:
            code, detail = "job_failed", f"the job failed: {reason['code']}: {reason['message']}"
    return UnfinishedError(code, detail, document["id"])


def is_clients_fault(code: str) -> bool:
    """May a request be refused with this error of a job, too? Never with 409, which OpenAI's clients take for a reason to try again."""
    problem = Problem.find(code)
    return problem is not None and problem.status is not None and problem.status < 500 and problem.status != 409


def error_member(error: RequestError) -> dict[str, Any]:
    """An error in a stream or a file, where there is no status to carry it."""
    problem = Problem.find(error.code) or Problem.INTERNAL
    return {"message": error.detail, "type": problem.openai_type, "param": error.param, "code": error.code}
