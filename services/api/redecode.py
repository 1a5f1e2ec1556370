"""The layouts of an earlier job, drawn once more: other steps, noise, size or format, and no work for the AR stage."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from apiflask import APIBlueprint
from flask import Response, g, request

from services.api.answers import JobAnswer
from services.api.auth import authenticate
from services.api.field_errors import ErrorCollector, validated
from services.api.idempotency import TRY_HEADER, fingerprint, parse_key, parse_try
from services.api.job_access import find_job
from services.api.job_answers import submitted_response
from services.api.job_docs import NEW_JOB
from services.api.new_job import check_format, check_renditions, check_sides, chosen_lora, new_rendition
from services.api.parts import Parts
from services.api.prefer import parse_prefer
from services.api.presets import SIZES
from services.api.priority import with_allowed_priority
from services.api.request_body import RequestBody, read_json
from services.api.route_docs import describe
from services.api.run_time import check_deadline
from services.api.schemas import RedecodeRequest, RenditionRequest
from services.api.submitting import Origin, Submitted, store_job
from services.api.webhooks.callbacks import collect_webhook
from shared.checkpoint import ModelInfo
from shared.errors import RequestError
from shared.grid import TOKEN_PX, TokenGrid
from shared.lifecycle.idempotency import Idempotency, find_replay
from shared.lifecycle.new_job import NewJob, SourceFile
from shared.lifecycle.tenants import Caller, StoredFile, get_source
from shared.lifecycle.tries import Try, find_earlier, note_answer
from shared.lora import lora_from_json

_ROUTE = "POST /v1/jobs/<job_id>/redecode"


def redecode_job(parts: Parts, caller: Caller, source: dict[str, Any], idempotency_key: str | None, origin: Origin) -> Submitted:
    """
    Check a request to draw the layouts of a job once more, and store it as a job of its own.

    Args:
        source: document of the job whose layouts are drawn.
    Raises:
        RequestError: `layout_unavailable`, `idempotency_mismatch`, or names every wrong field.
        QuotaError: the tenant may not ask for more now.
        NoModelError, DatabaseDownError
    """
    parts.quotas.admit(caller)
    sent = origin.sent.fields
    this = fingerprint(f"{origin.route} {source['id']}", origin.sent)
    once = client_try = earlier = None
    if idempotency_key is not None:
        once = Idempotency(origin.route, idempotency_key, this)
        earlier = find_replay(parts.db, caller.tenant_id, once)
    elif origin.try_number is not None:
        client_try = Try(this, origin.try_number)
        earlier = find_earlier(parts.db, caller.tenant_id, client_try)
    if earlier is not None:
        return Submitted(earlier, is_replay=True)
    asked = validated(RedecodeRequest, sent)
    asked = with_allowed_priority(caller, asked)
    info = parts.model.get()
    errors = ErrorCollector()
    check_redecode(asked, info, source["params"], errors)
    webhook = collect_webhook(parts, caller.tenant_id, asked.webhook, sent.get("webhook"), errors)
    errors.raise_any()
    if source["model"]["revision"] != info.revision:
        raise RequestError("layout_unavailable", f"the layouts are of model {source['model']['revision']}; {info.revision} is loaded now")
    stored = [_source_file(parts, caller, image["file_id"]) for image in source["params"]["images"]]
    files = tuple(SourceFile(file.id, file.sha256) for file in stored)
    sizes = [(file.height_px, file.width_px) for file in stored]
    job = parts.fleet.get().priced(redecoded_job(asked, source, caller.tenant_id, sent, files, webhook), sizes)
    check_deadline(parts, job, len(sizes))
    if client_try is not None:
        client_try = replace(client_try, elapsed_s=time.monotonic() - origin.arrived_at)
    return store_job(parts, caller, job, once, client_try)


def check_redecode(asked: RedecodeRequest, info: ModelInfo, params: dict[str, Any], errors: ErrorCollector) -> None:
    """Collect what is wrong with a well-formed request in the light of the checkpoint and of the job that it is about. Pure."""
    if asked.size is not None and asked.preset is not None:
        errors.add(("preset",), "exclusive", "give either size or preset, not both")
    if asked.size is not None:
        check_sides([("size", int(side)) for side in asked.size.split("x")], info, errors)
    if asked.preset is not None:
        check_sides([("preset", side) for side in SIZES[asked.preset]], info, errors)
    if asked.format_options is not None:
        check_format(("format_options",), asked.format or params["format"], asked.format_options, errors)
    check_renditions(asked.renditions or [], errors)
    if asked.lora is not None and chosen_lora(asked.lora) != lora_from_json(params.get("lora", [])):
        errors.add(("lora",), "layout_differs", "should be as it was there: adapters decide the layout too, so others need a new job")


def redecoded_job(
    asked: RedecodeRequest,
    source: dict[str, Any],
    tenant_id: str,
    sent: dict[str, Any],
    files: tuple[SourceFile, ...],
    webhook: dict[str, Any] | None,
) -> NewJob:
    """
    The job of a checked request. Pure.

    Args:
        source: document of the job whose layouts are drawn.
        files: its reference images.
    """
    params = source["params"]
    drawn = source["outputs"][0]
    width_px, height_px = SIZES[asked.preset] if asked.preset else map(int, (asked.size or params["size"]).split("x"))
    format = asked.format or params["format"]
    if asked.format_options is not None:
        options = asked.format_options.model_dump()
    else:
        options = params["format_options"] if format == params["format"] else {}
    # Jobs of before renditions have none.
    renditions = params.get("renditions", []) if asked.renditions is None else [one.model_dump() for one in asked.renditions]
    # Jobs of before they could be chosen were exact, and showed no previews.
    quality = asked.quality or params.get("quality", "exact")
    previews = params.get("previews", False) if asked.previews is None else asked.previews
    return NewJob(
        tenant_id=tenant_id,
        input=sent,
        prompt=params["prompt"],
        height_px=height_px,
        width_px=width_px,
        grid=TokenGrid(drawn["generated_height"] // TOKEN_PX, drawn["generated_width"] // TOKEN_PX),
        num_images=params["n"] if asked.n is None else asked.n,
        seed=params["seed"] if asked.seed is None else asked.seed,
        layout_seed=params["layout_seed"],
        same_layout=params["same_layout"],
        steps=params["steps"] if asked.steps is None else asked.steps,
        guidance_scale=params["guidance_scale"] if asked.guidance_scale is None else asked.guidance_scale,
        temperature=params["temperature"],
        top_p=params["top_p"],
        format=format,
        quality=options.get("quality"),
        max_bytes=options.get("max_bytes"),
        renditions=tuple(new_rendition(RenditionRequest.model_validate(one), (height_px, width_px)) for one in renditions),
        expires_in_s=asked.expires_in or params.get("expires_in"),
        sources=files,
        model_name=source["model"]["name"],
        model_revision=source["model"]["revision"],
        priority=asked.priority,
        webhook=webhook,
        metadata=dict(asked.metadata),
        custom_id=asked.custom_id,
        deadline=asked.deadline,
        lora=lora_from_json(params.get("lora", [])),
        is_fast=quality == "fast",
        cache=asked.cache,
        wants_previews=previews,
        redecode_of=source["id"],
        glyph_texts=tuple(source["glyph_texts"]),
        warnings=source["warnings"],
    )


def redecode_blueprint(parts: Parts) -> APIBlueprint:
    """The route that draws a job's layouts once more."""
    redecode = APIBlueprint("redecode", __name__)

    @redecode.post("/v1/jobs/<job_id>/redecode")
    @redecode.output(JobAnswer, status_code=202, description="The job is accepted.")
    @redecode.doc(
        summary="Draw the layouts of a job once more",
        operation_id="redecode_job",
        security="ApiKey",
        responses=[200, 400, 401, 402, 403, 404, 409, 410, 413, 415, 422, 429, 503],
        extensions=describe(body=RedecodeRequest, example={"steps": 50, "format": "webp"}, **NEW_JOB),
    )
    def redecode_one(job_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        key = parse_key(request.headers.get("Idempotency-Key"))
        # Found before the body is read: whatever is sent, a foreign job answers as one that never was.
        source = find_job(parts, caller, job_id)
        prefer = parse_prefer(request.headers.getlist("Prefer"))
        origin = Origin(_ROUTE, RequestBody(read_json(request)), parse_try(request.headers.get(TRY_HEADER)), g.began)
        submitted = redecode_job(parts, caller, source, key, origin)
        if origin.try_number is not None and key is None:
            note_answer(parts.db, submitted.job_id)
        return submitted_response(parts, caller, submitted, prefer)

    return redecode


def _source_file(parts: Parts, caller: Caller, file_id: str) -> StoredFile:
    file = get_source(parts.db, caller.tenant_id, file_id)
    if file is None:
        raise RequestError("layout_unavailable", "a reference image of the job is no longer stored")
    return file
