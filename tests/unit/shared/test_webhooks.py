"""What glmq signs, the public library verifies; what it says fits the wire contract."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from shared.webhooks import MAX_BODY_BYTES, event_body, is_wanted, new_secret, secret_hint, sign

NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def now() -> None:
    """The libraries refuse a signature older than five minutes, and a whole suite takes longer than that from its collection."""
    global NOW
    NOW = datetime.now(UTC)


JOB = {
    "id": "job_1",
    "object": "job",
    "status": "succeeded",
    "version": 3,
    "input": {"prompt": 'a sign "开 OPEN"'},
    "urls": {"self": "/v1"},
}


def body(data: dict[str, Any] = JOB) -> bytes:
    return event_body("evt_1", "job.succeeded", NOW, 8812, data)


def headers(signature: str, event_id: str = "evt_1", timestamp: int | None = None) -> dict[str, str]:
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(NOW.timestamp()) if timestamp is None else timestamp),
        "webhook-signature": signature,
    }


def test_a_secret_has_the_form_receivers_expect() -> None:
    """`whsec_` and 32 random bytes in plain base64, a new one each time."""
    secret = new_secret()
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret[6:], validate=True)) == 32
    assert "_" not in secret[6:]
    assert new_secret() != secret


def test_the_public_library_verifies_the_signature() -> None:
    """A receiver with standardwebhooks reads the event, non-ASCII prompts included."""
    secret = new_secret()
    signed = headers(sign([secret], "evt_1", int(NOW.timestamp()), body()))
    assert Webhook(secret).verify(body(), signed)["data"] == JOB


def test_old_and_new_secret_verify_during_a_rotation() -> None:
    """With two secrets, holders of either accept, and holders of a third do not."""
    old, new = new_secret(), new_secret()
    signed = headers(sign([new, old], "evt_1", int(NOW.timestamp()), body()))
    for secret in (old, new):
        Webhook(secret).verify(body(), signed)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(body(), signed)


def test_one_changed_bit_is_noticed() -> None:
    """Id, timestamp and every part of the body are under the signature."""
    secret, at = new_secret(), int(NOW.timestamp())
    signature = sign([secret], "evt_1", at, body())
    changed = [(headers(signature, event_id="evt_0"), body()), (headers(signature, timestamp=at ^ 1), body())]
    # The lowest bit of ASCII, which keeps it ASCII; other bytes would not even be UTF-8.
    places = [place for place in range(0, len(body()), 7) if body()[place] < 128]
    changed += [(headers(signature), body()[:place] + bytes([body()[place] ^ 1]) + body()[place + 1 :]) for place in places]
    for changed_headers, changed_body in changed:
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(changed_body, changed_headers)


def test_a_secret_that_is_none_is_refused() -> None:
    """A mangled secret raises rather than sign with something else."""
    with pytest.raises(ValueError, match="base64"):
        sign(["whsec_not base64!"], "evt_1", 1, b"")


def test_the_body_is_the_contracts() -> None:
    """Minified, with the time in both forms that clients read."""
    at = datetime(2026, 11, 22, 13, 0, 0, 123456, tzinfo=timezone(timedelta(hours=1)))
    made = event_body("evt_1", "job.succeeded", at, 7, {"id": "job_1"})
    assert made == (
        b'{"id":"evt_1","object":"event","type":"job.succeeded","timestamp":"2026-11-22T12:00:00.123Z","created_at":1795348800,'
        b'"seq":7,"api_version":"2026-11-01","data":{"id":"job_1"}}'
    )


BIG = "画" * 8000
OUTPUT = {"index": 0, "url": "https://s3/0", "previews": [], "renditions": []}


@pytest.mark.parametrize(
    ("large", "left_out", "of_outputs"),
    [
        ({"outputs": [{**OUTPUT, "previews": [BIG]}]}, set(), {"previews"}),
        ({"input": {"prompt": BIG}}, {"input", "params", "attempts"}, {"previews"}),
        ({"outputs": [{**OUTPUT, "renditions": [BIG]}]}, {"input", "params", "attempts"}, {"previews", "renditions"}),
        ({"metadata": {"a": BIG}}, {"input", "params", "attempts", "metadata"}, {"previews", "renditions"}),
        ({"outputs": [{**OUTPUT, "url": BIG}]}, {"input", "params", "attempts", "metadata", "outputs"}, set()),
        ({"error": {"message": BIG}}, {"input", "params", "attempts", "metadata", "outputs", "error"}, set()),
    ],
)
def test_a_large_job_is_sent_with_less(large: dict[str, Any], left_out: set[str], of_outputs: set[str]) -> None:
    """No job makes a body beyond 20 kB: as little as will do is left out, the results and the error last; ids and links remain."""
    job = {**JOB, "params": {}, "attempts": [], "metadata": {}, "error": None, "outputs": [OUTPUT], **large}
    made = body(job)
    assert len(made) < MAX_BODY_BYTES
    data = json.loads(made)["data"]
    assert set(job) - set(data) == left_out
    assert {name for output in data.get("outputs", []) for name in set(OUTPUT) - set(output)} == of_outputs


def test_half_a_surrogate_pair_does_no_harm() -> None:
    """JSON can spell what UTF-8 cannot; the body is still made."""
    assert json.loads(body({"id": "job_1", "prompt": "\ud800"}))["data"]["prompt"] == "?"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["*"], True),
        (["job.*"], True),
        (["batch.*", "job.succeeded"], True),
        (["job.failed"], False),
        (["batch.*"], False),
        (["job"], False),
        (["succeeded"], False),
        ([], False),
    ],
)
def test_filters(filters: list[str], expected: bool) -> None:
    """By name, by kind, or all."""
    assert is_wanted("job.succeeded", filters) is expected


def test_a_thin_body_has_id_and_version_only() -> None:
    """Who fetches the rest itself gets no prompt."""
    body = event_body("evt_1", "job.succeeded", datetime.now(UTC), 1, {"id": "job_1", "version": 3, "input": {}}, is_thin=True)
    assert json.loads(body)["data"] == {"id": "job_1", "version": 3}


def test_a_hint_shows_the_end_of_a_secret() -> None:
    """Enough to tell two apart, and no more."""
    secret = new_secret()
    assert secret_hint(secret) == f"whsec_…{secret[-5:]}"
