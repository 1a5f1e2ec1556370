"""
The lines of a batch's input file -> what each asks for, or what is wrong with it, by line number. Pure, but for the checkpoint's limits.

A line is `{"custom_id", "method", "url", "body"}`; the body is that of the route which the batch names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from services.api.batch_answers import GENERATIONS
from services.api.field_errors import ErrorCollector, InvalidFieldsError, from_pydantic, validated
from services.api.fields import CustomId, Sent
from services.api.new_job import check_request
from services.api.openai.schemas import EditRequest, ImageRequest
from services.api.openai.translate import native_image_request, read_asked, without_nulls
from services.api.request_body import MAX_JSON_BYTES, RequestBody
from services.api.schemas import JobRequest
from services.api.strict_json import parse_object
from shared.checkpoint import ModelInfo
from shared.errors import RequestError
from shared.lifecycle.batch_values import NewItem
from shared.states import Priority

MAX_LINES = 50_000
_MAX_ERRORS = 100
"""Enough to mend a file."""


class LineError(RequestError):
    """A line cannot be read; its code is one of OpenAI's for batches, and is no problem of a route."""


class Line(Sent):
    """One line."""

    custom_id: CustomId
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass
class ReadLines:
    """The lines of a file: all of them understood, or errors as `errors.data` of a batch has them."""

    items: list[NewItem] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    num_errors: int = 0

    def add_error(self, code: str, message: str, line: int | None, param: str | None) -> None:
        """Note an error; of very many only the first ones are kept."""
        self.num_errors += 1
        if len(self.errors) < _MAX_ERRORS:
            self.errors.append({"code": code, "line": line, "message": message, "param": param})


def read_lines(data: bytes, endpoint: str, info: ModelInfo, should_stop: Callable[[], bool] = lambda: False) -> ReadLines | None:
    """Read a file; None if it was told to stop, which it asks for at every line."""
    found = ReadLines()
    seen: dict[str, int] = {}
    for number, text in enumerate(data.split(b"\n"), 1):
        if not text.strip():
            continue
        if len(found.items) + found.num_errors >= MAX_LINES:
            found.add_error("too_many_lines", f"a batch has at most {MAX_LINES} requests", number, None)
            break
        try:
            line = _read_line(text)
            if line.url != endpoint:
                raise LineError("mismatched_url", f"url: should be {endpoint}, the endpoint of the batch (got {line.url[:60]})", "url")
            if (first := seen.setdefault(line.custom_id, number)) != number:
                raise LineError("duplicate_custom_id", f"custom_id: line {first} has it already", "custom_id")
            check_line(line.body, endpoint, info)
        except InvalidFieldsError as error:
            for wrong in error.errors:
                found.add_error(wrong.problem, wrong.detail, number, wrong.param)
        except RequestError as error:
            found.add_error(error.code, error.detail, number, error.param)
        else:
            found.items.append(NewItem(number, line.custom_id, line.body))
        if should_stop():
            return None
    if not found.items and not found.errors:
        found.add_error("empty_file", "the file has no requests", None, None)
    return found


def check_line(body: dict[str, Any], endpoint: str, info: ModelInfo) -> None:
    """
    Check a body as far as that goes without fetching anything.

    Raises:
        RequestError: `param` is the way from the line, such as `body.size`.
    """
    try:
        native = translate_line(body, endpoint, info)
        errors = ErrorCollector()
        check_request(JobRequest.model_validate(native.fields), info, len(native.uploads), errors)
        errors.raise_any()
    except ValidationError as error:
        raise _within_body(from_pydantic(error, JobRequest, body)) from None
    except InvalidFieldsError as error:
        raise _within_body(error) from None


def translate_line(body: dict[str, Any], endpoint: str, info: ModelInfo) -> RequestBody:
    """
    The native request of a line's body: bulk work, whose images are given by URL unless the line says otherwise.

    Raises:
        InvalidFieldsError
    """
    fields = {"response_format": "url", **without_nulls(body)}
    errors = ErrorCollector()
    asked = read_asked(fields, ImageRequest if endpoint == GENERATIONS else EditRequest)
    if asked.stream:
        errors.add(("stream",), "not_applicable", "a batch has no streams")
    if asked.background is True:
        errors.add(("background",), "not_applicable", "all of a batch is drawn in the background")
    if isinstance(asked, EditRequest) and not asked.images:
        errors.add(("images",), "missing", "at least one image is to be edited")
    errors.raise_any()
    native = native_image_request(asked, info)
    return RequestBody({**native.fields, "priority": Priority.BULK}, native.uploads, native.order)


def response_format(body: dict[str, Any]) -> str:
    """How a line wants its images."""
    return str(without_nulls(body).get("response_format", "url"))


def _read_line(text: bytes) -> Line:
    if len(text) > MAX_JSON_BYTES:
        raise LineError("invalid_json_line", f"a line has at most {MAX_JSON_BYTES} bytes; refer to pictures by URL or file_id")
    try:
        sent = parse_object(text)
    except RequestError as error:
        raise LineError("invalid_json_line", error.detail, error.param) from None
    return validated(Line, sent)


def _within_body(error: InvalidFieldsError) -> InvalidFieldsError:
    """The same errors, with their way from the line instead of from the body."""
    return InvalidFieldsError([wrong.within("body") for wrong in error.errors])
