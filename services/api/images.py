"""The images of a job over HTTP: the list of them, and the way to the files of each."""

from __future__ import annotations

import re
from typing import Any

from apiflask import APIBlueprint
from flask import Response, jsonify, redirect, request

from services.api.answers import ImageListAnswer
from services.api.auth import authenticate
from services.api.job_access import find_job
from services.api.job_answers import public_document
from services.api.list_answer import list_body
from services.api.parts import Parts
from services.api.queries import ImageQuery
from services.api.request_body import read_query
from services.api.route_docs import describe
from services.api.thumbnails import THUMBNAIL, THUMBNAIL_FORMAT, thumbnail_key
from shared.errors import RequestError
from shared.lifecycle.jobs import StoredResult, get_result
from shared.storage import StorageMissingError


def images_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/jobs/{id}/images`."""
    images = APIBlueprint("images", __name__)

    @images.get("/v1/jobs/<job_id>/images")
    @images.output(ImageListAnswer, description="The job's images, finished or not.")
    @images.doc(summary="List the images of a job", operation_id="list_images", security="ApiKey", responses=[401, 403, 404, 410, 503])
    def list_images(job_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        return jsonify(list_body(public_document(parts, find_job(parts, caller, job_id))["outputs"]))

    @images.get("/v1/jobs/<job_id>/images/<index>")
    @images.doc(
        summary="Get an image",
        operation_id="get_image",
        security="ApiKey",
        responses=[302, 400, 401, 403, 404, 410, 503],
        extensions=describe(query=ImageQuery, descriptions={"302": "Where the file is, for an hour."}, headers={"302": ("Location",)}),
    )
    def get_image(job_id: str, index: str) -> Any:
        caller = authenticate(parts.callers, request, "read")
        query = read_query(request.args, ImageQuery)
        document = find_job(parts, caller, job_id)
        if not re.fullmatch("[0-9]", index, re.ASCII) or int(index) >= len(document["outputs"]):
            raise RequestError("not_found", f"the job has {len(document['outputs'])} images, counted from 0")
        result = get_result(parts.db, caller.tenant_id, job_id, int(index))
        if result is None:
            raise RequestError("not_found", f"image {index} is not there yet: the job is {document['status']}")
        key, format = _file(parts, result, query.variant)
        suffix = "" if query.variant is None else f"-{query.variant}"
        name = f"{job_id}-{index}{suffix}.{format}" if query.download == "1" else None
        return redirect(parts.storage.presign(key, download_name=name))

    return images


def _file(parts: Parts, result: StoredResult, variant: str | None) -> tuple[str, str]:
    """Key and format of a file of the image."""
    if variant is None:
        return result.artifact.storage_key, result.format
    if variant == THUMBNAIL:
        try:
            return thumbnail_key(parts.storage, result.artifact.storage_key), THUMBNAIL_FORMAT
        except StorageMissingError:
            raise RequestError("not_found", "the image is no longer stored") from None
    if variant not in result.renditions:
        known = ", ".join([*result.renditions, THUMBNAIL])
        raise RequestError("not_found", f"the image has no variant {variant}; there are: {known}", "variant")
    return result.renditions[variant]
