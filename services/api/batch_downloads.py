"""What has become of a batch, handed out whole: as pages, as lines, and as a zip of its pictures. Whatever its size, a little at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from apiflask import APIBlueprint
from flask import Response, request

from services.api.auth import authenticate
from services.api.batch_answers import ResultListAnswer, find_batch, result_document
from services.api.batch_schemas import ResultQuery
from services.api.batch_zip import zip_pictures
from services.api.pages import asked_page, page_response
from services.api.parts import Parts
from services.api.request_body import read_query
from services.api.route_docs import describe
from shared.lifecycle.batch_reads import ENDED, Outcome, ended_outcomes, list_outcomes

_AT_ONCE = 200
"""Items that are in memory."""
_LINES = "application/jsonl"
_ZIP = "application/zip"
_TEXT = {"type": "string", "contentMediaType": _LINES}
_BYTES = {"type": "string", "contentMediaType": _ZIP}


def batch_downloads_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/batches/{id}` that hand out results."""
    downloads = APIBlueprint("batch_downloads", __name__)

    @downloads.get("/v1/batches/<batch_id>/results")
    @downloads.output(ResultListAnswer, description="A page of results.")
    @downloads.doc(
        summary="List the results of a batch",
        description="Items that have ended, well or not, with links to their images. While the batch goes on there come more.",
        operation_id="list_batch_results",
        security="ApiKey",
        responses=[400, 401, 403, 404, 503],
        extensions=describe(query=ResultQuery, headers={"200": ("Link",)}),
    )
    def list_page(batch_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        batch = find_batch(parts, caller, batch_id)
        query = read_query(request.args, ResultQuery)
        page = asked_page(query.limit, query.after, query.order, "itm", "batch item")
        found, has_more = list_outcomes(parts.db, batch.id, query.status or ENDED, page)
        base_url = parts.base_url()
        return page_response(parts, [result_document(batch.id, outcome, base_url, parts) for outcome in found], has_more)

    @downloads.get("/v1/batches/<batch_id>/results.jsonl")
    @downloads.doc(
        summary="Download the results of a batch",
        description="All items that have ended, a JSON object a line, in the order of their lines.",
        operation_id="download_batch_results",
        security="ApiKey",
        responses=[200, 401, 403, 404, 503],
        extensions=describe(
            content={"200": {_LINES: _TEXT}},
            descriptions={"200": "A line for each item, of the form of the list's entries (`ResultAnswer`)."},
        ),
    )
    def lines(batch_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        batch = find_batch(parts, caller, batch_id)
        base_url = parts.base_url()

        def write() -> Iterator[bytes]:
            for outcome in _ended(parts, batch.id):
                yield _line(result_document(batch.id, outcome, base_url, parts))

        return Response(write(), mimetype=_LINES, headers=_named(f"{batch.id}.jsonl"))

    def add_export(path: str, operation_id: str) -> None:
        @downloads.get(f"/v1/batches/<batch_id>/{path}", endpoint=operation_id)
        @downloads.doc(
            summary="Download the images of a batch",
            description="A zip of the images of all items that have succeeded, and of their renditions, named by `custom_id`, index and "
            "rendition; and `manifest.jsonl`, which says what each item has become and which files are its own.",
            operation_id=operation_id,
            security="ApiKey",
            responses=[200, 401, 403, 404, 503],
            extensions=describe(content={"200": {_ZIP: _BYTES}}, descriptions={"200": "The zip, made while it is being sent."}),
        )
        def export(batch_id: str) -> Response:
            caller = authenticate(parts.callers, request, "read")
            batch = find_batch(parts, caller, batch_id)
            return Response(zip_pictures(parts, _ended(parts, batch.id)), mimetype=_ZIP, headers=_named(f"{batch.id}.zip"))

    add_export("export", "export_batch")
    add_export("export.zip", "export_batch_zip")
    return downloads


def _ended(parts: Parts, batch_id: str) -> Iterator[Outcome]:
    line = 0
    while True:
        # Each page in its turn: a download of hours is work of seconds, now and then.
        with parts.waiting.turn():
            page = ended_outcomes(parts.db, batch_id, line, _AT_ONCE)
        yield from page
        if len(page) < _AT_ONCE:
            return
        line = page[-1].line


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _named(filename: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{filename}"'}
