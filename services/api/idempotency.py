"""`Idempotency-Key`, and the number of a try: as clients write them, and what makes two requests the same. Pure."""

from __future__ import annotations

import hashlib
import json
import re

from services.api.request_body import RequestBody
from shared.errors import RequestError

_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
"""A string of structured fields (RFC 9651, section 3.3.3)."""
_BARE = re.compile(r"[!#-~]+")
_MAX_CHARS = 255
TRY_HEADER = "X-Stainless-Retry-Count"
"""With which OpenAI's clients, and others that are made by the same generator, count the tries of a request."""


def parse_key(header: str | None) -> str | None:
    """
    The key, sent as a structured string or bare; None if none was sent.

    Raises:
        RequestError: `invalid_request`.
    """
    if header is None:
        return None
    text = header.strip()
    quoted = _STRING.fullmatch(text)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text
    if not (quoted or _BARE.fullmatch(text)) or not 1 <= len(key) <= _MAX_CHARS:
        raise RequestError(
            "invalid_request",
            f"Idempotency-Key: should be 1 to {_MAX_CHARS} visible ASCII characters, bare or in double quotes",
            "Idempotency-Key",
        )
    return key


def parse_try(header: str | None) -> int | None:
    """Which try of its request this is, 0 the first; None from clients that do not count."""
    return int(header) if header and header.isascii() and header.isdigit() and len(header) < 4 else None


def fingerprint(route: str, body: RequestBody) -> str:
    """
    A hash of what was asked, whatever the order of keys.

    Of the request as sent, before a seed is drawn: a retry draws another one and is still the same request.
    """
    asked = [route, body.fields, [hashlib.sha256(upload.data).hexdigest() for upload in body.uploads]]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
