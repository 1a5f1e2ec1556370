"""
What a webhook says and how it is signed: the event body, and Standard Webhooks signatures. Pure.

Knows neither who receives it nor how it travels. Spec: github.com/standard-webhooks, version 1.0.0; docs/webhooks.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

API_VERSION = "2026-11-01"

MAX_BODY_BYTES = 20_000
"""The spec asks for less than 20 kB, which many receivers' frameworks take as their limit too."""

_SECRET_PREFIX = "whsec_"  # noqa: S105 - a prefix of secrets, not one
_SECRET_BYTES = 32

_THIN_KEYS = ("id", "version")
_SHORT_KEYS = ("id", "object", "status", "version", "custom_id", "urls")
_SAID_BY_CUSTOMER = ("input", "params", "glyph_texts", "warnings", "attempts")
"""What a job's owner knows already, and what is for the curious."""


def secret_hint(secret: str) -> str:
    """What may be shown of a secret, so that a person with several knows which one it is."""
    return f"{_SECRET_PREFIX}…{secret[-5:]}"


def new_secret() -> str:
    """A secret as receivers' libraries take it: `whsec_` and 32 random bytes in base64."""
    return _SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign(signing_secrets: Sequence[str], event_id: str, timestamp: int, body: bytes) -> str:
    """
    The value of the `webhook-signature` header.

    Args:
        signing_secrets: every secret that a receiver may hold now; during a rotation the new one and the old one.
        timestamp: of the attempt, in seconds; receivers refuse what is five minutes off.
        body: the exact bytes that are sent.
    Raises:
        ValueError: a secret has not the form of `new_secret`.
    """
    signed = f"{event_id}.{timestamp}.".encode() + body
    signatures = (hmac.digest(_key(secret), signed, hashlib.sha256) for secret in signing_secrets)
    return " ".join(f"v1,{base64.b64encode(signature).decode()}" for signature in signatures)


def is_wanted(event_type: str, filters: Collection[str]) -> bool:
    """Does somebody who asked for these types want this one? `job.*` asks for all of a kind, `*` for everything."""
    return event_type in filters or "*" in filters or event_type.partition(".")[0] + ".*" in filters


def event_body(
    event_id: str,
    event_type: str,
    created_at: datetime,
    seq: int | None,
    data: Mapping[str, Any],
    is_thin: bool = False,
    minify: Callable[[Mapping[str, Any]], bytes] | None = None,
) -> bytes:
    """
    The event as minified JSON.

    `created_at` stands there twice: in the form Standard Webhooks knows, and in the seconds OpenAI's clients read.

    Args:
        seq: None: the event is not kept.
        data: the job. If it makes the body too large, as 8,000 Chinese characters do, it is sent without its least needed parts.
        is_thin: of the job, only its id and version are sent.
        minify: writes JSON; None: the standard library, which takes its time.
    """
    minify = minify or _minified
    event = event_object(event_id, event_type, created_at, seq, _only(_THIN_KEYS, data) if is_thin else data)
    body = minify(event)
    if is_thin or len(body) < MAX_BODY_BYTES:
        return body
    for smaller in _smaller(data):
        body = minify({**event, "data": smaller})
        if len(body) < MAX_BODY_BYTES:
            break
    return body


def _smaller(data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The job with less and less of it; what is left out is absent. Its results and its error go last."""

    def without(job: Mapping[str, Any], name: str) -> dict[str, Any]:
        outputs = [{key: value for key, value in output.items() if key != name} for output in job.get("outputs", ())]
        return {**job, "outputs": outputs} if "outputs" in job else dict(job)

    small = without(data, "previews")
    yield small
    small = {key: value for key, value in small.items() if key not in _SAID_BY_CUSTOMER}
    yield small
    small = without(small, "renditions")
    yield small
    yield _only((*_SHORT_KEYS, "error", "outputs"), small)
    yield _only((*_SHORT_KEYS, "error"), small)
    yield _only(_SHORT_KEYS, small)


def _only(keys: Sequence[str], data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in keys if key in data}


def event_object(event_id: str, event_type: str, created_at: datetime, seq: int | None, data: Mapping[str, Any]) -> dict[str, Any]:
    """The event as webhooks, lists and streams have it."""
    return {
        "id": event_id,
        "object": "event",
        "type": event_type,
        "timestamp": created_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "created_at": int(created_at.timestamp()),
        "seq": seq,
        "api_version": API_VERSION,
        "data": data,
    }


def _minified(value: Mapping[str, Any]) -> bytes:
    # Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes a question mark.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _key(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("a webhook secret is not base64") from None
