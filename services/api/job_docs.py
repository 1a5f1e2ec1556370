"""What the routes that make jobs have in common, for the OpenAPI document; as `route_docs.py` takes it."""

from __future__ import annotations

from typing import Any

UPLOADS = {
    "type": "array",
    "items": {"type": "string", "contentMediaType": "application/octet-stream"},
    "description": "Reference images, after those of `images`.",
}
FORM_EXAMPLE = {"request": {"prompt": "make it night", "size": "auto"}, "image": ["(the bytes of a.png)"]}
NEW_JOB: dict[str, Any] = {
    "is_counted": True,
    "request_headers": ("Idempotency-Key", "Prefer"),
    "descriptions": {"200": "The job has ended while the request waited for it; or the same Idempotency-Key made it before."},
    "headers": {
        "202": ("Location", "Retry-After", "Preference-Applied"),
        "200": ("Location", "Retry-After", "Idempotency-Replayed", "Preference-Applied"),
    },
    "same_as": {"200": "202"},
    "links": (("get_job", "cancel_job", "list_images", "redecode_job", "approve_job", "reject_job"), "job_id"),
}
