"""URLs of webhooks, checked before they are stored. Knows URLs and events; sends nothing."""

from __future__ import annotations

from typing import Any

from services.api.field_errors import ErrorCollector
from services.api.parts import Parts
from services.api.schemas import Webhook
from services.api.waiting import Waiting
from shared.db import Database
from shared.egress import EgressPolicy, ParsedUrl
from shared.errors import RequestError
from shared.ids import is_id
from shared.lifecycle.endpoints import get_endpoint
from shared.lifecycle.events import DEFAULT_WEBHOOK_EVENTS, JOB_EVENTS, JOB_PROGRESS

_RESOLVE_S = 3.0
"""Guess: a name that takes longer is left to the sender, which checks it again at every attempt."""


def collect_webhook(parts: Parts, tenant_id: str, webhook: Webhook | None, sent: object, errors: ErrorCollector) -> dict[str, Any] | None:
    """
    The webhook of a job of this tenant as the job's row keeps it, or None if there is none; what is wrong with it is collected.

    Args:
        sent: as the client wrote it, a plain URL or an object.
    """
    if webhook is None:
        return None
    if webhook.secret_id is not None and not _has_secret(parts.db, tenant_id, webhook.secret_id):
        errors.add(("webhook", "secret_id"), "unknown", "names no webhook endpoint of yours")
    path = ("webhook",) if isinstance(sent, str) else ("webhook", "url")
    with errors.collecting(path):
        return check_webhook(parts.policy, parts.waiting, webhook, ".".join(path))
    return None


def check_webhook(policy: EgressPolicy, waiting: Waiting, webhook: Webhook, param: str) -> dict[str, Any]:
    """
    The webhook as the job's row keeps it: `{url, events}`, with every event named, and perhaps `secret_id`.

    Raises: as `check_receiver`.
    """
    signer = {} if webhook.secret_id is None else {"secret_id": webhook.secret_id}
    return {"url": str(check_receiver(policy, waiting, webhook.url, param)), "events": _event_names(webhook.events), **signer}


def _has_secret(db: Database, tenant_id: str, endpoint_id: str) -> bool:
    return is_id(endpoint_id, "we") and get_endpoint(db, tenant_id, endpoint_id) is not None


def check_receiver(policy: EgressPolicy, waiting: Waiting, url: str, param: str) -> ParsedUrl:
    """
    The URL of a receiver of webhooks, if it may be one. While a name server is asked, other requests have this one's turn.

    A name that has no address yet is accepted: a receiver may be set up after the job.

    Raises:
        RequestError: not a plain http or https URL.
        ForbiddenAddressError: it leads to an address that is not public.
    """
    parsed = policy.check_url(url, param)
    try:
        with waiting.aside():
            policy.resolve_aside(parsed.host, parsed.port, param).result(_RESOLVE_S)
    except TimeoutError:
        pass
    except RequestError as error:
        if error.code != "input_fetch_failed":
            raise
    return parsed


def _event_names(asked: list[str] | None) -> list[str]:
    if asked is None:
        return list(DEFAULT_WEBHOOK_EVENTS)
    named = [name for name in JOB_EVENTS if name in asked or "job.*" in asked]
    return [*named, JOB_PROGRESS] if JOB_PROGRESS in asked else named
