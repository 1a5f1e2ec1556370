"""
What clients may send: the fields, their types and ranges, as Pydantic models that the OpenAPI document is made from too.

What needs the checkpoint or the network to judge is judged elsewhere
(`new_job.py`, `sources.py`, `webhooks/callbacks.py`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from services.api.fields import MAX_METADATA, CustomId, FutureMoment, MetadataKey, MetadataValue, Sent, refuse
from services.api.presets import Preset
from shared.lifecycle.events import JOB_EVENTS, JOB_PROGRESS
from shared.lifecycle.new_job import NUM_SEEDS
from shared.lifecycle.reuse import Cache
from shared.lora import LORA_NAME
from shared.quoting.reading import MAX_TEXT_BYTES
from shared.rendition import Fit
from shared.states import Priority

MAX_PROMPT_CHARS = 8000
MAX_SOURCES = 16
MAX_TEXTS = 16
_MAX_LORAS = 4
_MAX_LORA_SCALE = 4.0
_MAX_RENDITIONS = 8
MAX_EXPIRES_S = 10 * 365 * 86_400
_EXACT_SIZE = re.compile(r"[1-9][0-9]{0,5}x[1-9][0-9]{0,5}", re.ASCII)
_SIZE = re.compile(rf"auto|{_EXACT_SIZE.pattern}", re.ASCII)

_QUALITY = "`fast` lets the decoder skip work, which changes the picture a little, as far as the operator allows; `exact` never."
_PREVIEWS = "Show pictures on the way: of the draft of the layout, and between denoising steps."
_CACHE = (
    "`use`: take what equal requests of yours have drawn or are drawing. `refresh`: draw anew, in place of what they drew. "
    "`off`: draw anew, for this job alone."
)
_PRIORITY = "Lane of the queue. Absent: `standard`, or what is left to a key that may ask for less."
_EXPIRES = "Seconds after its end that the pictures are kept. Absent: until they are deleted."
_EVENT_NAMES = ("job.*", *JOB_EVENTS, JOB_PROGRESS)
_DEADLINE = "The job expires if it has not succeeded by then."


def _not_blank(text: str) -> str:
    if not text.strip():
        raise refuse("blank", "should say what to draw")
    return text


def _is_text(text: str) -> str:
    if not text.strip():
        raise refuse("blank", "should hold letters to draw")
    if (size := len(text.encode())) > MAX_TEXT_BYTES:
        raise refuse("too_long", f"should have at most {MAX_TEXT_BYTES} bytes in UTF-8 (got {size})")
    return text


def _is_size(text: str) -> str:
    if not _SIZE.fullmatch(text):
        raise refuse("size_format", 'should be "auto" or width x height in pixels, such as "1024x768"')
    return text


def _is_exact_size(text: str) -> str:
    if not _EXACT_SIZE.fullmatch(text):
        raise refuse("size_format", 'should be width x height in pixels, such as "1024x768"')
    return text


def _all_different(lora: list[LoraAdapter]) -> list[LoraAdapter]:
    names = [adapter.name for adapter in lora]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise refuse("lora_doubled", f"names {double} twice")
    return lora


def _all_named_apart(renditions: list[RenditionRequest]) -> list[RenditionRequest]:
    names = [rendition.name for rendition in renditions]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise refuse("rendition_doubled", f"names {double} twice")
    return renditions


def _is_event(name: str) -> str:
    if name not in _EVENT_NAMES:
        raise refuse("unknown_event", f"should be one of {', '.join(_EVENT_NAMES)}")
    return name


def spread_url(value: object) -> object:
    """A plain URL is short for `{"url": …}`."""
    return {"url": value} if isinstance(value, str) else value


def or_plain_url(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"type": "string", "format": "uri"}, *schema["anyOf"]]


Size = Annotated[str, AfterValidator(_is_size), WithJsonSchema({"type": "string", "pattern": f"^({_SIZE.pattern})$"})]
Seed = Annotated[int, Field(ge=0, lt=NUM_SEEDS)]
Quality = Literal["exact", "fast"]
EventName = Annotated[str, AfterValidator(_is_event), WithJsonSchema({"type": "string", "enum": list(_EVENT_NAMES)})]


class SourceReference(Sent):
    """A reference image: by URL, as a file of yours, or as image `index` of an earlier job of yours."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["url"]}, {"required": ["file_id"]}, {"required": ["job_id"]}]})

    url: str | None = Field(default=None, description="An http or https URL of a PNG, JPEG or WebP.")
    file_id: str | None = Field(default=None, description="Id of a source image that an earlier request stored.")
    job_id: str | None = Field(default=None, description="Id of an earlier job.")
    index: int = Field(default=0, ge=0, le=9, description="Which image of that job.")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = [name for name in ("url", "file_id", "job_id") if getattr(self, name) is not None]
        if len(given) != 1 or ("index" in self.model_fields_set and given != ["job_id"]):
            raise refuse("source_form", "should have either url, or file_id, or job_id with index")
        return self


class FormatOptions(Sent):
    """How the picture is encoded."""

    quality: int | None = Field(default=None, ge=1, le=100, description="For jpeg and webp. More is better and larger.")
    max_bytes: int | None = Field(
        default=None,
        ge=1024,
        le=1 << 40,
        description="For jpeg and webp: the quality is lowered until the file has no more bytes than this.",
    )


class RenditionRequest(Sent):
    """One more file of each image."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9_-]{0,31}$", description="Yours; one of each name.")
    size: Annotated[str, AfterValidator(_is_exact_size)] | None = Field(
        default=None,
        description='Exact size, "WIDTHxHEIGHT". Absent, and no preset: that of the image.',
        json_schema_extra={"pattern": f"^({_EXACT_SIZE.pattern})$"},
    )
    preset: Preset | None = Field(default=None, description="A channel's size, instead of `size`.")
    format: Literal["png", "jpeg", "webp"] = Field(default="png", description="File format.")
    format_options: FormatOptions = Field(default=FormatOptions(), description="How the file is encoded.")
    fit: Fit = Field(
        default="cover", description="Into another aspect: `cover` cuts what is too much, `contain` puts it on white, `fill` stretches it."
    )


class LoraAdapter(Sent):
    """An adapter of the model, and how strongly it acts."""

    name: str = Field(pattern=LORA_NAME, description="One of those that `GET /v1/models` lists.")
    scale: float = Field(default=1.0, ge=-_MAX_LORA_SCALE, le=_MAX_LORA_SCALE, description="1: as it was trained; 0: not at all.")


Loras = Annotated[list[LoraAdapter], AfterValidator(_all_different)]


class Webhook(Sent):
    """Where to tell of the job's events, signed by the secret of `GET /v1/webhooks/default/secret` or of a webhook endpoint."""

    url: str = Field(min_length=1, max_length=4096, json_schema_extra={"format": "uri"})
    events: list[EventName] | None = Field(
        default=None,
        min_length=1,
        max_length=len(_EVENT_NAMES),
        description="Events to tell of; `job.*` is all of them but `job.progress`. Default: the end of the job, whichever it is.",
    )
    secret_id: str | None = Field(
        default=None,
        max_length=64,
        description="Id of a webhook endpoint of yours (`we_…`), whose secret signs instead of the default one.",
    )


class JobRequest(Sent):
    """What to draw, and how."""

    prompt: Annotated[str, AfterValidator(_not_blank)] = Field(
        min_length=1, max_length=MAX_PROMPT_CHARS, description="What to draw. Text in quotation marks is drawn as text."
    )
    text: list[Annotated[str, AfterValidator(_is_text)]] = Field(
        default=[],
        max_length=MAX_TEXTS,
        description="Texts to draw, exactly as they are here. They are quoted and put into the prompt, unless it quotes them already.",
    )
    glyphs: Literal["auto", "reference"] = Field(
        default="auto",
        description="Who reads the quotation marks of the prompt. `auto`: as a person does, with apostrophes, inch marks and the marks of "
        "all languages; `reference`: as the model's own code, which knows '…', “…”, \"…\" and 「…」 and takes apostrophes for marks.",
    )
    size: Annotated[str, AfterValidator(_is_size)] | None = Field(
        default=None,
        description='Exact size, "WIDTHxHEIGHT". "auto": the size of the first reference image, or the model\'s default without one. '
        "Absent: the model's default.",
        json_schema_extra={"pattern": f"^({_SIZE.pattern})$"},
    )
    preset: Preset | None = Field(default=None, description="A channel's size, instead of `size`.")
    width: int | None = Field(default=None, ge=1, description="With `height`, instead of `size`.")
    height: int | None = Field(default=None, ge=1, description="With `width`, instead of `size`.")
    images: list[SourceReference] = Field(default=[], max_length=MAX_SOURCES, description="Reference images, in order (image-to-image).")
    n: int = Field(default=1, ge=1, le=10, description="How many images; image i uses `seed + i`.")
    seed: Seed | None = Field(default=None, description="Absent: random. Always echoed.")
    layout_seed: Seed | None = Field(default=None, description="Seed of the layout (AR) stage. Absent: `seed`.")
    same_layout: bool = Field(default=False, description="Give all n images one layout.")
    steps: int | None = Field(default=None, ge=1, le=200, description="Denoising steps. Absent: the model's default.")
    guidance_scale: float | None = Field(
        default=None,
        ge=1,
        le=20,
        description="How closely the decoder follows the prompt; 1 is off, and twice as fast. Absent: the model's.",
    )
    # Below 0.01 float32 cannot hold logits over temperature.
    temperature: float | None = Field(default=None, ge=0.01, le=2, description="Of the layout stage. Absent: the model's default.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Of the layout stage. Absent: the model's default.")
    format: Literal["png", "jpeg", "webp"] = Field(default="png", description="File format of the results.")
    format_options: FormatOptions = Field(default=FormatOptions(), description="How the file is encoded.")
    renditions: Annotated[list[RenditionRequest], AfterValidator(_all_named_apart)] = Field(
        default=[], max_length=_MAX_RENDITIONS, description="More files of each image, such as other sizes and formats."
    )
    quality: Quality = Field(default="exact", description=_QUALITY)
    lora: Loras = Field(default=[], max_length=_MAX_LORAS, description="Adapters of the model.")
    previews: bool = Field(default=True, description=_PREVIEWS)
    approve: bool = Field(
        default=False,
        description="Stop after the draft of the layout, until it is approved or rejected. Not with reference images, which need none.",
    )
    # Not strict: an enum is what we make of the text.
    cache: Cache = Field(default=Cache.USE, strict=False, description=_CACHE)
    priority: Priority = Field(default=Priority.STANDARD, strict=False, description=_PRIORITY)
    deadline: FutureMoment | None = Field(default=None, description=_DEADLINE)
    expires_in: int | None = Field(default=None, ge=60, le=MAX_EXPIRES_S, description=_EXPIRES)
    webhook: Annotated[Webhook | None, BeforeValidator(spread_url)] = Field(default=None, json_schema_extra=or_plain_url)
    metadata: dict[MetadataKey, MetadataValue] = Field(default={}, max_length=MAX_METADATA, description="Yours; echoed everywhere.")
    custom_id: CustomId | None = Field(default=None, description="Yours; echoed everywhere.")


class RedecodeRequest(Sent):
    """How to draw the layouts of an earlier job once more. What is left out is as it was there."""

    n: int | None = Field(default=None, ge=1, le=10, description="How many images. Of several layouts, the first n.")
    size: Annotated[str, AfterValidator(_is_exact_size)] | None = Field(
        default=None,
        description='Exact size, "WIDTHxHEIGHT". The layout stays; the picture is fitted to the size.',
        json_schema_extra={"pattern": f"^({_EXACT_SIZE.pattern})$"},
    )
    preset: Preset | None = Field(default=None, description="A channel's size, instead of `size`.")
    seed: Seed | None = Field(default=None, description="Of the noise; image i uses `seed + i`.")
    steps: int | None = Field(default=None, ge=1, le=200, description="Denoising steps.")
    guidance_scale: float | None = Field(default=None, ge=1, le=20, description="How closely the decoder follows the prompt.")
    format: Literal["png", "jpeg", "webp"] | None = Field(default=None, description="File format of the results.")
    format_options: FormatOptions | None = Field(default=None, description="How the file is encoded. With another format: its default.")
    renditions: Annotated[list[RenditionRequest], AfterValidator(_all_named_apart)] | None = Field(
        default=None, max_length=_MAX_RENDITIONS, description="More files of each image."
    )
    quality: Quality | None = Field(default=None, description=_QUALITY)
    lora: Loras | None = Field(
        default=None, max_length=_MAX_LORAS, description="As it was there, or absent: adapters decide the layout too."
    )
    previews: bool | None = Field(default=None, description=_PREVIEWS)
    # Not strict: an enum is what we make of the text.
    cache: Cache = Field(default=Cache.USE, strict=False, description=f"{_CACHE} The layouts are never drawn anew.")
    priority: Priority = Field(default=Priority.STANDARD, strict=False, description=_PRIORITY)
    deadline: FutureMoment | None = Field(default=None, description=_DEADLINE)
    expires_in: int | None = Field(default=None, ge=60, le=MAX_EXPIRES_S, description=_EXPIRES)
    webhook: Annotated[Webhook | None, BeforeValidator(spread_url)] = Field(default=None, json_schema_extra=or_plain_url)
    metadata: dict[MetadataKey, MetadataValue] = Field(default={}, max_length=MAX_METADATA, description="Yours; echoed everywhere.")
    custom_id: CustomId | None = Field(default=None, description="Yours; echoed everywhere.")


class RejectRequest(Sent):
    """What to try instead of a draft."""

    layout_seed: Seed | None = Field(default=None, description="Seed of the next draft. Absent: random.")
