"""What a batch of this interface is made of: the request, and the file that its lines are in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.api.fields import MAX_METADATA, MetadataKey, MetadataValue, Sent
from services.api.openai.expiry import ExpiresAfter
from services.api.parts import Parts
from shared.errors import RequestError
from shared.ids import is_id
from shared.lifecycle.files import PlainFile, get_file
from shared.lifecycle.tenants import Caller


class BatchRequest(Sent):
    """Requests that are run as one."""

    input_file_id: str = Field(max_length=64, description="A file of the purpose `batch`: one request a line, at most 50,000.")
    endpoint: Literal["/v1/images/generations", "/v1/images/edits"]
    completion_window: Literal["24h"] = Field(description="What is not done by then expires.")
    metadata: dict[MetadataKey, MetadataValue] = Field(default={}, max_length=MAX_METADATA)
    output_expires_after: ExpiresAfter | None = None


def find_input(parts: Parts, caller: Caller, file_id: str) -> PlainFile:
    """
    The file of a batch's lines.

    Raises:
        RequestError: it is none of the caller's, or for something else.
    """
    file = get_file(parts.db, caller.tenant_id, file_id) if is_id(file_id, "file") else None
    if file is None:
        raise RequestError("invalid_request", "input_file_id: names no file of yours", "input_file_id")
    if file.purpose != "batch":
        raise RequestError("invalid_request", f"input_file_id: the file's purpose is {file.purpose}, not batch", "input_file_id")
    return file
