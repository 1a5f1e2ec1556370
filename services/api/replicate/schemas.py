"""What Replicate's clients send, and what they get."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from services.api.answers import Warning
from services.api.fields import Sent, refuse
from services.api.schemas import JobRequest, Quality, Seed

MAX_IMAGES = 16
ASPECT_RATIOS = ("match_input_image", "1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "5:4", "4:5", "21:9", "9:21", "2:1", "1:2")

Uri = Annotated[str, Field(min_length=1, max_length=16 << 20, json_schema_extra={"format": "uri"})]
"""http, https, data, or what an upload to /v1/files answered."""
WebhookUrl = Annotated[str, Field(min_length=1, max_length=4096, json_schema_extra={"format": "uri"})]
Event = Literal["start", "output", "logs", "completed"]


def _native(name: str) -> str:
    """A field's description, where it is the native one."""
    return JobRequest.model_fields[name].description or ""


class PredictionInput(Sent):
    """The input of the model."""

    prompt: str = Field(min_length=1, max_length=8000, description=_native("prompt"))
    text: list[str] = Field(default=[], max_length=16, description=_native("text"))
    image: Uri | list[Uri] | None = Field(default=None, description="A reference image, or several.")
    images: list[Uri] = Field(default=[], max_length=MAX_IMAGES, description="Reference images, after `image`.")
    aspect_ratio: Literal[ASPECT_RATIOS] | None = Field(default=None, description="Of the result, with about as many pixels as by default.")  # type: ignore[valid-type]  # mypy wants the values in place
    size: str | None = Field(default=None, max_length=20, description='Exact size, "WIDTHxHEIGHT", or "auto"; instead of `aspect_ratio`.')
    width: int | None = Field(default=None, ge=1, description="With `height`, instead of `size`.")
    height: int | None = Field(default=None, ge=1, description="With `width`, instead of `size`.")
    num_outputs: int = Field(default=1, ge=1, le=10, description=_native("n"))
    seed: Seed | None = Field(default=None, description=_native("seed"))
    num_inference_steps: int | None = Field(default=None, ge=1, le=200, description=_native("steps"))
    guidance_scale: float | None = Field(default=None, ge=1, le=20, description=_native("guidance_scale"))
    temperature: float | None = Field(default=None, ge=0.01, le=2, description=_native("temperature"))
    top_p: float | None = Field(default=None, gt=0, le=1, description=_native("top_p"))
    output_format: Literal["png", "jpg", "jpeg", "webp"] = Field(default="png", description=_native("format"))
    output_quality: int | None = Field(default=None, ge=0, le=100, description="Of jpg and webp; png is lossless.")
    quality: Quality = Field(default="exact", description=_native("quality"))


def _all_different(events: list[Event]) -> list[Event]:
    if len(set(events)) < len(events):
        raise refuse("doubled", "names an event twice")
    return events


class ModelPredictionRequest(Sent):
    """A prediction of the model that the path names."""

    input: PredictionInput
    webhook: WebhookUrl | None = Field(default=None, description="Where to post it.")
    webhook_completed: WebhookUrl | None = Field(default=None, description="The same, only at its end. Old clients send it.")
    webhook_events_filter: Annotated[list[Event], AfterValidator(_all_different)] | None = Field(
        default=None,
        min_length=1,
        max_length=4,
        description="When to post it; by `logs` up to twice a second, too, while it is drawn. Absent: at all of these but that.",
    )
    stream: bool | None = Field(default=None, description="Every prediction has a stream: `urls.stream`.")


class PredictionRequest(ModelPredictionRequest):
    """A prediction."""

    version: str = Field(min_length=1, max_length=300, description="`owner/name`, `owner/name:version` or the version alone.")


class PredictionsQuery(Sent):
    """Which page of predictions."""

    cursor: str | None = Field(default=None, max_length=64, description="From the links of another page.")


class PredictionUrls(BaseModel):
    """Where to go from here."""

    get: str
    cancel: str
    stream: str = Field(description="Works without a key, for a day.")


class PredictionAnswer(BaseModel):
    """A job in Replicate's words."""

    id: str
    model: str
    version: str
    status: Literal["starting", "processing", "succeeded", "failed", "canceled"]
    input: dict[str, Any]
    output: list[str] | None = Field(description="URLs of the images, presigned anew at every read.")
    logs: str
    error: str | None
    metrics: dict[str, Any]
    created_at: str
    started_at: str | None
    completed_at: str | None
    glyph_texts: list[str] = Field(description="What is drawn letter by letter.")
    warnings: list[Warning] = Field(description="What may not be as the writer of the prompt thinks.")
    data_removed: bool
    source: Literal["api"]
    urls: PredictionUrls


class PredictionListAnswer(BaseModel):
    """A page of predictions, newest first."""

    previous: str | None
    next: str | None
    results: list[PredictionAnswer]


class VersionAnswer(BaseModel):
    """A version of the model."""

    id: str
    created_at: str = Field(description="When a worker first loaded it.")
    cog_version: str
    openapi_schema: dict[str, Any]


class VersionListAnswer(BaseModel):
    """The versions of the model: the loaded one."""

    previous: None
    next: None
    results: list[VersionAnswer]


class HostedModelAnswer(BaseModel):
    """The loaded model, as Replicate's clients read it, and as OpenAI's do."""

    url: str
    owner: str
    name: str
    description: str
    visibility: Literal["public"]
    github_url: None
    paper_url: None
    license_url: None
    run_count: int
    cover_image_url: None
    default_example: None
    latest_version: VersionAnswer
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class UploadedFileUrls(BaseModel):
    """What to send as an input."""

    get: str


class UploadedFileAnswer(BaseModel):
    """An uploaded file, as Replicate's clients read it."""

    id: str
    name: str
    content_type: str
    size: int
    etag: str
    checksums: dict[str, str]
    metadata: dict[str, Any]
    created_at: str
    expires_at: str | None
    urls: UploadedFileUrls
