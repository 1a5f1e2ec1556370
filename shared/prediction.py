"""
A job in Replicate's words: the document of a job in, a prediction out, for the API's answers and for webhooks. Pure.

The statuses that Replicate's clients know are fewer, and they poll for ever on any other: see `STATUSES`.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from shared.states import TERMINAL_JOB, JobStatus
from shared.webhooks import MAX_BODY_BYTES

DIALECT = "replicate"
"""How a job's row says that it came so."""

STATUSES = {
    JobStatus.QUEUED: "starting",
    JobStatus.RUNNING: "processing",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELED: "canceled",
    # Not `aborted`, which no client takes for an end.
    JobStatus.EXPIRED: "canceled",
}

STREAM_S = 86_400
"""How long the address of a prediction's stream works."""

_BAR = 10


def model_path(model_name: str) -> tuple[str, str]:
    """Owner and name of a model: those of the hub, or `glmq` for one that has no owner."""
    owner, _, name = model_name.rpartition("/")
    return (owner.rpartition("/")[2] or "glmq"), name


def version_id(revision: str) -> str:
    """A model's revision as clients can write it behind a colon: hexadecimal where it is a hash."""
    return revision.removeprefix("sha256:").replace(":", "-").replace("+", "-")


def stream_token(tag: Callable[[str], str], tenant_id: str, job_id: str, expires_at: int) -> str:
    """
    What lets somebody see the stream of one prediction without a key: Node's client sends none there.

    Args:
        tag: signs a text, as `Sealer.tag` does.
    """
    return f"{expires_at}.{tenant_id}.{tag(_signed(tenant_id, job_id, expires_at))}"


def tenant_of_token(tag: Callable[[str], str], token: str, job_id: str, now: float) -> str | None:
    """Whose prediction a token opens, if it is good for this one now."""
    expires_at, _, rest = token.partition(".")
    tenant_id, _, signature = rest.partition(".")
    if not (expires_at.isascii() and expires_at.isdigit() and len(expires_at) < 12) or int(expires_at) < now:
        return None
    return tenant_id if _equal(tag(_signed(tenant_id, job_id, int(expires_at))), signature) else None


def prediction(document: Mapping[str, Any], dialect: Mapping[str, Any] | None, base_url: str, token: str) -> dict[str, Any]:
    """
    The prediction.

    Args:
        document: of the job, with URLs (`job_document.finish_document`).
        dialect: what the job's row keeps of the request, if it came in this dialect.
        token: of the stream.
    """
    owner, name = model_path(document["model"]["name"])
    own = f"{base_url}/v1/predictions/{document['id']}"
    came_so = dialect is not None and dialect.get("name") == DIALECT
    return {
        "id": document["id"],
        "model": f"{owner}/{name}",
        "version": version_id(document["model"]["revision"]),
        "status": STATUSES[JobStatus(document["status"])],
        "input": dialect["input"] if dialect is not None and came_so else document["input"],
        "output": [output["url"] for output in document["outputs"]] if document["status"] == JobStatus.SUCCEEDED else None,
        "logs": logs(document),
        "error": _error(document),
        "metrics": _metrics(document),
        "created_at": document["created_at"],
        "started_at": document["started_at"],
        "completed_at": document["completed_at"],
        # Of ours; clients leave them alone. Events of before they were kept have none.
        "glyph_texts": document.get("glyph_texts", []),
        "warnings": document.get("warnings", []),
        "data_removed": False,
        "source": "api",
        "urls": {"get": own, "cancel": f"{own}/cancel", "stream": f"{own}/stream?token={token}"},
    }


def prediction_body(predicted: Mapping[str, Any]) -> bytes:
    """The prediction as a webhook's body; one that is too large goes without input, texts and logs."""
    body = _minified(predicted)
    return body if len(body) < MAX_BODY_BYTES else _minified({**predicted, "input": {}, "glyph_texts": [], "warnings": [], "logs": ""})


def logs(document: Mapping[str, Any]) -> str:
    """How far the job is, in the form that clients read progress from."""
    if document["started_at"] is None:
        return ""
    progress = document["progress"]
    done, total = progress["done"], max(1, progress["total"])
    bar = "█" * (done * _BAR // total)
    return f"{progress['phase']}\n{done * 100 // total}%|{bar:<{_BAR}}| {done}/{total}\n"


def _error(document: Mapping[str, Any]) -> str | None:
    # A text, always: clients print it. Of a canceled one the status says all.
    error = document["error"]
    return None if error is None or document["status"] == JobStatus.CANCELED else f"{error['code']}: {error['message']}"


def _metrics(document: Mapping[str, Any]) -> dict[str, Any]:
    if document["status"] not in TERMINAL_JOB:
        return {}
    created, started, completed = (
        None if document[name] is None else datetime.fromisoformat(document[name]) for name in ("created_at", "started_at", "completed_at")
    )
    metrics: dict[str, Any] = {"image_count": document["usage"]["images"]}
    if completed is not None and created is not None:
        metrics["total_time"] = (completed - created).total_seconds()
        metrics["predict_time"] = 0.0 if started is None else (completed - started).total_seconds()
    return metrics


def _minified(value: Mapping[str, Any]) -> bytes:
    # Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes a question mark.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _signed(tenant_id: str, job_id: str, expires_at: int) -> str:
    return f"stream {tenant_id} {job_id} {expires_at}"


def _equal(first: str, second: str) -> bool:
    return hmac.compare_digest(first.encode(), second.encode("utf-8", "replace"))
