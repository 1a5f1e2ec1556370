"""The demo's webhook receiver."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import httpx
import pytest
from standardwebhooks import Webhook

from cli.receiver import WebhookReceiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = json.dumps({"id": "evt_1", "type": "job.succeeded", "data": {"id": "job_1"}})


def headers(secret: str = SECRET) -> dict[str, str]:
    now = datetime.now(UTC)
    signature = Webhook(secret).sign("evt_1", now, BODY)
    return {"webhook-id": "evt_1", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}


def test_a_signed_event_is_taken() -> None:
    """An event signed by the right secret is kept and answered with success."""
    with WebhookReceiver(SECRET) as receiver:
        answer = httpx.post(receiver.url, content=BODY, headers=headers(), trust_env=False)

        assert answer.status_code == 204
        event = receiver.await_event("job_1", "job.succeeded", 1)
        assert event is not None
        assert event["id"] == "evt_1"


@pytest.mark.parametrize(
    "forged", [headers("whsec_" + "A" * 32), {}, {"webhook-id": "x", "webhook-timestamp": "now", "webhook-signature": "nonsense"}]
)
def test_an_unsigned_event_is_refused(forged: dict[str, str]) -> None:
    """What is signed by somebody else, not at all or not in the right form is not believed."""
    with WebhookReceiver(SECRET) as receiver:
        assert httpx.post(receiver.url, content=BODY, headers=forged, trust_env=False).status_code == 401
        assert receiver.events == []
        assert receiver.num_refused == 1
        assert receiver.await_event("job_1", "job.succeeded", 0.1) is None
