"""What an operator decides about the order of release."""

from __future__ import annotations

import pytest

from services.dispatcher.policy import Rules
from services.dispatcher.release import rules_of
from services.dispatcher.settings import DispatcherSettings
from shared.errors import StartupError
from shared.settings import read_settings

REQUIRED = {
    "DATABASE_URL": "postgresql://x",
    "REDIS_URL": "redis://x",
    "S3_ENDPOINT": "http://x",
    **dict.fromkeys(("S3_ACCESS_KEY", "S3_SECRET_KEY", "SECRET_KEY"), "x"),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in REQUIRED.items():
        monkeypatch.setenv(f"GLMQ_{name}", value)


def test_every_rule_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults are the policy's own, and each of them can be set."""
    assert rules_of(read_settings(DispatcherSettings)) == Rules()
    values = {
        "LANE_WEIGHT_INTERACTIVE": "9",
        "LANE_WEIGHT_STANDARD": "3",
        "LANE_WEIGHT_BULK": "2",
        "QUANTUM_S": "7",
        "BULK_AGES_S": "60",
        "DEADLINE_NEAR_S": "0",
        "TENANT_WEIGHTS": '{"ten_a": 2}',
    }
    for name, value in values.items():
        monkeypatch.setenv(f"GLMQ_{name}", value)
    assert rules_of(read_settings(DispatcherSettings)) == Rules((9, 3, 2), 7, 60, 0, {"ten_a": 2})


@pytest.mark.parametrize("value", ["nonsense", "[1]", '{"ten_a": 0}'])
def test_wrong_weights_refuse_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """By the variable's name."""
    monkeypatch.setenv("GLMQ_TENANT_WEIGHTS", value)
    with pytest.raises(StartupError, match="GLMQ_TENANT_WEIGHTS"):
        read_settings(DispatcherSettings)
