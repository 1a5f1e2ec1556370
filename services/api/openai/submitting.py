"""How what a request of this interface was translated to becomes a job: by its key or the number of its try; errors in its own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flask import g, request

from services.api.field_errors import InvalidFieldsError, Path
from services.api.idempotency import TRY_HEADER, parse_key, parse_try
from services.api.openai.translate import NO_NAMES, in_sent_words
from services.api.parts import Parts
from services.api.request_body import RequestBody
from services.api.submitting import Origin, Submitted, submit_job
from shared.lifecycle.tenants import Caller

MAX_JSON_BYTES = 8 << 20
"""Of a body that may hold pictures in base 64. More has to come as files: JSON of any size would cost seconds to parse."""
OF_UNFINISHED = ("X-Should-Retry", "Link")
"""Headers of a refusal after a job was made."""


def submit_translated(
    parts: Parts,
    caller: Caller,
    route: str,
    sent: RequestBody,
    native: RequestBody,
    dialect: dict[str, Any] | None = None,
    places: Sequence[Path] | None = None,
    names: Mapping[str, Path] = NO_NAMES,
) -> Submitted:
    """
    Submit what a request of this interface was translated to.

    Raises: as `submit_job`; errors name the fields that the client sent.
    """
    key = parse_key(request.headers.get("Idempotency-Key"))
    origin = Origin(route, sent, parse_try(request.headers.get(TRY_HEADER)), g.began, dialect)
    try:
        return submit_job(parts, caller, native, key, origin)
    except InvalidFieldsError as error:
        raise in_sent_words(error, native, places, names) from None
