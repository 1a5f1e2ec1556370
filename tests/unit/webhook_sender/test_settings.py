"""Settings that cannot work are refused at the start."""

from __future__ import annotations

import pytest

from services.webhook_sender.settings import WebhookSenderSettings
from shared.errors import StartupError
from shared.settings import read_settings


def test_a_lease_shorter_than_an_attempt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another sender would take over what is still being posted."""
    urls = {"DATABASE_URL": "postgresql://x", "REDIS_URL": "redis://x", "S3_ENDPOINT": "http://x"}
    for name, value in (urls | dict.fromkeys(("S3_ACCESS_KEY", "S3_SECRET_KEY", "SECRET_KEY"), "x")).items():
        monkeypatch.setenv(f"GLMQ_{name}", value)
    assert read_settings(WebhookSenderSettings).webhook_lease_s == 30
    monkeypatch.setenv("GLMQ_WEBHOOK_TIMEOUT_S", "25")
    with pytest.raises(StartupError, match="GLMQ_WEBHOOK_LEASE_S"):
        read_settings(WebhookSenderSettings)
