"""What clients receive, for the OpenAPI document. The bodies come from `shared/job_document.py`; a test holds the two together."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from services.api.list_answer import ListAnswer
from shared.states import JobStatus, Priority, Stage, WorkState


class Progress(BaseModel):
    """How far the image is that is furthest behind. Only grows, unless work had to be done again."""

    phase: Literal["draft", "awaiting_approval", "grid", "denoise", "vae", "upload"]
    done: int
    total: int


class JobError(BaseModel):
    """Why a job failed, expired or was canceled."""

    code: str
    message: str


class Preview(BaseModel):
    """A picture on the way: of the draft layout, or of the image between two steps."""

    kind: Literal["draft", "x0"]
    step: int | None = Field(description="Denoising steps that were done; null for a draft.")
    url: str = Field(description="Presigned anew at every read, and good for an hour.")
    width: int
    height: int


class RenditionAnswer(BaseModel):
    """One more file of an image."""

    name: str
    url: str | None = Field(description="Presigned anew at every read, and good for an hour. Null until it is stored.")
    width: int
    height: int
    format: Literal["png", "jpeg", "webp"]
    bytes: int | None
    sha256: str | None


class Output(BaseModel):
    """One image of a job."""

    id: str
    index: int
    status: JobStatus
    cached: bool = Field(description="It was in the store before the job came, and cost nothing.")
    url: str | None = Field(description="Presigned anew at every read, and good for an hour. Null until the image is stored.")
    width: int
    height: int
    generated_width: int = Field(description="What the model drew, before it was fitted to the size that was asked.")
    generated_height: int
    format: Literal["png", "jpeg", "webp"]
    bytes: int | None
    sha256: str | None
    seed: int
    layout_seed: int
    renditions: list[RenditionAnswer]
    previews: list[Preview]


class Warning(BaseModel):
    """Something about the texts of a prompt that may not be as its writer thinks."""

    code: Literal[
        "apostrophe",
        "inch_mark",
        "unsupported_quotes",
        "nested_quotes",
        "unclosed_quote",
        "unquoted_text",
        "invisible_characters",
        "text_too_long",
        "no_workers",
        "unknown_speed",
        "deadline_unmeetable",
        "sampled",
    ]
    message: str
    text: str | None = Field(description="An excerpt.")
    position: int | None = Field(description="Of the mark or text, in characters of the prompt as sent.")
    fixed: bool = Field(description="The picture will have what a reader expects; otherwise it is up to the writer.")


class Attempt(BaseModel):
    """One try of one stage."""

    stage: Stage
    index: int | None = Field(description="Of the image; null for a layout, which several images may share.")
    attempt: int = Field(description="Counted for each layout and image; retries of the job count on.")
    worker: str | None = Field(description="Id of the worker that made it.")
    state: WorkState = Field(
        description="How it ended, or what it is doing; `ready`: a worker that was shut down gave it back, `held`: it ended with a draft."
    )
    started_at: str | None
    finished_at: str | None
    error: JobError | None


class JobModel(BaseModel):
    """The checkpoint that the job was accepted for."""

    name: str
    revision: str


class Cost(BaseModel):
    """Work that is counted. What is in the store costs nothing."""

    ar_tokens: int = Field(description="Written by the layout stage.")
    decoder_steps: int
    images: int


class Usage(Cost):
    """What was really run while the job waited for it."""

    text_tokens: int = Field(description="Of the prompts that the layout stage read, template included. Only the model can count them.")
    image_tokens: int = Field(description="The same, of reference images.")


class JobUrls(BaseModel):
    """Where to go from here."""

    self: str
    events: str
    cancel: str
    images: str


class QueuePlace(BaseModel):
    """Where a job stands that has not begun."""

    lane: Priority = Field(description="Lanes share the workers by weight; the most urgent has the most.")
    seconds_ahead: float | None = Field(
        description="About how long all live workers take for what came before it, in its lane and in more urgent ones; null if that "
        "cannot be told. Turns between tenants are not looked at: behind another one's long line a job begins much sooner than this."
    )


class JobAnswer(BaseModel):
    """A job."""

    id: str
    object: Literal["job"]
    status: JobStatus
    stage: Stage | None
    queue: QueuePlace | None = Field(description="Null once it has begun, and in events.")
    progress: Progress
    model: JobModel
    input: dict[str, Any] = Field(description="The request as it was sent.")
    params: dict[str, Any] = Field(description="The request with every default and seed filled in.")
    glyph_texts: list[str] = Field(description="What is drawn letter by letter.")
    warnings: list[Warning] = Field(description="What may not be as the writer of the prompt thinks.")
    seed: int
    outputs: list[Output]
    error: JobError | None
    usage: Usage
    attempts: list[Attempt] = Field(description="All tries so far, of each layout and image the last ten that are over.")
    metadata: dict[str, str]
    custom_id: str | None
    batch_id: str | None
    redecode_of: str | None = Field(description="The job whose layouts it draws once more.")
    priority: Priority
    deadline: str | None
    approval_deadline: str | None = Field(description="The job expires if its drafts are neither approved nor rejected by then.")
    created_at: str
    started_at: str | None
    completed_at: str | None
    expires_at: str | None = Field(description="When its pictures are erased; null before its end, and if they are kept.")
    version: int = Field(description="Grows with every change; of two states of a job, the one with the greater version is newer.")
    urls: JobUrls


class StageSeconds(BaseModel):
    """Seconds of workers; null where they have not told how fast they are."""

    ar: float | None
    decoder: float | None


class EstimateAnswer(BaseModel):
    """What a job would cost, and when it would be done."""

    object: Literal["estimate"]
    cost: Cost = Field(description="What `usage` of the job would say. What is in the store already costs nothing.")
    gpu_seconds: float | None = Field(description="Of all workers together, at their speed of the last minutes.")
    gpu_seconds_by_stage: StageSeconds
    queue_seconds: float | None = Field(description="Until its first work begins; null if that cannot be told.")
    run_seconds: float | None = Field(description="From its first work to its last image, if nothing else came.")
    eta: str | None = Field(description="When it would be done if it were submitted now.")
    params: dict[str, Any] = Field(description="The request with every default filled in; a seed that is not given is drawn anew.")
    glyph_texts: list[str]
    warnings: list[Warning]


class BatchEstimateAnswer(BaseModel):
    """What the requests of a batch would cost together, and when the last one would be done."""

    object: Literal["estimate"]
    requests: int
    cost: Cost = Field(description="What their `usage` would say together, if nothing of it is in the store already.")
    gpu_seconds: float | None
    gpu_seconds_by_stage: StageSeconds
    queue_seconds: float | None
    run_seconds: float | None = Field(description="Of all of them, by all workers that live now.")
    eta: str | None
    warnings: list[Warning]


class JobListAnswer(ListAnswer[JobAnswer]):
    """A page of jobs."""


class ImageListAnswer(ListAnswer[Output]):
    """The images of a job."""


class ModelAnswer(BaseModel):
    """A model that is loaded."""

    id: str
    object: Literal["model"]
    created: int = Field(description="Not known: 0.")
    owned_by: str
    revision: str
    defaults: dict[str, Any]
    loras: list[str] = Field(description="Adapters that requests may choose.")
    limits: dict[str, Any]


class ModelListAnswer(ListAnswer[ModelAnswer]):
    """The loaded models: one, or none while no AR worker has reported."""


class SecretAnswer(BaseModel):
    """A secret in the form that Standard Webhooks libraries take."""

    key: str


class HealthAnswer(BaseModel):
    """The process answers."""

    status: Literal["ok"]


class ReadyAnswer(BaseModel):
    """What works: `ok` or `down` for each store, and how many workers were seen lately."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str | int | None]
