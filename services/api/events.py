"""Events over HTTP: those of a job and those of a tenant, as a list or as a stream."""

from __future__ import annotations

import re
from functools import partial
from typing import Any
from urllib.parse import urlencode

from apiflask import APIBlueprint
from flask import Request, Response, jsonify, request

from services.api.auth import authenticate
from services.api.event_schemas import EventListAnswer, EventsQuery, JobEventsQuery
from services.api.job_access import find_job
from services.api.job_events import PROGRESS_S, JobEvents, TenantEvents, public_event
from services.api.list_answer import list_body
from services.api.parts import Parts
from services.api.request_body import read_query
from services.api.route_docs import describe
from services.api.sse import MEDIA_TYPE, STREAM_SCHEMA, EventStream, Pace, stream_response
from shared.errors import RequestError
from shared.lifecycle.events import EVENT_TYPES, JOB_ENDS, JOB_PROGRESS
from shared.lifecycle.feed import EventPage, kept_events, last_event, read_events
from shared.states import TERMINAL_JOB
from shared.webhooks import is_wanted

_DOCS: dict[str, Any] = {
    "query": EventsQuery,
    "request_headers": ("Last-Event-ID",),
    "content": {"200": {"application/json": EventListAnswer, MEDIA_TYPE: STREAM_SCHEMA}},
    "stream_example": (
        'retry: 2000\nevent: job.snapshot\ndata: {"object":"event","type":"job.snapshot",…}\n\n'
        'id: 18\nevent: job.started\ndata: {"id":"evt_…","object":"event","type":"job.started","seq":18,…}\n\n: hb\n\n'
    ),
    "headers": {"200": ("Link",)},
}


def events_blueprint(parts: Parts) -> APIBlueprint:
    """The routes that tell what happened."""
    events = APIBlueprint("events", __name__)

    @events.get("/v1/jobs/<job_id>/events")
    @events.doc(
        summary="List or stream the events of a job",
        operation_id="list_job_events",
        security="ApiKey",
        responses=[200, 204, 400, 401, 403, 404, 410, 503],
        extensions=describe(
            **{**_DOCS, "query": JobEventsQuery},
            descriptions={"200": "Events.", "204": "The job has ended, and the stream's client knows it."},
        ),
    )
    def list_job_events(job_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        query = read_query(request.args, JobEventsQuery)
        types = _types(query)
        document = find_job(parts, caller, job_id)
        kept = kept_events(parts.db, caller.tenant_id)
        if not _wants_stream(request):
            if query.types and not types:
                raise RequestError("invalid_request", f"types: {JOB_PROGRESS} is not kept; only a stream tells it", "types")
            # Absent, from the first one: a job has few.
            after = _checked(query.after, kept.newest, kept.oldest) if query.after else kept.oldest - 1
            return _list_response(parts, read_events(parts.db, caller.tenant_id, after, query.limit, types, job_id))
        cursor, is_number = _cursor(request, query)
        is_lost = not is_number or (cursor is not None and not kept.knows(cursor))
        known = None if is_lost else cursor
        is_over = document["status"] in TERMINAL_JOB
        if known is not None and is_over and known >= last_event(parts.db, caller.tenant_id, job_id, ends_only=True):
            # This is what stops an EventSource: it comes back after every end.
            return Response(status=204)
        chosen = types if types or not query.types else JOB_ENDS
        source = JobEvents(parts, caller, job_id, parts.base_url(), known, is_lost, chosen, query.tells_progress())
        return _stream(parts, caller.tenant_id, job_id, source)

    @events.get("/v1/events")
    @events.doc(
        summary="List or stream what happened to all your jobs",
        operation_id="list_events",
        security="ApiKey",
        responses=[200, 400, 401, 403, 410, 503],
        extensions=describe(**_DOCS, descriptions={"200": "Events.", "410": "Events after this number are not kept any more."}),
    )
    def list_events() -> Response:
        caller = authenticate(parts.callers, request, "read")
        query = read_query(request.args, EventsQuery)
        kept = kept_events(parts.db, caller.tenant_id)
        if not _wants_stream(request):
            after = kept.oldest - 1 if query.after is None else _checked(query.after, kept.newest, kept.oldest)
            return _list_response(parts, read_events(parts.db, caller.tenant_id, after, query.limit, _types(query)))
        cursor, is_number = _cursor(request, query)
        if cursor is None and is_number:
            cursor = kept.newest
        is_lost = cursor is None or not kept.knows(cursor)
        begin = kept.oldest - 1 if cursor is None or is_lost else cursor
        source = TenantEvents(parts, caller, parts.base_url(), begin, is_lost, _types(query))
        return _stream(parts, caller.tenant_id, caller.tenant_id, source)

    return events


def _stream(parts: Parts, tenant_id: str, watched: str, source: JobEvents | TenantEvents) -> Response:
    if request.method == "HEAD":
        # Its body is not sent: it need not take a place.
        return Response(mimetype=MEDIA_TYPE)
    settings = parts.settings
    pace = Pace(PROGRESS_S, settings.stream_heartbeat_s, settings.stream_s)
    return stream_response(EventStream(parts.waiting, tenant_id, watched, source.frames, pace))


def _wants_stream(request: Request) -> bool:
    return request.accept_mimetypes.best_match(["application/json", MEDIA_TYPE]) == MEDIA_TYPE


def _cursor(request: Request, query: EventsQuery) -> tuple[int | None, bool]:
    """
    Where a stream goes on, and whether that is a number at all.

    The header before the argument: a client that reconnects asks the URL it began with once more.
    """
    header = request.headers.get("Last-Event-ID", "").strip()
    if not header:
        return query.after, True
    return (int(header), True) if re.fullmatch("[0-9]{1,18}", header, re.ASCII) else (None, False)


def _checked(after: int, newest: int, oldest: int) -> int:
    if after > newest:
        raise RequestError("invalid_request", f"after: no event has this number yet; the last one is {newest}", "after")
    if after < oldest - 1:
        raise RequestError("gone", f"after: the oldest event that is still kept is {oldest}; events before it are lost to you", "after")
    return after


def _types(query: EventsQuery) -> tuple[str, ...]:
    return tuple(name for name in EVENT_TYPES if is_wanted(name, query.types))


def _list_response(parts: Parts, page: EventPage) -> Response:
    data = list(map(partial(public_event, parts, parts.base_url()), page.events))
    response = jsonify({**list_body(data, page.has_more), "next_after": page.looked_to})
    response.vary.add("Accept")
    if page.has_more:
        kept = [(name, value) for name, value in request.args.items(multi=True) if name != "after"]
        response.headers["Link"] = f'<{parts.base_url()}{request.path}?{urlencode([*kept, ("after", page.looked_to)])}>; rel="next"'
    return response
