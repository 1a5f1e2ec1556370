"""A job's document -> an OpenAI response, and the numbered events of its stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from services.api.openai.answers import Document, end_error, read_base64, reading_of, token_usage, unix
from services.api.parts import Parts
from services.api.sse import event_bytes
from shared.states import TERMINAL_JOB, JobStatus, Priority

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
_ERROR_CODES = {
    "unprocessable_prompt": "invalid_prompt",
    "content_rejected": "image_content_policy_violation",
    "invalid_image": "invalid_image",
    "input_fetch_failed": "failed_to_download_image",
}
"""Those that OpenAI's responses know; all others are `server_error`."""
_TIERS = {Priority.INTERACTIVE: "priority", Priority.STANDARD: "default", Priority.BULK: "flex"}
_MAX_PARTIALS = 3


def response_document(parts: Parts, document: Document, dialect: Mapping[str, Any], *, has_images: bool = True) -> dict[str, Any]:
    """The job as a response. `has_images`: with the pictures, or without them in the events before the last."""
    echo = dialect.get("request") or {}
    params = document["params"]
    status = _STATUSES[JobStatus(document["status"])]
    ended = document["status"] in TERMINAL_JOB
    usage = token_usage(document)
    error = None
    if status == "failed":
        reason = end_error(document)
        error = {"code": _ERROR_CODES.get(reason.code, "server_error"), "message": reason.detail}
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
        **reading_of(document),
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


class ResponseEvents:
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
                yield event_bytes(name, {"type": name, "sequence_number": number, **data()})

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
        yield first + 2 * count, name, lambda: {"response": response_document(self._parts, document, self._dialect)}

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
        return response_document(self._parts, document, self._dialect, has_images=False)
