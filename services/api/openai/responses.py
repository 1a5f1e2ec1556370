"""
`/v1/responses`: OpenAI's response routes, as far as pictures go. A response is a job under another name: `resp_x` is `job_x`.

So a job of any interface can be read, streamed and canceled here, and a response everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from apiflask import APIBlueprint
from flask import Response, jsonify, request

from services.api.auth import authenticate
from services.api.field_errors import ErrorCollector, FieldError, InvalidFieldsError, Path
from services.api.job_access import cancel_job, erase_job, find_job
from services.api.openai.answers import Document
from services.api.openai.headers import POLL_AFTER, tell_poll, tell_time
from services.api.openai.response_answers import ResponseEvents, response_document
from services.api.openai.response_schemas import (
    UNSUPPORTED,
    ImagePart,
    ResponseAnswer,
    ResponseDeletedAnswer,
    ResponseQuery,
    ResponseRequest,
    UserMessage,
)
from services.api.openai.schemas import ImageReference, find_unsupported
from services.api.openai.submitting import MAX_JSON_BYTES, OF_UNFINISHED, submit_translated
from services.api.openai.translate import check_model, lane_and_company, picture_fields, read_asked, sent_images, without_nulls
from services.api.openai.wait import Place, hold, stream_job, waiting_place
from services.api.parts import Parts
from services.api.reference_images import place_images
from services.api.request_body import RequestBody, read_json, read_query
from services.api.route_docs import describe
from services.api.sse import MEDIA_TYPE, STREAM_SCHEMA
from shared.checkpoint import ModelInfo
from shared.dialects import OPENAI_RESPONSES
from shared.errors import RequestError
from shared.ids import is_id
from shared.lifecycle.jobs import get_dialect
from shared.lifecycle.tenants import Caller
from shared.lifecycle.tries import note_answer
from shared.states import Priority

_ROUTE = "POST /v1/responses"
_TOOL = ("tools", 0)
_NAMES: dict[str, Path] = {
    "prompt": ("input",),
    "steps": (*_TOOL, "num_inference_steps"),
    "format": (*_TOOL, "output_format"),
    "format_options": (*_TOOL, "output_compression"),
    **{name: (*_TOOL, name) for name in ("size", "seed", "guidance_scale", "temperature", "top_p", "lora", "cache")},
}
"""Where a request has what the native one calls so."""
_WINDOWS_S = {"2h": 7200, "8h": 28_800}
_STREAM = (
    'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{…}}\n\n'
    'event: response.completed\ndata: {"type":"response.completed","sequence_number":9,"response":{…}}\n\n'
)
_SSE = {"application/json": ResponseAnswer, MEDIA_TYPE: STREAM_SCHEMA}


def responses_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/responses`."""
    responses = APIBlueprint("openai_responses", __name__)
    tell_time(responses)

    @responses.post("/v1/responses")
    @responses.output(ResponseAnswer)
    @responses.doc(
        summary="Make a picture as a response (OpenAI)",
        operation_id="openai_make_response",
        security="ApiKey",
        responses=[400, 401, 402, 403, 404, 410, 413, 415, 422, 429, 503, 504],
        extensions=describe(
            body=ResponseRequest,
            example={"input": 'a sign that says "open"', "tools": [{"type": "image_generation", "size": "1024x1024"}], "background": True},
            request_headers=("Idempotency-Key",),
            content={"200": _SSE},
            stream_example=_STREAM,
            is_counted=True,
            headers={"200": (POLL_AFTER, "Idempotency-Replayed"), "504": OF_UNFINISHED},
        ),
    )
    def make() -> Response:
        caller = authenticate(parts.callers, request, "submit")
        sent = without_nulls(read_json(request, MAX_JSON_BYTES))
        asked = _read(sent)
        native = native_response_request(asked, parts.model.get())
        places = _image_places(asked)
        dialect = {"name": OPENAI_RESPONSES.name, "request": _echo(asked)}
        if asked.background and not asked.stream:
            submitted = submit_translated(parts, caller, _ROUTE, RequestBody(sent), native, dialect, places, _NAMES)
            note_answer(parts.db, submitted.job_id)
            accepted = find_job(parts, caller, submitted.job_id)
            answer = tell_poll(parts, jsonify(response_document(parts, accepted, dialect)), accepted)
        else:
            with waiting_place(parts, caller) as place:
                submitted = submit_translated(parts, caller, _ROUTE, RequestBody(sent), native, dialect, places, _NAMES)
                if asked.stream:
                    answer = _stream(parts, caller, submitted.job_id, dialect, place, -1)
                else:
                    answer = hold(parts, caller, submitted.job_id, place, lambda document: response_document(parts, document, dialect))
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
        extensions=describe(query=ResponseQuery, content={"200": _SSE}, stream_example=_STREAM, headers={"200": (POLL_AFTER,)}),
    )
    def get_one(response_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        query = read_query(request.args, ResponseQuery)
        if query.starting_after is not None and query.stream == "false":
            raise RequestError("invalid_request", "starting_after: only a stream has events to start after", "starting_after")
        document, dialect = _find(parts, caller, response_id)
        if query.stream == "false":
            return tell_poll(parts, jsonify(response_document(parts, document, dialect)), document)
        with waiting_place(parts, caller) as place:
            last = -1 if query.starting_after is None else query.starting_after
            return _stream(parts, caller, document["id"], dialect, place, last)

    @responses.post("/v1/responses/<response_id>/cancel")
    @responses.output(ResponseAnswer)
    @responses.doc(
        summary="Cancel a response (OpenAI)", operation_id="openai_cancel_response", security="ApiKey", responses=[401, 403, 404, 503]
    )
    def cancel_one(response_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        document, dialect = _find(parts, caller, response_id)
        _cancel(parts, caller, document["id"])
        return jsonify(response_document(parts, find_job(parts, caller, document["id"]), dialect))

    @responses.delete("/v1/responses/<response_id>")
    @responses.output(ResponseDeletedAnswer)
    @responses.doc(
        summary="Delete a response (OpenAI)", operation_id="openai_delete_response", security="ApiKey", responses=[401, 403, 404, 503]
    )
    def delete_one(response_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
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
    placed = place_images(sent_images(references, _image_places(asked)))
    return RequestBody({**fields, "images": placed.images}, placed.uploads, placed.order or None)


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
            errors += [error.within("tools", index) for error in find_unsupported(without_nulls(tool))]
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
        raise InvalidFieldsError([wrong.within(*path) for wrong in error.errors]) from None


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


def _stream(parts: Parts, caller: Caller, job_id: str, dialect: Mapping[str, Any], place: Place, last: int) -> Response:
    """The events of a response behind number `last`."""
    return place.stream(stream_job(parts, caller, job_id, ResponseEvents(parts, dialect, last).new_events))


def _cancel(parts: Parts, caller: Caller, job_id: str) -> None:
    try:
        cancel_job(parts, caller, job_id)
    except RequestError as error:
        # 200 with the response, whatever it has become.
        if error.code != "already_terminal":
            raise
