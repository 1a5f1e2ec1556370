"""
What OpenAI's image clients may send, and what of it glmq cannot do.

The names are OpenAI's, and those of glmq's own fields that a client can add (`extra_body`). Nothing here knows how they are carried out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from services.api.field_errors import FieldError, InvalidFieldsError
from services.api.fields import MAX_METADATA, CustomId, MetadataKey, MetadataValue, Moment, Sent, refuse
from services.api.schemas import MAX_PROMPT_CHARS, MAX_SOURCES, JobRequest, Loras, Seed, Size, Webhook, or_plain_url, spread_url
from shared.lifecycle.reuse import Cache
from shared.states import Priority

QualityName = Literal["auto", "low", "medium", "high", "standard", "hd"]
Tier = Literal["auto", "default", "flex", "priority"]
_IGNORED = "Accepted for OpenAI's clients; has no effect."
_MODEL_NAME = re.compile(r"glm-image|zai-org/GLM-Image|(gpt|chatgpt|dall-e|o\d)-?[\w.-]*", re.IGNORECASE | re.ASCII)
"""Names that mean the loaded model whatever it is called: unmodified programs cannot name another."""

_REASONS: dict[str, str] = {
    "mask": "glmq draws the whole picture anew and cannot keep the part outside a mask",
    "input_image_mask": "glmq draws the whole picture anew and cannot keep the part outside a mask",
    "markup": "glmq takes no drawing over the picture; describe the change in the prompt",
    "svg": "glmq draws pixels; output_format can be png, jpeg or webp",
    "frame_count": "glmq draws single pictures; output_format can be png, jpeg or webp",
    "frame_duration_ms": "glmq draws single pictures; output_format can be png, jpeg or webp",
    "negative_prompt": "GLM-Image takes none; say in the prompt what should be seen",
}
_VALUE_REASONS: dict[tuple[str, str], str] = {
    ("background", "transparent"): "transparent: the model draws no transparency; opaque or auto is possible",
    ("output_format", "gif"): "gif: glmq draws single pictures as png, jpeg or webp",
    ("output_format", "svg"): "svg: glmq draws pixels, as png, jpeg or webp",
    ("quality", "xhigh"): "xhigh: high is the best there is",
    ("quality", "max"): "max: high is the best there is",
}


def find_unsupported(sent: Mapping[str, Any]) -> Iterator[FieldError]:
    """What OpenAI's models can do and glmq's cannot, so that leaving it out would change what the customer means."""
    for name, reason in _REASONS.items():
        if name in sent:
            yield FieldError((name,), "unsupported", f"{name}: {reason}", "unsupported_parameter")
    for (name, value), reason in _VALUE_REASONS.items():
        if sent.get(name) == value:
            yield FieldError((name,), "unsupported", f"{name}: {reason}", "unsupported_parameter")


def refuse_unsupported(sent: Mapping[str, Any]) -> None:
    """
    Raises:
        InvalidFieldsError: `unsupported_parameter`.
    """
    if errors := list(find_unsupported(sent)):
        raise InvalidFieldsError(errors)


def is_model_name(name: str | None, loaded: str) -> bool:
    """Does this name mean the loaded model?"""
    return name is None or name == loaded or _MODEL_NAME.fullmatch(name) is not None


class Picture(Sent):
    """What image requests and the image tool have in common."""

    size: Size | None = Field(
        default=None,
        description='Exact size, "WIDTHxHEIGHT", or "auto" (the default): the size of the first reference image, or the model\'s default.',
    )
    size_policy: Literal["exact", "nearest"] = Field(
        default="exact",
        description="`nearest`: the nearest size of whole tokens in range; the answer says which.",
    )
    quality: QualityName = Field(
        default="auto", description="Denoising steps: `low` 40 %, `medium` 70 %, `high` and `auto` all of the model's default."
    )
    output_format: Literal["png", "jpeg", "webp"] = Field(default="png", description="File format of the results.")
    output_compression: int | None = Field(default=None, ge=0, le=100, description="For jpeg and webp: quality of the file.")
    partial_images: int = Field(default=0, ge=0, le=3, description="Pictures on the way that a stream shows: first the draft.")
    seed: Seed | None = Field(default=None, description="Absent: random.")
    num_inference_steps: int | None = Field(default=None, ge=1, le=200, description="Instead of `quality`.")
    guidance_scale: float | None = Field(default=None, ge=1, le=20, description="How closely the decoder follows the prompt.")
    temperature: float | None = Field(default=None, ge=0.01, le=2, description="Of the layout stage.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Of the layout stage.")
    lora: Loras = Field(default=[], max_length=4, description="Adapters of the model.")
    # Not strict: an enum is what we make of the text.
    cache: Cache = Field(default=Cache.USE, strict=False, description="May the job have what equal requests of yours have drawn?")
    moderation: str | None = Field(default=None, max_length=64, description=_IGNORED)
    complexity: str | None = Field(default=None, max_length=64, description=_IGNORED)
    input_fidelity: str | None = Field(default=None, max_length=64, description=_IGNORED)


class Asked(Sent):
    """What every request of OpenAI's interface that makes a job can say about the job."""

    model: str | None = Field(default=None, max_length=128, description="The loaded model; OpenAI's names mean it, too.")
    service_tier: Tier = Field(default="auto", description="`priority`, `default` or `flex`: lane of the queue.")
    # Not strict: an enum is what we make of the text.
    priority: Priority | None = Field(default=None, strict=False, description="Lane of the queue, by glmq's names.")
    # Whether it has passed is asked later: a request that is repeated with its Idempotency-Key may come after it.
    deadline: Moment | None = Field(default=None, description="The job expires if it has not succeeded by then.")
    webhook: Annotated[Webhook | None, BeforeValidator(spread_url)] = Field(default=None, json_schema_extra=or_plain_url)
    metadata: dict[MetadataKey, MetadataValue] = Field(default={}, max_length=MAX_METADATA, description="Yours; echoed everywhere.")
    custom_id: CustomId | None = Field(default=None, description="Yours; echoed everywhere.")
    user: str | None = Field(default=None, max_length=512, description=_IGNORED)
    safety_identifier: str | None = Field(default=None, max_length=512, description=_IGNORED)


class ImageRequest(Picture, Asked):
    """What to draw, and how."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(JobRequest.model_fields, "POST /v1/jobs"),
        **dict.fromkeys(("image", "images"), "POST /v1/images/edits"),
    }

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS, description="What to draw. Text in quotation marks is drawn as text.")
    n: int = Field(default=1, ge=1, le=10, description="How many images; image i uses `seed + i`.")
    response_format: Literal["b64_json", "url"] = Field(default="b64_json", description="The file, or a URL that is good for an hour.")
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    background: bool | Literal["opaque", "auto"] = Field(
        default="auto", description="`true`: answer at once with a job that can be asked for. Backgrounds are always opaque."
    )
    style: str | None = Field(default=None, max_length=64, description=_IGNORED)


def _one_place(image: ImageReference) -> ImageReference:
    if (image.image_url is None) == (image.file_id is None):
        raise refuse("source_form", "should have either image_url or file_id")
    return image


class ImageReference(Sent):
    """A reference image: by an http, https or data URL, or as a file of yours."""

    image_url: str | None = Field(default=None, min_length=1, json_schema_extra={"format": "uri"})
    file_id: str | None = Field(default=None, max_length=64)


class EditRequest(ImageRequest):
    """What to make of reference images."""

    images: list[Annotated[ImageReference, AfterValidator(_one_place)]] = Field(
        default=[], max_length=MAX_SOURCES, description="Reference images, in order."
    )
