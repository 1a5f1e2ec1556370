"""
Uploads as Replicate's clients send them: the same path as OpenAI's, `POST /v1/files`, but a part `content` and another answer.

The file is one like any other; what its `urls.get` is used for is the input of a prediction.
"""

from __future__ import annotations

import hashlib
from typing import Any

from flask import Request, Response, jsonify

from services.api.parts import Parts
from services.api.request_body import MAX_JSON_BYTES
from services.api.strict_json import parse_object
from shared.errors import RequestError
from shared.ids import new_id
from shared.job_document import timestamp
from shared.lifecycle.files import NewFile, PlainFile, add_file
from shared.lifecycle.tenants import Caller

_CONTENT_TYPE_CHARS = 100


def is_content_upload(request: Request) -> bool:
    """Does the request come from one of Replicate's clients?"""
    return request.mimetype == "multipart/form-data" and "content" in request.files


def store_content(parts: Parts, caller: Caller, request: Request, filename: str) -> Response:
    """
    Store the upload.

    Args:
        filename: of the part `content`, made safe.
    Raises:
        RequestError: there is anything but one file, and metadata that is a JSON object.
    """
    unknown = [name for name in (*request.form, *request.files) if name not in ("content", "metadata", "filename", "type")]
    if unknown:
        raise RequestError("invalid_request", f"unknown part {unknown[0][:60]}; the upload is called content", unknown[0][:60])
    sent = request.files.getlist("content")
    if len(sent) != 1:
        raise RequestError("invalid_request", f"content: one file is to be uploaded (got {len(sent)})", "content")
    metadata = _metadata(request)
    data = sent[0].stream.read()
    file_id = new_id("file")
    key = f"t/{caller.tenant_id}/files/{file_id}"
    # The object before the row: a row always has its object.
    parts.storage.put(key, data, "application/octet-stream")
    new = NewFile(
        id=file_id,
        tenant_id=caller.tenant_id,
        purpose="user_data",
        filename=filename,
        storage_key=key,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        content_type="application/octet-stream",
    )
    content_type = sent[0].mimetype[:_CONTENT_TYPE_CHARS] or "application/octet-stream"
    response = jsonify(_document(add_file(parts.db, new), new.sha256, content_type, metadata, parts.base_url()))
    response.status_code = 201
    return response


def _metadata(request: Request) -> dict[str, Any]:
    # As a field by Python's client, as a file by Node's.
    texts = [text.encode() for text in request.form.getlist("metadata")]
    texts += [file.stream.read(MAX_JSON_BYTES + 1) for file in request.files.getlist("metadata")]
    if not texts:
        return {}
    if len(texts) > 1 or len(texts[0]) > MAX_JSON_BYTES:
        raise RequestError("invalid_request", "metadata: should be one JSON object", "metadata")
    return parse_object(texts[0])


def _document(file: PlainFile, sha256: str, content_type: str, metadata: dict[str, Any], base_url: str) -> dict[str, Any]:
    return {
        "id": file.id,
        "name": file.filename,
        "content_type": content_type,
        "size": file.size_bytes,
        "etag": sha256,
        "checksums": {"sha256": sha256},
        # Echoed, and not kept: nothing of ours reads it.
        "metadata": metadata,
        "created_at": timestamp(file.created_at),
        "expires_at": timestamp(file.expires_at),
        "urls": {"get": f"{base_url}/v1/files/{file.id}"},
    }
