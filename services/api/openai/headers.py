"""Headers that OpenAI's clients read: how long an answer took, and when to ask again."""

from __future__ import annotations

import time

from apiflask import APIBlueprint
from flask import Response, g

from services.api.job_answers import retry_after_s
from services.api.openai.answers import Document
from services.api.parts import Parts
from shared.states import TERMINAL_JOB

POLL_AFTER = "OpenAI-Poll-After-Ms"


def tell_time(blueprint: APIBlueprint) -> None:
    """Have every answer of a blueprint say how long it took; of a stream, its beginning."""

    @blueprint.after_request
    def tell(response: Response) -> Response:
        response.headers["OpenAI-Processing-Ms"] = str(round((time.monotonic() - g.began) * 1000))
        return response


def tell_poll(parts: Parts, response: Response, document: Document) -> Response:
    """Have an answer about a job that goes on say when to ask again."""
    if document["status"] not in TERMINAL_JOB:
        response.headers[POLL_AFTER] = str(1000 * retry_after_s(parts, dict(document)))
    return response
