"""
Replicate's dialect: predictions over the native jobs. A prediction is a job, whatever it was made by, and a job made here is a native one.

The rules of the translation are in `translate.py`; what a prediction looks like is in `shared/prediction.py`.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any, TypeVar

from apiflask import APIBlueprint
from flask import Response, g, jsonify, request
from pydantic import BaseModel

from services.api.auth import authenticate
from services.api.field_errors import InvalidFieldsError, validated
from services.api.idempotency import parse_key
from services.api.job_access import cancel_job, find_job, wait_for_job
from services.api.job_answers import public_document, retry_after_s
from services.api.parts import Parts
from services.api.prefer import parse_prefer
from services.api.replicate.models import check_model, check_version, model_document, version_document
from services.api.replicate.schemas import (
    HostedModelAnswer,
    ModelPredictionRequest,
    PredictionAnswer,
    PredictionListAnswer,
    PredictionRequest,
    PredictionsQuery,
    VersionAnswer,
    VersionListAnswer,
)
from services.api.replicate.stream import PredictionEvents
from services.api.replicate.translate import as_sent, deadline_of, echoed_input, native_request
from services.api.request_body import RequestBody, read_json, read_query
from services.api.route_docs import describe
from services.api.sse import MEDIA_TYPE, STREAM_SCHEMA, EventStream, Pace, stream_response
from services.api.submitting import Origin, submit_job
from services.api.waiting import NoPlaceError, has_ended
from shared.errors import RequestError
from shared.ids import is_id
from shared.lifecycle.jobs import JobFilter, get_dialects, list_jobs
from shared.lifecycle.paging import Page
from shared.lifecycle.tenants import Caller
from shared.prediction import DIALECT, STREAM_S, prediction, stream_token, tenant_of_token

MAX_JSON_BYTES = 24 << 20
"""Of a body that may hold pictures in base 64. Node's client sends up to 10 MB of them so."""

Asked = TypeVar("Asked", bound=BaseModel)

_PAGE = 100
_CURSOR = re.compile(r"(after|before)_(job_[0-9a-z]{26})", re.ASCII)

_CREATED: dict[str, Any] = {
    "is_counted": True,
    "request_headers": ("Idempotency-Key", "Prefer", "Cancel-After"),
    "headers": {"201": ("Location", "Preference-Applied", "Idempotency-Replayed")},
}
_EXAMPLE = {"prompt": 'a red fox holding a sign that says "hello"', "aspect_ratio": "4:3", "seed": 7}
_ERRORS = [400, 401, 402, 403, 404, 409, 410, 413, 415, 422, 429, 503]


def replicate_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/predictions`, and those by which models are looked up."""
    replicate = APIBlueprint("replicate", __name__)

    @replicate.post("/v1/predictions")
    @replicate.output(
        PredictionAnswer, status_code=201, description="The prediction; `starting` if it did not end while it was waited for."
    )
    @replicate.doc(
        summary="Create a prediction (Replicate)",
        operation_id="replicate_create_prediction",
        security="ApiKey",
        responses=_ERRORS,
        extensions=describe(body=PredictionRequest, example={"version": "glmq/miniature", "input": _EXAMPLE}, **_CREATED),
    )
    def create() -> Response:
        caller = authenticate(parts.callers, request, "submit")
        sent, asked = _read(PredictionRequest)
        check_version(parts.model.get(), asked.version)
        return _create(parts, caller, "POST /v1/predictions", sent, asked)

    @replicate.post("/v1/models/<owner>/<name>/predictions")
    @replicate.output(
        PredictionAnswer, status_code=201, description="The prediction; `starting` if it did not end while it was waited for."
    )
    @replicate.doc(
        summary="Create a prediction of a model (Replicate)",
        operation_id="replicate_create_model_prediction",
        security="ApiKey",
        responses=_ERRORS,
        extensions=describe(body=ModelPredictionRequest, example={"input": _EXAMPLE}, **_CREATED),
    )
    def create_of_model(owner: str, name: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        check_model(parts.model.get(), owner, name)
        sent, asked = _read(ModelPredictionRequest)
        return _create(parts, caller, "POST /v1/models/predictions", sent, asked)

    @replicate.get("/v1/predictions")
    @replicate.output(PredictionListAnswer, description="A page of predictions, newest first.")
    @replicate.doc(
        summary="List predictions (Replicate)",
        operation_id="replicate_list_predictions",
        security="ApiKey",
        responses=[400, 401, 403, 503],
        extensions=describe(query=PredictionsQuery),
    )
    def list_page() -> Response:
        caller = authenticate(parts.callers, request, "read")
        return jsonify(_list(parts, caller, read_query(request.args, PredictionsQuery).cursor))

    @replicate.get("/v1/predictions/<job_id>")
    @replicate.output(PredictionAnswer, description="The prediction.")
    @replicate.doc(
        summary="Get a prediction (Replicate)",
        operation_id="replicate_get_prediction",
        security="ApiKey",
        responses=[401, 403, 404, 410, 503],
        extensions=describe(headers={"200": ("Retry-After",)}),
    )
    def get_one(job_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        document = find_job(parts, caller, job_id)
        response = jsonify(_shown(parts, caller, [document])[0])
        if not has_ended(document):
            response.headers["Retry-After"] = str(retry_after_s(parts, document))
        return response

    @replicate.post("/v1/predictions/<job_id>/cancel")
    @replicate.output(PredictionAnswer, description="The prediction, canceled now or over before.")
    @replicate.doc(
        summary="Cancel a prediction (Replicate)",
        operation_id="replicate_cancel_prediction",
        security="ApiKey",
        responses=[401, 403, 404, 410, 503],
    )
    def cancel_one(job_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        try:
            cancel_job(parts, caller, job_id)
        except RequestError as error:
            # Whoever cancels what is over has what it wants; clients of this kind take an error for a failure.
            if error.code != "already_terminal":
                raise
        return jsonify(_shown(parts, caller, [find_job(parts, caller, job_id)])[0])

    @replicate.get("/v1/predictions/<job_id>/stream")
    @replicate.doc(
        summary="Stream a prediction (Replicate)",
        description="By an API key, or by the token of `urls.stream`.",
        operation_id="replicate_stream_prediction",
        security="ApiKey",
        responses=[200, 401, 403, 404, 410, 503],
        extensions=describe(
            content={"200": {MEDIA_TYPE: STREAM_SCHEMA}},
            stream_example="event: output\nid: 1\ndata: https://glmq.example/file.png\n\nevent: done\nid: 2\ndata: {}\n\n",
            descriptions={"200": "Events: `output`, `logs`, `error`, `done`."},
        ),
    )
    def stream_one(job_id: str) -> Response:
        caller = _stream_caller(parts, job_id)
        find_job(parts, caller, job_id)
        if request.method == "HEAD":
            # Its body is not sent: it need not take a place.
            return Response(mimetype=MEDIA_TYPE)
        source = PredictionEvents(parts, caller, job_id, parts.base_url())
        pace = Pace(source.LOOK_S, parts.settings.stream_heartbeat_s, parts.settings.stream_s)
        return stream_response(EventStream(parts.waiting, caller.tenant_id, job_id, source.frames, pace))

    @replicate.get("/v1/models/<owner>/<name>")
    @replicate.output(HostedModelAnswer, description="The model.")
    @replicate.doc(summary="Get a model (Replicate)", operation_id="replicate_get_model", security="ApiKey", responses=[401, 403, 404, 503])
    def get_model(owner: str, name: str) -> Response:
        authenticate(parts.callers, request, "read")
        info = parts.model.get()
        check_model(info, owner, name)
        return jsonify(model_document(parts, info, parts.base_url()))

    @replicate.get("/v1/models/<owner>/<name>/versions")
    @replicate.output(VersionListAnswer, description="The loaded version.")
    @replicate.doc(
        summary="List versions (Replicate)", operation_id="replicate_list_versions", security="ApiKey", responses=[401, 403, 404, 503]
    )
    def list_versions(owner: str, name: str) -> Response:
        authenticate(parts.callers, request, "read")
        info = parts.model.get()
        check_model(info, owner, name)
        return jsonify({"previous": None, "next": None, "results": [version_document(parts, info)]})

    @replicate.get("/v1/models/<owner>/<name>/versions/<version>")
    @replicate.output(VersionAnswer, description="The version.")
    @replicate.doc(
        summary="Get a version (Replicate)", operation_id="replicate_get_version", security="ApiKey", responses=[401, 403, 404, 503]
    )
    def get_version(owner: str, name: str, version: str) -> Response:
        authenticate(parts.callers, request, "read")
        info = parts.model.get()
        check_model(info, owner, name)
        found = version_document(parts, info)
        if version not in (found["id"], info.revision):
            raise RequestError("not_found", f"there is no such version; there is {found['id']}")
        return jsonify(found)

    return replicate


def _read(model: type[Asked]) -> tuple[dict[str, Any], Asked]:
    sent = read_json(request, MAX_JSON_BYTES)
    # Clients send what was not given as null.
    given = {name: value for name, value in sent.items() if value is not None}
    if isinstance(given.get("input"), dict):
        given["input"] = {name: value for name, value in given["input"].items() if value is not None}
    return given, validated(model, given)


def _create(parts: Parts, caller: Caller, route: str, sent: dict[str, Any], asked: ModelPredictionRequest) -> Response:
    prefer = parse_prefer(request.headers.getlist("Prefer"))
    deadline = deadline_of(request.headers.get("Cancel-After"), datetime.now(UTC))
    native = native_request(asked, parts.model.get(), parts.base_url(), deadline)
    key = parse_key(request.headers.get("Idempotency-Key"))
    origin = Origin(route, RequestBody(sent), None, g.began, {"name": DIALECT, "input": echoed_input(sent["input"])})
    try:
        submitted = submit_job(parts, caller, native, key, origin)
    except InvalidFieldsError as error:
        raise as_sent(error, asked) from None
    applied = prefer.applied
    try:
        document = wait_for_job(parts, caller, submitted.job_id, prefer.wait_s)
    except NoPlaceError:
        document, applied = find_job(parts, caller, submitted.job_id), "respond-async"
    [shown] = _shown(parts, caller, [document])
    if not has_ended(document):
        # Clients that waited take any other status than this one for an end.
        shown["status"] = "starting"
    response = jsonify(shown)
    response.status_code = 201
    response.headers["Location"] = f"/v1/predictions/{submitted.job_id}"
    if applied is not None:
        response.headers["Preference-Applied"] = applied
    if submitted.is_replay:
        response.headers["Idempotency-Replayed"] = "true"
    return response


def _shown(parts: Parts, caller: Caller, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Jobs as predictions."""
    dialects = get_dialects(parts.db, caller.tenant_id, [document["id"] for document in documents])
    expires_at = int(time.time()) + STREAM_S
    shown = []
    for document in documents:
        token = stream_token(parts.sealer.tag, caller.tenant_id, document["id"], expires_at)
        shown.append(prediction(public_document(parts, document), dialects.get(document["id"]), parts.base_url(), token))
    return shown


def _list(parts: Parts, caller: Caller, cursor: str | None) -> dict[str, Any]:
    found = _CURSOR.fullmatch(cursor or "")
    if cursor and found is None:
        raise RequestError("invalid_request", "cursor: should be taken from the links of another page", "cursor")
    is_back = found is not None and found[1] == "before"
    page = Page(_PAGE, found[2] if found else None, not is_back)
    documents, has_more = list_jobs(parts.db, caller.tenant_id, JobFilter(), page, parts.live.read_progress)
    if is_back:
        documents.reverse()

    def link(direction: str, document: dict[str, Any]) -> str:
        return f"{parts.base_url()}/v1/predictions?cursor={direction}_{document['id']}"

    has_newer = has_more if is_back else found is not None
    has_older = True if is_back else has_more
    return {
        "previous": link("before", documents[0]) if documents and has_newer else None,
        "next": link("after", documents[-1]) if documents and has_older else None,
        "results": _shown(parts, caller, documents),
    }


def _stream_caller(parts: Parts, job_id: str) -> Caller:
    """Who may see the stream: the holder of its token, which Node's client sends instead of a key, or of an API key."""
    token = request.args.get("token")
    if token is not None and is_id(job_id, "job"):
        tenant_id = tenant_of_token(parts.sealer.tag, token, job_id, time.time())
        if tenant_id is not None:
            return Caller(tenant_id, "", frozenset({"read"}))
    return authenticate(parts.callers, request, "read")
