"""A request and a checkpoint -> the job to submit: every default, size and seed filled in. Pure; draws no random number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.api.field_errors import ErrorCollector, Path
from services.api.presets import SIZES
from services.api.schemas import MAX_SOURCES, FormatOptions, JobRequest, LoraAdapter, RenditionRequest
from services.api.thumbnails import THUMBNAIL
from shared.checkpoint import ModelInfo
from shared.grid import TokenGrid
from shared.lifecycle.new_job import NewJob, SourceFile
from shared.lora import Lora, LoraChoice
from shared.prompt_rules import find_control_token
from shared.quoting.reading import Reading, UnquotableTextError, read_prompt
from shared.rendition import Rendition

_MAX_LISTED = 20
"""Names of adapters that an error lists."""

_MAX_RENDITION_PX = 4096
"""Guess: twice the model's largest side; beyond it nothing is gained but bytes."""

Size = tuple[int, int]
"""Height and width in pixels."""


def check_request(request: JobRequest, info: ModelInfo, num_uploads: int, errors: ErrorCollector) -> None:
    """Collect what is wrong with a well-formed request in the light of the checkpoint and of its own other fields."""
    _check_texts(request, errors)
    if len(request.images) + num_uploads > MAX_SOURCES:
        errors.add(("images",), "too_long", f"at most {MAX_SOURCES} reference images, uploads included")
    check_format(("format_options",), request.format, request.format_options, errors)
    check_renditions(request.renditions, errors)
    _check_size(request, info, errors)
    check_lora(request.lora, info, errors)
    if request.approve and (request.images or num_uploads):
        errors.add(("approve",), "not_applicable", "with reference images there is no draft to approve")
    if request.approve and not request.previews:
        errors.add(("previews",), "not_applicable", "approval needs the preview of the draft")


def check_format(path: Path, format: str, options: FormatOptions, errors: ErrorCollector) -> None:
    """Collect options that a format does not have."""
    if format == "png" and options.quality is not None:
        errors.add((*path, "quality"), "not_applicable", "png has no quality; it is lossless")
    if format == "png" and options.max_bytes is not None:
        errors.add((*path, "max_bytes"), "not_applicable", "png is lossless, so its bytes cannot be bounded; jpeg and webp can")


def check_renditions(renditions: Sequence[RenditionRequest], errors: ErrorCollector) -> None:
    """Collect what is wrong with more files of an image."""
    for index, rendition in enumerate(renditions):
        path: Path = ("renditions", index)
        check_format((*path, "format_options"), rendition.format, rendition.format_options, errors)
        if rendition.name == THUMBNAIL:
            errors.add((*path, "name"), "reserved", f"{THUMBNAIL} is a variant that every image has")
        if rendition.size is not None and rendition.preset is not None:
            errors.add((*path, "size"), "exclusive", "give either size or preset, not both")
        elif rendition.size is not None and max(map(int, rendition.size.split("x"))) > _MAX_RENDITION_PX:
            errors.add((*path, "size"), "out_of_range", f"each side should have 1 to {_MAX_RENDITION_PX} pixels (got {rendition.size})")


def check_lora(lora: Sequence[LoraAdapter], info: ModelInfo, errors: ErrorCollector) -> None:
    """Collect the adapters that the workers do not have."""
    for index, adapter in enumerate(lora):
        if adapter.name not in info.loras:
            known = ", ".join(info.loras[:_MAX_LISTED]) + (", …" if len(info.loras) > _MAX_LISTED else "")
            errors.add(("lora", index, "name"), "unknown_lora", f"there is no adapter {adapter.name}; there are: {known or 'none'}")


def check_sides(sides: Sequence[tuple[str, int]], info: ModelInfo, errors: ErrorCollector) -> None:
    """Collect the sides of a result, each with the field it came in, that are out of range."""
    for name, side in sides:
        if not info.min_px <= side <= info.max_px:
            errors.add((name,), "out_of_range", f"each side should have {info.min_px} to {info.max_px} pixels (got {side})")


def chosen_lora(lora: Sequence[LoraAdapter]) -> Lora:
    """The adapters in the one order that makes equal choices equal."""
    return tuple(sorted(LoraChoice(adapter.name, adapter.scale) for adapter in lora))


def requested_size(request: JobRequest, info: ModelInfo, sources: Sequence[Size]) -> Size:
    """
    The size of the result.

    Args:
        request: checked.
        sources: sizes of the normalised reference images.
    """
    if request.height is not None and request.width is not None:
        return request.height, request.width
    if request.preset is not None:
        width_px, height_px = SIZES[request.preset]
        return height_px, width_px
    if request.size == "auto" and sources:
        height_px, width_px = sources[0]
        return min(max(height_px, info.min_px), info.max_px), min(max(width_px, info.min_px), info.max_px)
    if request.size is None or request.size == "auto":
        return info.default_height_px, info.default_width_px
    width, _, height = request.size.partition("x")
    return int(height), int(width)


def new_job(
    request: JobRequest,
    info: ModelInfo,
    tenant_id: str,
    sent: dict[str, Any],
    size: Size,
    sources: tuple[SourceFile, ...],
    webhook: dict[str, Any] | None,
    random_seed: int,
    approval_s: float,
) -> NewJob:
    """
    The job of a checked request.

    Args:
        sent: the request as the client wrote it; echoed as `input`.
        random_seed: used if the request names none.
        approval_s: how long a draft waits for approval, if it needs any.
    """
    seed = random_seed if request.seed is None else request.seed
    reading = read_texts(request)
    return NewJob(
        tenant_id=tenant_id,
        input=sent,
        prompt=reading.prompt,
        glyph_texts=None if reading.is_reference else reading.glyph_texts,
        warnings=warnings_of(reading),
        height_px=size[0],
        width_px=size[1],
        grid=TokenGrid.drawn_for(*size, info.min_generate_px, info.max_generate_px),
        num_images=request.n,
        seed=seed,
        layout_seed=seed if request.layout_seed is None else request.layout_seed,
        same_layout=request.same_layout,
        steps=info.steps if request.steps is None else request.steps,
        guidance_scale=info.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        temperature=info.temperature if request.temperature is None else request.temperature,
        top_p=info.top_p if request.top_p is None else request.top_p,
        format=request.format,
        quality=request.format_options.quality,
        max_bytes=request.format_options.max_bytes,
        renditions=tuple(new_rendition(rendition, size) for rendition in request.renditions),
        expires_in_s=request.expires_in,
        sources=sources,
        model_name=info.name,
        model_revision=info.revision,
        priority=request.priority,
        webhook=webhook,
        metadata=dict(request.metadata),
        custom_id=request.custom_id,
        deadline=request.deadline,
        lora=chosen_lora(request.lora),
        is_fast=request.quality == "fast",
        cache=request.cache,
        wants_previews=request.previews,
        approval_s=approval_s if request.approve else None,
    )


def new_rendition(asked: RenditionRequest, size: Size) -> Rendition:
    """What is to be made of an image of this size."""
    height_px, width_px = size
    if asked.preset is not None:
        width_px, height_px = SIZES[asked.preset]
    elif asked.size is not None:
        width_px, height_px = map(int, asked.size.split("x"))
    options = asked.format_options
    return Rendition(asked.name, height_px, width_px, asked.format, options.quality, options.max_bytes, asked.fit)


def read_texts(request: JobRequest) -> Reading:
    """The prompt and the texts of a checked request, as the engines get them."""
    return read_prompt(request.prompt, request.text, request.glyphs)


def warnings_of(reading: Reading) -> list[dict[str, Any]]:
    """What the writer of a prompt should know, as answers have it."""
    return [
        {"code": notice.code, "message": notice.message, "text": notice.text, "position": notice.position, "fixed": notice.is_fixed}
        for notice in reading.notices
    ]


def _check_texts(request: JobRequest, errors: ErrorCollector) -> None:
    written: list[tuple[Path, str]] = [(("prompt",), request.prompt), *((("text", index), text) for index, text in enumerate(request.text))]
    for path, text in written:
        token = find_control_token(text)
        if token is not None:
            detail = f"may not contain {token[:80]}, which the model reads as a command and not as text"
            errors.add(path, "control_token", detail, "unprocessable_prompt")
    if request.glyphs != "reference":
        return  # every other reading draws what it cannot quote
    try:
        read_texts(request)
    except UnquotableTextError as error:
        detail = "the reference's parser cannot read this text back from a prompt; with glyphs: auto it is drawn"
        errors.add(("text", error.index), "unquotable", detail, "unprocessable_prompt")


def _check_size(request: JobRequest, info: ModelInfo, errors: ErrorCollector) -> None:
    has_sides = request.width is not None or request.height is not None
    if (request.size is not None) + (request.preset is not None) + has_sides > 1:
        field = "preset" if request.preset is not None else "size"
        errors.add((field,), "exclusive", "give one of size, preset, or width with height")
    elif (request.width is None) != (request.height is None):
        missing = "width" if request.width is None else "height"
        errors.add((missing,), "missing", "width and height come together")
    sides: list[tuple[str, int]] = [(name, side) for name in ("width", "height") if (side := getattr(request, name)) is not None]
    if request.size is not None and request.size != "auto":
        sides += [("size", int(side)) for side in request.size.split("x")]
    if request.preset is not None:
        sides += [("preset", side) for side in SIZES[request.preset]]
    check_sides(sides, info, errors)
