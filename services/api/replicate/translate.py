"""
From Replicate's words to ours: input, webhook filters, images and Cancel-After. Pure, but for the clock that `deadline_of` is given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from services.api.field_errors import FieldError, InvalidFieldsError, Path
from services.api.reference_images import SentImage, is_data_url, place_images
from services.api.replicate.schemas import MAX_IMAGES, ModelPredictionRequest, PredictionInput
from services.api.request_body import RequestBody
from shared.checkpoint import ModelInfo
from shared.errors import RequestError
from shared.grid import TOKEN_PX
from shared.lifecycle.events import JOB_ENDS, JOB_EVENTS, JOB_PROGRESS

_DURATION = re.compile(r"(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,7})s)?", re.ASCII)
CANCEL_AFTER = "Cancel-After"
_MAX_CANCEL_S = 30 * 86_400
_ECHOED = 200
"""Characters that the prediction's input repeats of a picture that was sent as text."""

_EVENTS = {
    "start": ("job.started",),
    "output": ("job.tokens_ready", "job.succeeded"),
    "logs": ("job.draft_ready", "job.preview", JOB_PROGRESS),
    "completed": JOB_ENDS,
}
"""What of a job's life each word of `webhook_events_filter` stands for."""

_NATIVE = {
    "num_outputs": "n",
    "num_inference_steps": "steps",
    "output_format": "format",
}
_NAMES = {native: name for name, native in _NATIVE.items()} | {"format_options": "output_quality"}
_SAME = ("prompt", "text", "size", "width", "height", "seed", "guidance_scale", "temperature", "top_p", "quality")


def native_request(asked: ModelPredictionRequest, info: ModelInfo, base_url: str, deadline: datetime | None) -> RequestBody:
    """
    The job request that a prediction stands for.

    Raises:
        RequestError: an image cannot be read, or there are too many; or the size is named twice.
    """
    wanted = asked.input
    fields: dict[str, Any] = {name: value for name in _SAME if (value := getattr(wanted, name)) not in (None, [])}
    fields |= {native: value for name, native in _NATIVE.items() if (value := getattr(wanted, name)) is not None}
    fields["format"] = "jpeg" if wanted.output_format == "jpg" else wanted.output_format
    if wanted.output_quality is not None and wanted.output_format != "png":
        # Replicate counts from 0, encoders from 1.
        fields["format_options"] = {"quality": max(1, wanted.output_quality)}
    if wanted.aspect_ratio is not None:
        if any(name in fields for name in ("size", "width", "height")):
            raise RequestError("invalid_request", "input.aspect_ratio: give either aspect_ratio or an exact size", "input.aspect_ratio")
        fields["size"] = _size(wanted.aspect_ratio, info)
    if deadline is not None:
        fields["deadline"] = deadline.isoformat()
    if asked.webhook or asked.webhook_completed:
        fields["webhook"] = _webhook(asked)
    placed = place_images(_sent_images(wanted, base_url))
    return RequestBody({**fields, "images": placed.images}, placed.uploads, placed.order or None)


def echoed_input(sent: Mapping[str, Any]) -> dict[str, Any]:
    """The input as the prediction shows it: pictures that came as text are cut short."""
    return {name: [_cut(item) for item in value] if isinstance(value, list) else _cut(value) for name, value in sent.items()}


def as_sent(error: InvalidFieldsError, asked: ModelPredictionRequest) -> InvalidFieldsError:
    """The same errors under the names that the client used."""
    return InvalidFieldsError([_renamed(field, asked) for field in error.errors])


def deadline_of(header: str | None, now: datetime) -> datetime | None:
    """
    When `Cancel-After` says that the prediction is to end: seconds, or such as `90s`, `5m`, `1h30m`.

    Raises:
        RequestError: it cannot be read.
    """
    if header is None:
        return None
    text = header.strip()
    found = _DURATION.fullmatch(text if not text.isdecimal() else text + "s")
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found and text else (0, 0, 0)
    after_s = hours * 3600 + minutes * 60 + seconds
    if not 5 <= after_s <= _MAX_CANCEL_S:
        raise RequestError("invalid_request", f"{CANCEL_AFTER}: should be 5 seconds to 30 days, such as 90s, 5m or 1h30m", CANCEL_AFTER)
    return now + timedelta(seconds=after_s)


def _webhook(asked: ModelPredictionRequest) -> dict[str, Any]:
    if not asked.webhook:
        return {"url": asked.webhook_completed, "events": list(JOB_ENDS)}
    # Progress comes twice a second: only to those who ask for it by name.
    words = asked.webhook_events_filter or _EVENTS
    chosen = {name for word in words for name in _EVENTS[word]} - (set() if asked.webhook_events_filter else {JOB_PROGRESS})
    return {"url": asked.webhook, "events": [name for name in (*JOB_EVENTS, JOB_PROGRESS) if name in chosen]}


def _size(aspect_ratio: str, info: ModelInfo) -> str:
    if aspect_ratio == "match_input_image":
        return "auto"
    across, _, down = aspect_ratio.partition(":")
    area = info.default_height_px * info.default_width_px
    ratio = int(across) / int(down)
    sides = (math.sqrt(area * ratio), math.sqrt(area / ratio))
    width_px, height_px = (min(max(round(side / TOKEN_PX) * TOKEN_PX, info.min_px), info.max_px) for side in sides)
    return f"{width_px}x{height_px}"


def _sent_images(wanted: PredictionInput, base_url: str) -> list[SentImage]:
    """Reference images with their places; what was uploaded here is named by its id."""
    uris = _uris(wanted)
    if len(uris) > MAX_IMAGES:
        raise RequestError("invalid_request", f"input.images: at most {MAX_IMAGES} reference images", "input.images")
    found = []
    for path, uri in uris:
        own = uri.removeprefix(f"{base_url}/v1/files/")
        found.append(SentImage(path, uri) if own == uri else SentImage(path, file_id=own.removesuffix("/content")))
    return found


def _uris(wanted: PredictionInput) -> list[tuple[Path, str]]:
    """Reference images, each with the place where it stands."""
    if wanted.image is None or isinstance(wanted.image, str):
        first: list[tuple[Path, str]] = [(("input", "image"), wanted.image)] if wanted.image else []
    else:
        first = [(("input", "image", index), uri) for index, uri in enumerate(wanted.image)]
    return first + [(("input", "images", index), uri) for index, uri in enumerate(wanted.images)]


def _renamed(field: FieldError, asked: ModelPredictionRequest) -> FieldError:
    head, *rest = field.path or ("",)
    path: Path
    if head == "webhook":
        # A URL here, whatever the native request makes of it.
        return field.at(("webhook" if asked.webhook else "webhook_completed",))
    if head == "deadline":
        return field.at((CANCEL_AFTER,))
    if head == "input":
        return field
    if head == "images" and rest and isinstance(rest[0], int):
        path = [place for place, uri in _uris(asked.input) if not is_data_url(uri)][rest[0]]
    else:
        path = ("input", _NAMES.get(str(head), head), *rest)
    return field.at(path)


def _cut(value: Any) -> Any:
    return value[:_ECHOED] + "…" if isinstance(value, str) and is_data_url(value) and len(value) > _ECHOED else value
