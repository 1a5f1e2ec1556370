"""What became of a batch -> the lines of its output and error files, and what it cost. Pure."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from services.api.openai.answers import end_error, error_member, quality_name, reading_of, token_usage, unix
from services.api.openai.batch_files import STORED
from services.api.openai.batch_lines import response_format
from services.api.problem_catalogue import Problem
from shared.job_document import timestamp
from shared.lifecycle.batch_reads import CANCELED, EXPIRED, Outcome
from shared.states import JobStatus


@dataclass
class Results:
    """The files of a batch, while they grow."""

    output: bytearray = field(default_factory=bytearray)
    error: bytearray = field(default_factory=bytearray)
    tokens: Counter[str] = field(default_factory=Counter)
    has_expired: bool = False

    def add(self, outcome: Outcome, expires_at: datetime) -> None:
        """Write the line of one request of a file."""
        self.count(outcome, expires_at)
        document = outcome.document
        if document is not None and document["status"] == JobStatus.SUCCEEDED:
            self.output += _line(outcome, {"response": _response(200, document["id"], _images(outcome.request, document)), "error": None})
            return
        self.error += _line(outcome, _failure(outcome, timestamp(expires_at)))

    def count(self, outcome: Outcome, expires_at: datetime) -> None:
        """Add what one request has cost, and note whether the batch's time was too short for it."""
        document = outcome.document
        if document is not None:
            usage = token_usage(document)
            self.tokens.update({name: usage[name] for name in ("input_tokens", "output_tokens", "total_tokens")})
        if outcome.status == JobStatus.EXPIRED:
            self.has_expired |= document is None or document["deadline"] == timestamp(expires_at)

    def usage(self) -> dict[str, Any]:
        """Tokens of all requests, as OpenAI's batches tell them."""
        return {
            "input_tokens": self.tokens["input_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.tokens["output_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.tokens["total_tokens"],
        }


def _failure(outcome: Outcome, batch_deadline: str | None) -> dict[str, Any]:
    document, error = outcome.document, outcome.error
    if document is not None and document["status"] == JobStatus.CANCELED:
        error = {"code": CANCELED, "message": "the job was canceled before its images were ready"}
    elif document is not None and document["status"] == JobStatus.EXPIRED and document["deadline"] == batch_deadline:
        error = {"code": EXPIRED, "message": "the time of the batch was up before the images were ready"}
    elif document is not None:
        reason = end_error(document)
        problem = Problem.find(reason.code) or Problem.INTERNAL
        return {"response": _response(problem.status or 500, document["id"], {"error": error_member(reason)}), "error": None}
    if error is not None and error["code"] not in (CANCELED, EXPIRED):
        body = {"error": {"type": "invalid_request_error", **{name: error.get(name) for name in ("message", "param", "code")}}}
        return {"response": _response(error.get("status", 400), outcome.item_id, body), "error": None}
    return {"response": None, "error": error and {name: error[name] for name in ("code", "message")}}


def _images(request: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """`images_answer`, with the keys of pictures instead of the pictures."""
    outputs = document["outputs"]
    return {
        "created": unix(document["created_at"]),
        "id": document["id"],
        "background": "opaque",
        "data": [{STORED: _stored(output, response_format(request)), "seed": output["seed"]} for output in outputs],
        "output_format": outputs[0]["format"],
        "quality": quality_name(request.get("quality") or "auto"),
        "size": document["params"]["size"],
        "usage": token_usage(document),
        **reading_of(document),
    }


def _stored(output: dict[str, Any], shown_as: str) -> dict[str, Any]:
    return {"key": output["storage_key"], "as": shown_as, "bytes": output["bytes"]}


def _response(status: int, request_id: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": request_id, "body": body}


def _line(outcome: Outcome, record: dict[str, Any]) -> bytes:
    text = json.dumps({"id": outcome.item_id, "custom_id": outcome.custom_id, **record}, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"
