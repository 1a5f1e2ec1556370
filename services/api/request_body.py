"""The body and the query of a request, read with limits into plain values. Knows HTTP; knows no field."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from flask import Request
from pydantic import BaseModel
from werkzeug.datastructures import FileStorage, MultiDict

from services.api.field_errors import FieldError, InvalidFieldsError, validated
from services.api.strict_json import check_text, parse_object
from shared.errors import RequestError

Model = TypeVar("Model", bound=BaseModel)

MAX_JSON_BYTES = 1 << 20
"""The largest legal job, all of it in \\u escapes, has a fifth of this."""

_IMAGE_PARTS = ("image", "image[]")
_METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_LISTS = ("status", "types")


@dataclass(frozen=True)
class Upload:
    """A file of a multipart body. `param` names it in errors: `image.0` is the first one sent."""

    param: str
    data: bytes


@dataclass(frozen=True)
class RequestBody:
    """
    What a client sent: the JSON, and the files beside it.

    `order`: the reference images as they should be, by index among those of the JSON and, after them, the files. None: as they are.
    """

    fields: dict[str, Any]
    uploads: tuple[Upload, ...] = ()
    order: tuple[int, ...] | None = None


def read_body(request: Request) -> RequestBody:
    """
    Read a JSON body, or a multipart one with a part `request` (the JSON) and parts `image`.

    Raises:
        RequestError: `unsupported_media`, `payload_too_large` or `invalid_request`.
        RequestEntityTooLarge, ClientDisconnected: from Werkzeug.
    """
    refuse_compression(request)
    if request.mimetype == "multipart/form-data":
        return _read_multipart(request)
    if request.mimetype != "application/json":
        sent = f" (got {request.mimetype[:60]})" if request.mimetype else " (none was sent)"
        raise RequestError("unsupported_media", f"Content-Type must be application/json or multipart/form-data{sent}")
    return RequestBody(_read_json(request, MAX_JSON_BYTES))


def read_json(request: Request, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """
    Read a JSON body.

    Raises: as `read_body`, which also takes files.
    """
    refuse_compression(request)
    if request.mimetype != "application/json":
        sent = request.mimetype[:60] or "none"
        raise RequestError("unsupported_media", f"Content-Type must be application/json here (got {sent})")
    return _read_json(request, max_bytes)


def refuse_compression(request: Request) -> None:
    """
    Raises:
        RequestError: `unsupported_media`.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestError("unsupported_media", "the body must not be compressed", None)


def _read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    # Not the limit of uploads: 64 MiB of JSON would cost seconds to parse.
    limit = min(max_bytes, request.max_content_length or max_bytes)
    # One byte more: a body in chunks is cut at Werkzeug's limit without a word, and could still be JSON.
    request.max_content_length = limit + 1
    return _parse(request.get_data(), limit)


def read_optional_json(request: Request) -> dict[str, Any]:
    """Read a JSON body; without any body it is empty. Raises: as `read_json`."""
    is_there = request.content_length or "Transfer-Encoding" in request.headers
    return read_json(request) if is_there else {}


def read_fields(request: Request, model: type[Model]) -> Model:
    """
    Read a JSON body as `model`.

    Raises:
        InvalidFieldsError: names every wrong field.
        Others: as `read_body`.
    """
    sent = read_json(request)
    return validated(model, sent)


def read_query(arguments: MultiDict[str, str], model: type[Model]) -> Model:
    """
    Read a query string as `model`; `metadata[key]=value` makes a dict, `status` a list.

    Raises:
        RequestError: an unknown, doubled or wrong argument.
    """
    try:
        return validated(model, _arguments(arguments))
    except InvalidFieldsError as error:
        raise InvalidFieldsError([replace(wrong, is_argument=True) for wrong in error.errors]) from None
    except RequestError as error:
        raise InvalidFieldsError([FieldError((error.param or "",), error.code, error.detail, error.code, is_argument=True)]) from None


def _arguments(arguments: MultiDict[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, values in arguments.lists():
        if name in _LISTS:
            fields[name] = [part for value in values for part in value.split(",")]
            continue
        if len(values) > 1:
            raise RequestError("invalid_request", f"{name[:60]} was given {len(values)} times", name[:60])
        if name == "metadata":
            raise RequestError("invalid_request", "metadata: should be written as metadata[key]=value", "metadata")
        key = _METADATA.fullmatch(name)
        if key:
            fields.setdefault("metadata", {})[key[1]] = values[0]
        else:
            fields[name] = values[0]
    check_text(fields)
    return fields


def _parse(data: bytes, limit: int) -> dict[str, Any]:
    if len(data) > limit:
        raise RequestError("payload_too_large", f"the JSON has more than {limit} bytes")
    return parse_object(data)


def _read_multipart(request: Request) -> RequestBody:
    form, files = request.form, request.files
    unknown = [name for name in [*form, *files] if name not in ("request", *_IMAGE_PARTS)]
    if unknown:
        name = unknown[0][:60]
        raise RequestError("invalid_request", f"unknown part {name}; a multipart body has the parts request and image", name)
    if any(name in form for name in _IMAGE_PARTS):
        raise RequestError("invalid_request", "image: must be sent as a file, with a file name", "image")
    # As a field or as a file: `curl -F request=@job.json` sends a file.
    documents = [value.encode() for value in form.getlist("request")]
    documents += [file.stream.read(MAX_JSON_BYTES + 1) for file in files.getlist("request")]
    if len(documents) != 1:
        raise RequestError("invalid_request", f"a multipart body has one part request, with the JSON (got {len(documents)})", "request")
    return RequestBody(_parse(documents[0], MAX_JSON_BYTES), tuple(_uploads(files)))


def _uploads(files: MultiDict[str, FileStorage]) -> list[Upload]:
    sent = [file for name, file in files.items(multi=True) if name in _IMAGE_PARTS]
    return [Upload(f"image.{index}", file.stream.read()) for index, file in enumerate(sent)]
