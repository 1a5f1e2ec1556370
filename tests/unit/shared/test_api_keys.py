"""The form of API keys."""

from __future__ import annotations

import pytest

from shared.api_keys import ApiKeyText, new_api_key


def test_key_proves_itself() -> None:
    """A key matches its own hash and no other."""
    one, other = (ApiKeyText.parse(new_api_key()) for _ in range(2))
    assert one is not None
    assert other is not None
    assert one.matches(one.secret_sha256)
    assert not one.matches(other.secret_sha256)


@pytest.mark.parametrize(
    "text",
    ["", "glmq", "glmq_abc_def", "sk-123", "glmq_abcdefghijkl_short", "glmq_ABCDEFGHIJKL_" + "a" * 40, "glmq_abcdefghijkl_" + "é" * 40],
)
def test_other_texts_are_no_keys(text: str) -> None:
    """What has not the form is refused before any look into the database."""
    assert ApiKeyText.parse(text) is None
