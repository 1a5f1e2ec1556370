"""
`/v1/images`: OpenAI's image routes over the native jobs. A request makes a job and is held until it has ended, or streams its way.

The rules of the translation are in `translate.py`, and those of waiting in `wait.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from apiflask import APIBlueprint
from flask import Request, Response, jsonify, request
from werkzeug.datastructures import FileStorage

from services.api.auth import authenticate
from services.api.job_access import find_job
from services.api.job_answers import public_document
from services.api.openai.answers import (
    Document,
    ImagesAnswer,
    end_error,
    image_datum,
    images_answer,
    quality_name,
    read_base64,
    reading_of,
    split_usage,
    token_usage,
    unix,
)
from services.api.openai.headers import POLL_AFTER, tell_poll, tell_time
from services.api.openai.schemas import EditRequest, ImageRequest
from services.api.openai.submitting import MAX_JSON_BYTES, OF_UNFINISHED, submit_translated
from services.api.openai.translate import native_image_request, nested_fields, read_asked, without_nulls
from services.api.openai.wait import error_event, hold, stream_job, waiting_place
from services.api.parts import Parts
from services.api.request_body import RequestBody, Upload, read_json, refuse_compression
from services.api.route_docs import describe
from services.api.sse import MEDIA_TYPE, STREAM_SCHEMA, event_bytes
from services.api.strict_json import check_text
from services.api.submitting import Submitted
from shared.errors import RequestError
from shared.lifecycle.tenants import Caller
from shared.lifecycle.tries import note_answer
from shared.states import TERMINAL_JOB, JobStatus

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
_NUMBERS = ("n", "output_compression", "partial_images", "seed", "num_inference_steps", "guidance_scale", "temperature", "top_p")
_FLAGS = ("stream", "background")
_IMAGE_PARTS = ("image", "image[]")
_POLL_S = 1

_SSE = {MEDIA_TYPE: STREAM_SCHEMA, "application/json": ImagesAnswer}
_STREAM = (
    'event: image_generation.partial_image\ndata: {"type":"image_generation.partial_image","b64_json":"UklGR…",…}\n\n'
    'event: image_generation.completed\ndata: {"type":"image_generation.completed","b64_json":"iVBOR…","usage":{…},…}\n\n'
)
_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
_DOCS: dict[str, Any] = {
    "request_headers": ("Idempotency-Key",),
    "content": {"200": _SSE},
    "stream_example": _STREAM,
    "is_counted": True,
    "headers": {
        "202": ("Location", "Retry-After", POLL_AFTER),
        "200": ("Location", "Retry-After", POLL_AFTER, "Idempotency-Replayed"),
        **dict.fromkeys(("400", "422", "500", "504"), OF_UNFINISHED),
    },
    "descriptions": {"200": "The images; with `stream` as events.", "202": "With `background: true`: the job that draws them."},
    "same_as": {"202": "200"},
}
_RESPONSES = [202, 400, 401, 402, 403, 404, 410, 413, 415, 422, 429, 500, 503, 504]


@dataclass(frozen=True)
class _Asked:
    """A request of one of the routes: as it was sent, as it was understood, and what its events are called."""

    route: str
    event_prefix: str
    sent: RequestBody
    wanted: ImageRequest
    uploads: tuple[Upload, ...] = ()


def openai_images_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/images`."""
    images = APIBlueprint("openai_images", __name__)
    tell_time(images)

    @images.post(GENERATIONS)
    @images.output(ImagesAnswer)
    @images.doc(
        summary="Generate images (OpenAI)",
        operation_id="openai_generate_images",
        security="ApiKey",
        responses=_RESPONSES,
        extensions=describe(body=ImageRequest, example={"prompt": 'a sign that says "open"', "size": "1024x1024"}, **_DOCS),
    )
    def generate() -> Response:
        caller = authenticate(parts.callers, request, "submit")
        sent = RequestBody(read_json(request))
        wanted = read_asked(sent.fields, ImageRequest)
        return _answer(parts, caller, _Asked(f"POST {GENERATIONS}", "image_generation", sent, wanted))

    @images.post(EDITS)
    @images.output(ImagesAnswer)
    @images.doc(
        summary="Edit images (OpenAI)",
        operation_id="openai_edit_images",
        security="ApiKey",
        responses=_RESPONSES,
        extensions=describe(
            body=EditRequest,
            example={"prompt": "make it night", "images": [{"image_url": "https://example.com/a.png"}]},
            form={
                "prompt": {"type": "string"},
                "image": {"type": "array", "items": _FILE, "description": "Reference images; also as `image[]`."},
                "n": {"type": "integer", "minimum": 1, "maximum": 10},
                "size": {"type": "string"},
            },
            form_required=("prompt", "image"),
            form_example={"prompt": "make it night", "image": ["(the bytes of a.png)"], "n": 1, "size": "auto"},
            **_DOCS,
        ),
    )
    def edit() -> Response:
        caller = authenticate(parts.callers, request, "submit")
        return _answer(parts, caller, _read_edit(request))

    return images


def _read_edit(request: Request) -> _Asked:
    route, prefix = f"POST {EDITS}", "image_edit"
    if request.mimetype != "multipart/form-data":
        sent = RequestBody(read_json(request, MAX_JSON_BYTES))
        wanted = read_asked(sent.fields, EditRequest)
        if not wanted.images:
            raise RequestError("invalid_request", "images: at least one image is to be edited", "images")
        return _Asked(route, prefix, sent, wanted)
    refuse_compression(request)
    fields = nested_fields(list(request.form.items(multi=True)), _NUMBERS, _FLAGS)
    check_text(fields)
    files = list(request.files.items(multi=True))
    for name, _ in files:
        if name in ("mask", "markup"):
            fields[name] = "a file"
        elif name not in _IMAGE_PARTS:
            raise RequestError("invalid_request", f"unknown file {name[:60]}; reference images come as image or image[]", name[:60])
    if "image" in fields:
        raise RequestError("invalid_request", "image: must be sent as a file, with a file name", "image")
    if "images" in fields:
        raise RequestError("invalid_request", "images: is for JSON bodies; in a form, send files as image or image[]", "images")
    wanted = read_asked(fields, EditRequest)
    uploads = tuple(Upload(f"image.{index}", _read(file)) for index, (_, file) in enumerate(files))
    if not uploads:
        raise RequestError("invalid_request", "image: at least one file is to be edited", "image")
    return _Asked(route, prefix, RequestBody(without_nulls(fields), uploads), wanted, uploads)


def _read(file: FileStorage) -> bytes:
    return file.stream.read()


def _answer(parts: Parts, caller: Caller, asked: _Asked) -> Response:
    native = native_image_request(asked.wanted, parts.model.get(), asked.uploads)
    if asked.wanted.background is True:
        return _accepted(parts, caller, submit_translated(parts, caller, asked.route, asked.sent, native))
    # Before anything is stored: whoever cannot wait is told so, and nothing is drawn for nobody.
    with waiting_place(parts, caller) as place:
        submitted = submit_translated(parts, caller, asked.route, asked.sent, native)
        if asked.wanted.stream:
            response = place.stream(stream_job(parts, caller, submitted.job_id, _Events(parts, asked).new_events))
        else:
            response = hold(parts, caller, submitted.job_id, place, lambda document: _answer_of(parts, document, asked.wanted))
    if submitted.is_replay:
        response.headers["Idempotency-Replayed"] = "true"
    return response


def _accepted(parts: Parts, caller: Caller, submitted: Submitted) -> Response:
    found = find_job(parts, caller, submitted.job_id)
    document = public_document(parts, found)
    note_answer(parts.db, submitted.job_id)
    answer = {"created": unix(document["created_at"]), "id": submitted.job_id, "data": None}
    response = jsonify({**answer, "status": document["status"], "urls": document["urls"], **reading_of(found)})
    response.status_code = 200 if submitted.is_replay else 202
    response.headers["Location"] = f"/v1/jobs/{submitted.job_id}"
    response.headers["Retry-After"] = str(_POLL_S)
    tell_poll(parts, response, found)
    if submitted.is_replay:
        response.headers["Idempotency-Replayed"] = "true"
    return response


def _answer_of(parts: Parts, document: Document, wanted: ImageRequest) -> dict[str, Any]:
    if document["status"] != JobStatus.SUCCEEDED:
        raise end_error(document)
    return images_answer(parts, document, wanted.quality, wanted.response_format)


class _Events:
    """What a stream has to tell of its job: the pictures on the way, and at the end those that were asked for."""

    def __init__(self, parts: Parts, asked: _Asked) -> None:
        self._parts = parts
        self._asked = asked
        self._shown: dict[int, set[str]] = {}

    def new_events(self, document: Document) -> Iterator[bytes]:
        """What has happened since the last document."""
        yield from self._new_previews(document)
        if document["status"] == JobStatus.SUCCEEDED:
            yield from _completed(self._parts, document, self._asked)
        elif document["status"] in TERMINAL_JOB:
            yield error_event(end_error(document), document["id"])

    def _new_previews(self, document: Document) -> Iterator[bytes]:
        for output in document["outputs"]:
            shown = self._shown.setdefault(output["index"], set())
            for preview in output["previews"]:
                key = preview["storage_key"]
                if key in shown or len(shown) >= self._asked.wanted.partial_images:
                    continue
                shown.add(key)
                name = f"{self._asked.event_prefix}.partial_image"
                data = {
                    "type": name,
                    "b64_json": read_base64(self._parts, key),
                    "background": "opaque",
                    "created_at": unix(document["created_at"]),
                    "output_format": key.rpartition(".")[2],
                    "partial_image_index": len(shown) - 1,
                    "quality": quality_name(self._asked.wanted.quality),
                    "size": f"{preview['width']}x{preview['height']}",
                    "image_index": output["index"],
                    "preview": {"kind": preview["kind"], "step": preview["step"]},
                }
                yield event_bytes(name, data)


def _completed(parts: Parts, document: Document, asked: _Asked) -> Iterator[bytes]:
    name = f"{asked.event_prefix}.completed"
    usages = split_usage(token_usage(document), len(document["outputs"]))
    for output, usage in zip(document["outputs"], usages, strict=True):
        data = {
            "type": name,
            **image_datum(parts, output, asked.wanted.response_format),
            "background": "opaque",
            "created_at": unix(document["completed_at"]),
            "output_format": output["format"],
            "quality": quality_name(asked.wanted.quality),
            "size": f"{output['width']}x{output['height']}",
            "usage": usage,
            "image_index": output["index"],
            "id": document["id"],
            **reading_of(document),
        }
        yield event_bytes(name, data)
