"""
Requests of OpenAI's interface -> the native request of the same meaning. Pure: knows the checkpoint's defaults and no network.

Whatever the native request would refuse under another name is checked here first, so that errors name what the client sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from services.api.field_errors import ErrorCollector, FieldError, InvalidFieldsError, Path, validated
from services.api.openai.schemas import Asked, EditRequest, ImageReference, ImageRequest, Picture, is_model_name, refuse_unsupported
from services.api.reference_images import SentImage, place_images
from services.api.request_body import RequestBody, Upload
from shared.checkpoint import ModelInfo
from shared.errors import RequestError
from shared.grid import nearest_size
from shared.states import Priority

Model = TypeVar("Model", bound=BaseModel)

_STEP_SHARES = {"low": 0.4, "medium": 0.7, "high": 1.0, "hd": 1.0, "auto": 1.0, "standard": 1.0}
"""Of the model's default steps: with GLM-Image's 50 that is 20, 35 and 50."""
NO_NAMES: Mapping[str, Path] = {}
_LANES = {"priority": Priority.INTERACTIVE, "default": Priority.STANDARD, "flex": Priority.BULK}


def read_asked(sent: Mapping[str, Any], model: type[Model]) -> Model:
    """
    Check a request. Members that are null count as not sent: OpenAI's clients write null for "no opinion".

    Raises:
        InvalidFieldsError: names every wrong field; `unsupported_parameter` for what would change the meaning.
    """
    fields = without_nulls(sent)
    refuse_unsupported(fields)
    return validated(model, fields)


def without_nulls(sent: Mapping[str, Any]) -> dict[str, Any]:
    """The members that say something."""
    return {name: value for name, value in sent.items() if value is not None}


def native_image_request(asked: ImageRequest, info: ModelInfo, uploads: Sequence[Upload] = ()) -> RequestBody:
    """
    The native request that draws what was asked.

    Args:
        uploads: reference images that came as files. With any, or with images in the JSON, the request is an edit.
    Raises:
        InvalidFieldsError
    """
    errors = ErrorCollector()
    fields = {
        "prompt": asked.prompt,
        "n": asked.n,
        **lane_and_company(asked, errors),
        **picture_fields(asked, info, errors),
        "previews": asked.stream and asked.partial_images > 0,
    }
    check_model(asked.model, info, errors)
    if asked.stream and asked.background is True:
        detail = "a job in the background has no stream here; GET /v1/responses/{id}?stream=true shows it"
        errors.add(("stream",), "exclusive", detail)
    if not asked.stream and asked.partial_images:
        errors.add(("partial_images",), "not_applicable", "only a stream shows pictures on the way")
    errors.raise_any()
    references = asked.images if isinstance(asked, EditRequest) else []
    placed = place_images(sent_images(references, image_places(len(references))))
    return RequestBody({**fields, "images": placed.images}, (*placed.uploads, *uploads), placed.order or None)


def lane_and_company(asked: Asked, errors: ErrorCollector) -> dict[str, Any]:
    """Native fields about the job, whatever it draws."""
    if asked.priority is not None and asked.service_tier != "auto":
        errors.add(("priority",), "exclusive", "give either priority or service_tier, not both")
    fields: dict[str, Any] = {"metadata": asked.metadata}
    if asked.priority is not None or asked.service_tier != "auto":
        # Otherwise the key decides.
        fields["priority"] = asked.priority or _LANES[asked.service_tier]
    if asked.deadline is not None:
        fields["deadline"] = asked.deadline.isoformat()
    if asked.webhook is not None:
        # A plain URL stays one, so that an error names it as it was sent.
        said = asked.webhook.model_dump(exclude_none=True)
        fields["webhook"] = said["url"] if len(said) == 1 else said
    if asked.custom_id is not None:
        fields["custom_id"] = asked.custom_id
    return fields


def picture_fields(asked: Picture, info: ModelInfo, errors: ErrorCollector) -> dict[str, Any]:
    """Native fields about the picture."""
    fields: dict[str, Any] = {
        "size": _size(asked, info),
        "steps": asked.num_inference_steps or max(1, round(info.steps * _STEP_SHARES[asked.quality])),
        "format": asked.output_format,
        "lora": [adapter.model_dump() for adapter in asked.lora],
        "cache": asked.cache,
    }
    for name in ("seed", "guidance_scale", "temperature", "top_p"):
        if (value := getattr(asked, name)) is not None:
            fields[name] = value
    if asked.output_compression is not None:
        if asked.output_format != "png":
            # OpenAI counts from 0, encoders from 1.
            fields["format_options"] = {"quality": max(1, asked.output_compression)}
        elif asked.output_compression != 100:
            errors.add(("output_compression",), "not_applicable", "png is lossless; choose output_format jpeg or webp")
    return fields


def check_model(name: str | None, info: ModelInfo, errors: ErrorCollector) -> None:
    """Collect a model that is not the loaded one."""
    if not is_model_name(name, info.name):
        errors.add(("model",), "unknown_model", f"there is no model {str(name)[:60]}; there is {info.name}", "model_not_found")


def image_places(count: int) -> list[Path]:
    """Where reference images stand in a body that has a list of them."""
    return [("images", index) for index in range(count)]


def sent_images(references: Sequence[ImageReference], paths: Sequence[Path]) -> list[SentImage]:
    """
    Reference images with their places.

    Args:
        paths: where each stands in the request.
    """
    pairs = zip(references, paths, strict=True)
    return [SentImage((*path, "image_url"), reference.image_url or "", reference.file_id) for reference, path in pairs]


def in_sent_words(
    error: InvalidFieldsError, native: RequestBody, places: Sequence[Path] | None = None, names: Mapping[str, Path] = NO_NAMES
) -> InvalidFieldsError:
    """
    The native request's errors; reference images under the names and numbers that they were sent with.

    Args:
        places: where each reference image stood in the request.
        names: where other fields stood, by their native names, unless it is the same place.
    """
    paths = image_places(len(native.order or ())) if places is None else places

    def as_sent(field: FieldError) -> FieldError:
        if len(field.path) < 2 or field.path[0] != "images" or not isinstance(field.path[1], int) or native.order is None:
            renamed = names.get(str(field.path[0])) if field.path else None
            return field.at((*renamed, *field.path[1:])) if renamed else field
        return field.at((*paths[native.order.index(field.path[1])], "image_url" if field.path[-1] == "url" else "file_id"))

    return InvalidFieldsError([as_sent(field) for field in error.errors])


def nested_fields(parts: Sequence[tuple[str, str]], numbers: Sequence[str], flags: Sequence[str]) -> dict[str, Any]:
    """
    The text parts of a form as the JSON that they stand for: `metadata[a]` is a member, `x[]` an item, and numbers are text.

    Args:
        numbers, flags: names whose text is a number, or true or false. What is neither stays text, for the check to refuse.
    Raises:
        RequestError: a name is doubled, or not of this form.
    """
    fields: dict[str, Any] = {}
    for name, text in parts:
        steps = re.fullmatch(r"([^\[\]]+)((?:\[[^\[\]]*\]){0,3})", name)
        if steps is None:
            raise RequestError("invalid_request", f"{name[:60]}: is not the name of a field", name[:60])
        path = [steps[1], *re.findall(r"\[([^\[\]]*)\]", steps[2])]
        value: Any = text
        if path == [name] and name in numbers:
            value = _number(text)
        elif path == [name] and name in flags and text.lower() in ("true", "false"):
            value = text.lower() == "true"
        _put(fields, path, value, name)
    return fields


def _put(fields: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    for index, step in enumerate(path[:-1]):
        beginning: Any = [] if path[index + 1] == "" else {}
        inner = fields.setdefault(step, beginning)
        if isinstance(inner, list) and index == len(path) - 2 and path[-1] == "":
            inner.append(value)
            return
        if not isinstance(inner, dict):
            raise RequestError("invalid_request", f"{name[:60]}: does not fit the part {path[0][:60]}", path[0][:60])
        fields = inner
    if path[-1] in fields:
        raise RequestError("invalid_request", f"{name[:60]} was sent twice", name[:60])
    fields[path[-1]] = value


def _number(text: str) -> int | float | str:
    if re.fullmatch(r"[+-]?[0-9]{1,20}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[+-]?[0-9]{0,20}\.?[0-9]{1,20}([eE][+-]?[0-9]{1,2})?", text, re.ASCII):
        return float(text)
    return text


def _size(asked: Picture, info: ModelInfo) -> str:
    if asked.size is None or asked.size == "auto" or asked.size_policy == "exact":
        return asked.size or "auto"
    width_px, height_px = (int(side) for side in asked.size.split("x"))
    height_px, width_px = nearest_size(height_px, width_px, info.min_px, info.max_px)
    return f"{width_px}x{height_px}"
