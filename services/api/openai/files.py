"""`/v1/files`: OpenAI's file routes. Files lie in S3 as they were sent; what is in them is judged by whoever uses them."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from apiflask import APIBlueprint
from flask import Request, Response, jsonify, request
from pydantic import BaseModel, Field
from werkzeug.datastructures import FileStorage

from services.api.auth import authenticate
from services.api.field_errors import validated
from services.api.fields import QueryInt, Sent
from services.api.list_answer import ListAnswer
from services.api.openai.answers import unix
from services.api.openai.batch_files import read_output
from services.api.openai.expiry import ExpiresAfter
from services.api.openai.headers import tell_time
from services.api.openai.translate import nested_fields
from services.api.pages import asked_page, page_response
from services.api.parts import Parts
from services.api.replicate.files import is_content_upload, store_content
from services.api.replicate.schemas import UploadedFileAnswer
from services.api.request_body import read_query, refuse_compression
from services.api.route_docs import describe
from services.api.strict_json import check_text
from shared.errors import RequestError
from shared.ids import is_id, new_id
from shared.lifecycle.files import NewFile, PlainFile, add_file, delete_file, get_file, list_files
from shared.lifecycle.tenants import Caller

_MAX_NAME = 255
_CONTENT = {"application/octet-stream": {"type": "string", "contentMediaType": "application/octet-stream"}}
_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}

Purpose = Literal["batch", "vision", "user_data", "assistants"]
"""Of uploads; batches make files of the purpose `batch_output`."""


class FileRequest(Sent):
    """What is said of an upload."""

    purpose: Purpose = Field(description="`batch` for requests, the others for pictures.")
    expires_after: ExpiresAfter | None = None


class FileQuery(Sent):
    """Which files to list."""

    limit: QueryInt = Field(default=100, ge=1, le=10_000, description="How many on a page.")
    after: str | None = Field(default=None, max_length=64, description="Id of the last one of the page before.")
    order: Literal["asc", "desc"] = Field(default="desc", description="By time of creation.")
    purpose: Literal["batch", "batch_output", "vision", "user_data", "assistants"] | None = None


class FileAnswer(BaseModel):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None


class FileListAnswer(ListAnswer[FileAnswer]):
    """A page of files."""


class FileDeletedAnswer(BaseModel):
    """The file is gone."""

    id: str
    object: Literal["file"]
    deleted: bool


def files_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/files`."""
    files = APIBlueprint("openai_files", __name__)
    tell_time(files)

    @files.post("/v1/files")
    @files.output(FileAnswer)
    @files.doc(
        summary="Upload a file (OpenAI)",
        operation_id="openai_upload_file",
        security="ApiKey",
        responses=[201, 400, 401, 403, 413, 415, 503],
        extensions=describe(
            form={
                "file": _FILE,
                "purpose": {"type": "string", "enum": ["batch", "vision", "user_data", "assistants"]},
                "content": {**_FILE, "description": "Instead of file and purpose, from Replicate's clients."},
                "metadata": {"type": "object", "description": "Beside `content`."},
            },
            form_example={"file": "(the bytes of requests.jsonl)", "purpose": "batch"},
            content={"201": {"application/json": UploadedFileAnswer}},
            descriptions={"201": "The file, in Replicate's words, if it was sent as `content`."},
        ),
    )
    def upload() -> Response:
        caller = authenticate(parts.callers, request, "submit")
        if is_content_upload(request):
            return store_content(parts, caller, request, _safe_name(request.files["content"].filename or "upload"))
        asked, file = _read_upload(request)
        data = file.stream.read()
        file_id = new_id("file")
        key = f"t/{caller.tenant_id}/files/{file_id}"
        content_type = "application/jsonl" if asked.purpose == "batch" else "application/octet-stream"
        # The object before the row: a row always has its object.
        parts.storage.put(key, data, content_type)
        new = NewFile(
            id=file_id,
            tenant_id=caller.tenant_id,
            purpose=asked.purpose,
            filename=_safe_name(file.filename or "upload"),
            storage_key=key,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            content_type=content_type,
            expires_s=asked.expires_after.seconds if asked.expires_after else None,
        )
        return jsonify(file_document(add_file(parts.db, new)))

    @files.get("/v1/files")
    @files.output(FileListAnswer)
    @files.doc(
        summary="List files (OpenAI)",
        operation_id="openai_list_files",
        security="ApiKey",
        responses=[400, 401, 403, 503],
        extensions=describe(query=FileQuery, headers={"200": ("Link",)}),
    )
    def list_page() -> Response:
        caller = authenticate(parts.callers, request, "read")
        query = read_query(request.args, FileQuery)
        page = asked_page(query.limit, query.after, query.order, "file", "file")
        found, has_more = list_files(parts.db, caller.tenant_id, query.purpose, page)
        return page_response(parts, [file_document(file) for file in found], has_more)

    @files.get("/v1/files/<file_id>")
    @files.output(FileAnswer)
    @files.doc(summary="Get a file (OpenAI)", operation_id="openai_get_file", security="ApiKey", responses=[401, 403, 404, 503])
    def get_one(file_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        return jsonify(file_document(find_file(parts, caller, file_id)))

    @files.get("/v1/files/<file_id>/content")
    @files.doc(
        summary="Get what is in a file (OpenAI)",
        operation_id="openai_get_file_content",
        security="ApiKey",
        responses=[200, 401, 403, 404, 503],
        extensions=describe(content={"200": _CONTENT}, descriptions={"200": "The bytes of the file."}),
    )
    def get_content(file_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        file = find_file(parts, caller, file_id)
        data = parts.storage.get(file.storage_key)
        # As a download, whatever is in it: it came from outside.
        headers = {"Content-Disposition": f'attachment; filename="{file.filename}"'}
        body = read_output(parts, data) if file.purpose == "batch_output" else data
        return Response(body, mimetype="application/octet-stream", headers=headers)

    @files.delete("/v1/files/<file_id>")
    @files.output(FileDeletedAnswer)
    @files.doc(summary="Delete a file (OpenAI)", operation_id="openai_delete_file", security="ApiKey", responses=[401, 403, 404, 503])
    def delete_one(file_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        if not (is_id(file_id, "file") and delete_file(parts.db, caller.tenant_id, file_id)):
            raise RequestError("not_found", "there is no such file")
        return jsonify({"id": file_id, "object": "file", "deleted": True})

    return files


def find_file(parts: Parts, caller: Caller, file_id: str) -> PlainFile:
    """
    A file of the caller's.

    Raises:
        RequestError: `not_found`: malformed, unknown and foreign ids are not told apart.
    """
    file = get_file(parts.db, caller.tenant_id, file_id) if is_id(file_id, "file") else None
    if file is None:
        raise RequestError("not_found", "there is no such file")
    return file


def file_document(file: PlainFile) -> dict[str, Any]:
    """The file as OpenAI's clients read it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": unix(file.created_at),
        "expires_at": unix(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def _read_upload(request: Request) -> tuple[FileRequest, FileStorage]:
    refuse_compression(request)
    if request.mimetype != "multipart/form-data":
        raise RequestError("unsupported_media", f"Content-Type must be multipart/form-data here (got {request.mimetype[:60] or 'none'})")
    fields = nested_fields(list(request.form.items(multi=True)), (), ())
    check_text(fields)
    unknown = [name for name in request.files if name != "file"]
    if unknown:
        raise RequestError("invalid_request", f"unknown file {unknown[0][:60]}; the upload is called file", unknown[0][:60])
    sent = request.files.getlist("file")
    if len(sent) != 1:
        raise RequestError("invalid_request", f"file: one file is to be uploaded (got {len(sent)})", "file")
    expires = fields.get("expires_after")
    if isinstance(expires, dict) and str(expires.get("seconds", "")).isdecimal() and len(expires["seconds"]) < 12:
        fields["expires_after"] = {**expires, "seconds": int(expires["seconds"])}
    return validated(FileRequest, fields), sent[0]


def _safe_name(name: str) -> str:
    """A name that neither a header nor a shell nor a file system takes amiss."""
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._- ()") else "_" for letter in last)
    return kept[:_MAX_NAME].strip() or "upload"
