"""Settings are read once and refused with their name."""

from __future__ import annotations

import pytest

from shared.errors import StartupError
from shared.settings import WorkerSettings, read_settings

COMPLETE = {
    "GLMQ_DATABASE_URL": "postgresql://u:p@127.0.0.1/d",
    "GLMQ_REDIS_URL": "redis://127.0.0.1",
    "GLMQ_S3_ENDPOINT": "http://127.0.0.1:1",
    "GLMQ_S3_ACCESS_KEY": "k",
    "GLMQ_S3_SECRET_KEY": "hidden-secret",
    "GLMQ_SECRET_KEY": "hidden-key",
    "GLMQ_CHECKPOINT": "folder",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A complete environment, and nothing else of ours."""
    for name, value in COMPLETE.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_complete_settings_are_read(environment: pytest.MonkeyPatch) -> None:
    """Defaults fill the rest; secrets are not shown."""
    settings = read_settings(WorkerSettings)
    assert settings.lease_s == 30
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GLMQ_LEASE_S", "soon"),
        ("GLMQ_TORCH_THREADS", "0"),
        ("GLMQ_DTYPE", "float16"),
        ("GLMQ_LOG_LEVEL", "loud"),
        ("GLMQ_DATABASE_URL", "localhost"),
        ("GLMQ_DATABASE_URL", ""),
        ("GLMQ_REDIS_URL", "localhost:6379"),
        ("GLMQ_S3_ENDPOINT", "localhost:8333"),
        ("GLMQ_S3_PUBLIC_ENDPOINT", "s3.example.com"),
    ],
)
def test_wrong_setting_is_named(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The variable is named, its value is not repeated."""
    environment.setenv(name, value)
    with pytest.raises(StartupError, match=name):
        read_settings(WorkerSettings)


def test_lease_must_outlive_missed_heartbeats(environment: pytest.MonkeyPatch) -> None:
    """A heartbeat longer than a third of the lease is refused."""
    environment.setenv("GLMQ_LEASE_S", "9")
    environment.setenv("GLMQ_HEARTBEAT_S", "4")
    with pytest.raises(StartupError, match="GLMQ_HEARTBEAT_S may be at most a third"):
        read_settings(WorkerSettings)


def test_missing_setting_is_named(environment: pytest.MonkeyPatch) -> None:
    """A variable that is needed and not there is named."""
    environment.delenv("GLMQ_CHECKPOINT")
    with pytest.raises(StartupError, match="GLMQ_CHECKPOINT"):
        read_settings(WorkerSettings)
