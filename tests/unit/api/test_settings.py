"""The API's settings."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.api.settings import ApiSettings


def test_environment_is_read_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables begin with GLMQ_; what makes no sense is refused."""
    needed = {"DATABASE_URL": "postgresql://x", "REDIS_URL": "redis://x", "S3_ENDPOINT": "http://x", "S3_ACCESS_KEY": "a"}
    for name, value in {**needed, "S3_SECRET_KEY": "b", "SECRET_KEY": "c", "API_PORT": "9000"}.items():
        monkeypatch.setenv(f"GLMQ_{name}", value)
    settings = ApiSettings()
    assert (settings.api_host, settings.api_port, settings.api_threads, settings.max_body_bytes) == ("127.0.0.1", 9000, 16, 64 << 20)
    monkeypatch.setenv("GLMQ_API_PORT", "0")
    with pytest.raises(ValidationError):
        ApiSettings()
