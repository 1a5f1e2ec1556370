"""
`/v1/responses`: OpenAI's response routes, as far as pictures go. A response is a job under another name: `resp_x` is `job_x`.

So a job of any interface can be read, streamed and canceled here, and a response everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from apiflask import APIBlueprint
from flask import Response, jsonify, request

from services.api.auth import authenticate
from services.api.field_errors import ErrorCollector, FieldError, InvalidFieldsError, Path
from services.api.jobs import cancel_job, find_job
from services.api.openai_answers import Document, end_error, error_member, read_base64, token_usage, unix
from services.api.openai_images import MAX_JSON_BYTES, submit_translated
from services.api.openai_response_schemas import (
    UNSUPPORTED,
    ImagePart,
    ResponseAnswer,
    ResponseDeletedAnswer,
    ResponseQuery,
    ResponseRequest,
    UserMessage,
)
from services.api.openai_schemas import ImageReference, find_unsupported
from services.api.openai_translate import check_model, lane_and_company, picture_fields, place_images, read_asked, without_nulls
from services.api.openai_wait import cut_short, event, heartbeat, wait_for_end, waiting_place, watch_job
from services.api.parts import Parts
from services.api.request_body import RequestBody, read_json, read_query
from services.api.reruns import erase_job
from services.api.route_docs import describe
from services.api.sse import MEDIA_TYPE, STREAM_SCHEMA
from services.api.waiting import NoPlaceError
from shared.checkpoint import ModelInfo
from shared.db import DatabaseDownError
from shared.errors import RequestError
from shared.ids import is_id
from shared.lifecycle.events import RESPONSES
from shared.lifecycle.jobs import get_dialect
from shared.lifecycle.tenants import Caller
from shared.lifecycle.tries import note_answer
from shared.states import TERMINAL_JOB, JobStatus, Priority
from shared.storage import StorageDownError, StorageMissingError

_ROUTE = "POST /v1/responses"
_STATUSES = {
    JobStatus.QUEUED: "queued",
    JobStatus.RUNNING: "in_progress",
    JobStatus.SUCCEEDED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELED: "cancelled",
    JobStatus.EXPIRED: "incomplete",
}
_END_EVENTS = {"completed": "response.completed", "failed": "response.failed"}
"""Of other ends OpenAI's clients know `response.incomplete` only; the status in it says more."""
_TIERS = {Priority.INTERACTIVE: "priority", Priority.STANDARD: "default", Priority.BULK: "flex"}
_WINDOWS_S = {"2h": 7200, "8h": 28_800}
_MAX_PARTIALS = 3
_SSE = {"application/json": ResponseAnswer, MEDIA_TYPE: STREAM_SCHEMA}

log = structlog.get_logger()


def responses_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/responses`."""
    responses = APIBlueprint("openai_responses", __name__)

    @responses.post("/v1/responses")
    @responses.output(ResponseAnswer)
    @responses.doc(
        summary="Make a picture as a response (OpenAI)",
        operation_id="openai_make_response",
        security="ApiKey",
        responses=[400, 401, 403, 404, 413, 415, 422, 503, 504],
        extensions=describe(
            body=ResponseRequest,
            example={"input": 'a sign that says "open"', "tools": [{"type": "image_generation", "size": "1024x1024"}], "background": True},
            request_headers=("Idempotency-Key",),
            content={"200": _SSE},
            headers={"200": ("Idempotency-Replayed",)},
        ),
    )
    def make() -> Response:
        caller = authenticate(parts.db, request, "submit")
        sent = without_nulls(read_json(request, MAX_JSON_BYTES))
        asked = _read(sent)
        native = native_response_request(asked, parts.model.get())
        places = _image_places(asked)
        dialect = {"name": RESPONSES, "request": _echo(asked)}
        if asked.background and not asked.stream:
            submitted = submit_translated(parts, caller, _ROUTE, RequestBody(sent), native, dialect, places)
            note_answer(parts.db, submitted.job_id)
            answer = jsonify(_response(parts, find_job(parts, caller, submitted.job_id), dialect))
        else:
            with waiting_place(parts, caller) as place:
                submitted = submit_translated(parts, caller, _ROUTE, RequestBody(sent), native, dialect, places)
                if asked.stream:
                    answer = place.stream(_events(parts, caller, submitted.job_id, dialect, -1))
                else:
                    document = wait_for_end(parts, caller, submitted.job_id, request)
                    note_answer(parts.db, submitted.job_id)
                    answer = jsonify(_response(parts, document, dialect))
        if submitted.is_replay:
            answer.headers["Idempotency-Replayed"] = "true"
        return answer

    @responses.get("/v1/responses/<response_id>")
    @responses.output(ResponseAnswer)
    @responses.doc(
        summary="Get a response (OpenAI)",
        operation_id="openai_get_response",
        security="ApiKey",
        responses=[400, 401, 403, 404, 503],
        extensions=describe(query=ResponseQuery, content={"200": _SSE}),
    )
    def get_one(response_id: str) -> Response:
        caller = authenticate(parts.db, request, "read")
        query = read_query(request.args, ResponseQuery)
        if query.starting_after is not None and query.stream == "false":
            raise RequestError("invalid_request", "starting_after: only a stream has events to start after", "starting_after")
        document, dialect = _find(parts, caller, response_id)
        if query.stream == "false":
            return jsonify(_response(parts, document, dialect))
        with waiting_place(parts, caller) as place:
            last = -1 if query.starting_after is None else query.starting_after
            return place.stream(_events(parts, caller, document["id"], dialect, last))

    @responses.post("/v1/responses/<response_id>/cancel")
    @responses.output(ResponseAnswer)
    @responses.doc(
        summary="Cancel a response (OpenAI)", operation_id="openai_cancel_response", security="ApiKey", responses=[401, 403, 404, 503]
    )
    def cancel_one(response_id: str) -> Response:
        caller = authenticate(parts.db, request, "submit")
        document, dialect = _find(parts, caller, response_id)
        _cancel(parts, caller, document["id"])
        return jsonify(_response(parts, find_job(parts, caller, document["id"]), dialect))

    @responses.delete("/v1/responses/<response_id>")
    @responses.output(ResponseDeletedAnswer)
    @responses.doc(
        summary="Delete a response (OpenAI)", operation_id="openai_delete_response", security="ApiKey", responses=[401, 403, 404, 503]
    )
    def delete_one(response_id: str) -> Response:
        caller = authenticate(parts.db, request, "submit")
        document, _ = _find(parts, caller, response_id)
        erase_job(parts, caller, document["id"])
        return jsonify({"id": response_id, "object": "response", "deleted": True})

    return responses


def native_response_request(asked: ResponseRequest, info: ModelInfo) -> RequestBody:
    """
    The native request that draws what was asked for.

    Raises:
        InvalidFieldsError
    """
    errors = ErrorCollector()
    tool = asked.tools[0]
    prompt, references = _read_input(asked, errors)
    in_tool = ErrorCollector()
    fields = {
        "prompt": prompt,
        **lane_and_company(asked, errors),
        **picture_fields(tool, info, in_tool),
        "previews": tool.partial_images > 0,
    }
    check_model(asked.model, info, errors)
    check_model(tool.model, info, in_tool)
    if tool.action == "edit" and not references:
        in_tool.add(("action",), "missing", "an edit needs an input_image")
    if tool.action == "generate" and references:
        in_tool.add(("action",), "exclusive", "with an input_image the picture is an edit; auto or edit is possible")
    errors.raise_any()
    with _within("tools", 0):
        in_tool.raise_any()
    if asked.background_options.completion_window in _WINDOWS_S:
        window = timedelta(seconds=_WINDOWS_S[asked.background_options.completion_window])
        fields.setdefault("deadline", (datetime.now(UTC) + window).isoformat())
        fields.setdefault("priority", Priority.BULK)
    images, uploads, order = place_images(references, _image_places(asked))
    return RequestBody({**fields, "images": images}, uploads, order if references else None)


def _read(sent: Mapping[str, Any]) -> ResponseRequest:
    errors = [
        FieldError((name,), "unsupported", f"{name}: {why}", "unsupported_parameter") for name, why in UNSUPPORTED.items() if name in sent
    ]
    if sent.get("store") is False:
        errors.append(FieldError(("store",), "unsupported", "store: responses are always kept", "unsupported_parameter"))
    tools = sent.get("tools")
    for index, tool in enumerate(tools if isinstance(tools, list) else []):
        if not isinstance(tool, dict) or tool.get("type") != "image_generation":
            detail = f"tools.{index}: the only tool is image_generation"
            errors.append(FieldError(("tools", index), "unsupported", detail, "unsupported_parameter"))
        else:
            errors += [_moved(error, "tools", index) for error in find_unsupported(without_nulls(tool))]
    if errors:
        raise InvalidFieldsError(errors)
    if isinstance(tools, list):
        sent = {**sent, "tools": [without_nulls(tool) for tool in tools]}
    return read_asked(sent, ResponseRequest)


@contextmanager
def _within(*path: str | int) -> Iterator[None]:
    """Errors of a part of the request, named from its root."""
    try:
        yield
    except InvalidFieldsError as error:
        raise InvalidFieldsError([_moved(wrong, *path) for wrong in error.errors]) from None


def _moved(error: FieldError, *path: str | int) -> FieldError:
    prefix = ".".join(map(str, path))
    return FieldError((*path, *error.path), error.reason, f"{prefix}.{error.detail}", error.problem)


def _read_input(asked: ResponseRequest, errors: ErrorCollector) -> tuple[str, list[ImageReference]]:
    if isinstance(asked.input, str):
        return asked.input, []
    if len(asked.input) != 1:
        errors.add(("input",), "unsupported", f"one user message is drawn (got {len(asked.input)})", "unsupported_parameter")
        return "-", []
    message: UserMessage = asked.input[0]
    if isinstance(message.content, str):
        return message.content, []
    texts = [part.text for part in message.content if not isinstance(part, ImagePart)]
    references = []
    for index, part in enumerate(message.content):
        if isinstance(part, ImagePart):
            if (part.image_url is None) == (part.file_id is None):
                errors.add(("input", 0, "content", index), "source_form", "should have either image_url or file_id")
            references.append(ImageReference(image_url=part.image_url, file_id=part.file_id))
    if not texts:
        errors.add(("input", 0, "content"), "missing", "should have an input_text that says what to draw")
    return "\n".join(texts), references


def _image_places(asked: ResponseRequest) -> list[Path]:
    """Where each reference image stands in the request."""
    message = asked.input[0] if isinstance(asked.input, list) and asked.input else None
    parts = message.content if message is not None and isinstance(message.content, list) else []
    return [("input", 0, "content", index) for index, part in enumerate(parts) if isinstance(part, ImagePart)]


def _echo(asked: ResponseRequest) -> dict[str, Any]:
    """What of a request its response repeats. Not the input, which may hold pictures."""
    choice = asked.tool_choice if isinstance(asked.tool_choice, str) else asked.tool_choice.model_dump()
    return {
        "background": asked.background,
        "model": asked.model,
        "tool_choice": choice,
        "tools": [asked.tools[0].model_dump(mode="json", exclude_unset=True)],
    }


def _find(parts: Parts, caller: Caller, response_id: str) -> tuple[Document, Mapping[str, Any]]:
    job_id = "job_" + response_id.removeprefix("resp_") if is_id(response_id, "resp") else response_id
    if not is_id(job_id, "job"):
        raise RequestError("not_found", "there is no such response")
    dialect = get_dialect(parts.db, caller.tenant_id, job_id) or {}
    try:
        return find_job(parts, caller, job_id), dialect
    except RequestError as error:
        if error.code != "gone":
            raise
        # What was deleted is not there, in this interface.
        raise RequestError("not_found", "there is no such response") from None


def _cancel(parts: Parts, caller: Caller, job_id: str) -> None:
    try:
        cancel_job(parts, caller, job_id)
    except RequestError as error:
        # 200 with the response, whatever it has become.
        if error.code != "already_terminal":
            raise


def _response(parts: Parts, document: Document, dialect: Mapping[str, Any], *, has_images: bool = True) -> dict[str, Any]:
    """The job as a response. `has_images`: with the pictures, or without them in the events before the last."""
    echo = dialect.get("request") or {}
    params = document["params"]
    status = _STATUSES[JobStatus(document["status"])]
    ended = document["status"] in TERMINAL_JOB
    usage = token_usage(document)
    error = None
    if status == "failed":
        error = {"code": "server_error", "message": end_error(document).detail}
    return {
        "id": _response_id(document),
        "object": "response",
        "created_at": unix(document["created_at"]),
        "completed_at": unix(document["completed_at"]),
        "status": status,
        "background": echo.get("background", True),
        "error": error,
        "incomplete_details": {"reason": "deadline"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": document["metadata"],
        "model": echo.get("model") or document["model"]["name"],
        "output": [_call(parts, document, output, has_images) for output in document["outputs"]],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "service_tier": _TIERS[Priority(document["priority"])],
        "store": True,
        "tool_choice": echo.get("tool_choice", "auto"),
        "tools": echo.get("tools") or [{"type": "image_generation", "size": params["size"], "output_format": params["format"]}],
        "usage": _usage(usage) if ended else None,
        "tool_usage": {"image_gen": usage, "web_search": {"num_requests": 0}} if ended else None,
    }


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": usage["input_tokens"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }


def _response_id(document: Document) -> str:
    return "resp_" + str(document["id"]).removeprefix("job_")


def _call(parts: Parts, document: Document, output: Mapping[str, Any], has_images: bool) -> dict[str, Any]:
    """One picture, as the call of the tool that draws it."""
    is_there = output["storage_key"] is not None
    status = "completed" if is_there else "failed" if document["status"] in TERMINAL_JOB else "generating"
    return {
        "id": f"ig_{str(document['id']).removeprefix('job_')}{output['index']}",
        "type": "image_generation_call",
        "status": status if document["status"] != JobStatus.QUEUED else "in_progress",
        "result": read_base64(parts, output["storage_key"]) if is_there and has_images else None,
        "background": "opaque",
        "output_format": output["format"],
        "size": f"{output['width']}x{output['height']}",
        "action": "edit" if document["params"]["images"] else "generate",
    }


def _preview(output: Mapping[str, Any], turn: int) -> Mapping[str, Any] | None:
    """Picture on the way number `turn`: 0 is the draft, which may be late or never come, and leaves its number out."""
    kind, index = ("draft", 0) if turn == 0 else ("x0", turn - 1)
    of_kind = [preview for preview in output["previews"] if preview["kind"] == kind]
    return of_kind[index] if index < len(of_kind) else None


def _events(parts: Parts, caller: Caller, job_id: str, dialect: Mapping[str, Any], last: int) -> Iterator[bytes]:
    """The stream of a response, behind event `last`. Whatever goes wrong is told in the stream: its status was sent with the first byte."""
    yield heartbeat()
    numbered = _Numbered(parts, dialect, last)
    try:
        for document in watch_job(parts, caller, job_id, parts.settings.sync_max_s, parts.settings.stream_heartbeat_s):
            if document is None:
                yield heartbeat()
                continue
            # What is read from the stores is work, as it is within a request; what is sent to a slow client is not.
            with parts.waiting.turn():
                found = list(numbered.new_events(document))
            yield from found
            if document["status"] in TERMINAL_JOB:
                note_answer(parts.db, job_id)
                return
        raise cut_short(parts, job_id)
    except RequestError as error:
        yield event(None, {"error": error_member(error)})
    except NoPlaceError as error:
        yield event(None, {"error": error_member(RequestError("engine_unavailable", str(error)))})
    except (DatabaseDownError, StorageDownError, StorageMissingError) as error:
        log.warning("stream_cut", job_id=job_id, error=type(error).__name__)
        yield event(None, {"error": error_member(RequestError("engine_unavailable", f"a store does not answer; job {job_id} goes on"))})


class _Numbered:
    """
    The events of one response, each with the same number in every stream of it, so that a client can go on where it was cut off.

    First the beginnings, then the pictures on the way, each image's first before any image's second, then the ends. What is not there
    leaves its number out.
    """

    def __init__(self, parts: Parts, dialect: Mapping[str, Any], last: int) -> None:
        self._parts = parts
        self._dialect = dialect
        self._last = last
        tools = (dialect.get("request") or {}).get("tools") or [{}]
        # A job of another interface has said nothing about it: what there is is shown.
        self._num_partials = min(tools[0].get("partial_images", 0 if dialect.get("request") else _MAX_PARTIALS), _MAX_PARTIALS)

    def new_events(self, document: Document) -> Iterator[bytes]:
        """What has happened since the last event."""
        for number, name, data in self._all(document):
            if number > self._last:
                self._last = number
                yield event(name, {"type": name, "sequence_number": number, **data()})

    def _all(self, document: Document) -> Iterator[tuple[int, str, Any]]:
        count = len(document["outputs"])
        yield 0, "response.created", lambda: {"response": self._bare(document)}
        yield 1, "response.in_progress", lambda: {"response": self._bare(document)}
        for index, output in enumerate(document["outputs"]):
            item = _call(self._parts, document, output, has_images=False) | {"status": "in_progress"}
            place = {"item_id": item["id"], "output_index": index}
            first = 2 + 3 * index
            yield first, "response.output_item.added", lambda item=item, index=index: {"item": item, "output_index": index}
            yield first + 1, "response.image_generation_call.in_progress", lambda place=place: place
            yield first + 2, "response.image_generation_call.generating", lambda place=place: place
        partials = 2 + 3 * count
        name = "response.image_generation_call.partial_image"
        for turn in range(self._num_partials):
            for index, output in enumerate(document["outputs"]):
                if (preview := _preview(output, turn)) is not None:
                    yield partials + turn * count + index, name, self._partial(document, output, preview, turn)
        if document["status"] in TERMINAL_JOB:
            yield from self._ends(document, partials + _MAX_PARTIALS * count)

    def _ends(self, document: Document, first: int) -> Iterator[tuple[int, str, Any]]:
        count = len(document["outputs"])
        if document["status"] == JobStatus.SUCCEEDED:
            for index, output in enumerate(document["outputs"]):
                place = {"item_id": _call(self._parts, document, output, has_images=False)["id"], "output_index": index}
                yield first + 2 * index, "response.image_generation_call.completed", lambda place=place: place
                done = first + 2 * index + 1
                yield (
                    done,
                    "response.output_item.done",
                    lambda output=output, index=index: {"item": _call(self._parts, document, output, True), "output_index": index},
                )
        name = _END_EVENTS.get(_STATUSES[JobStatus(document["status"])], "response.incomplete")
        yield first + 2 * count, name, lambda: {"response": _response(self._parts, document, self._dialect)}

    def _partial(self, document: Document, output: Mapping[str, Any], preview: Mapping[str, Any], turn: int) -> Any:
        def data() -> dict[str, Any]:
            return {
                "item_id": _call(self._parts, document, output, has_images=False)["id"],
                "output_index": output["index"],
                "partial_image_index": turn,
                "partial_image_b64": read_base64(self._parts, preview["storage_key"]),
                "background": "opaque",
                "output_format": preview["storage_key"].rpartition(".")[2],
                "size": f"{preview['width']}x{preview['height']}",
                "preview": {"kind": preview["kind"], "step": preview["step"]},
            }

        return data

    def _bare(self, document: Document) -> dict[str, Any]:
        return _response(self._parts, document, self._dialect, has_images=False)
