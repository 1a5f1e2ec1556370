"""RFC 3339, and nothing near it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.api.times import parse_rfc3339


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T18:30:00Z", datetime(2026, 11, 22, 18, 30, tzinfo=UTC)),
        ("2026-11-22t18:30:00.5z", datetime(2026, 11, 22, 18, 30, 0, 500_000, tzinfo=UTC)),
        ("2026-11-22T18:30:00.123456789+05:30", datetime(2026, 11, 22, 13, 0, 0, 123_456, tzinfo=UTC)),
        ("2026-01-01T00:00:00+14:00", datetime(2025, 12, 31, 10, tzinfo=UTC)),
    ],
)
def test_moments_become_utc(text: str, expected: datetime) -> None:
    """Any offset and any fraction is read, and comes back in UTC."""
    assert parse_rfc3339(text) == expected
    assert parse_rfc3339(text).tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-22",
        "2026-11-22T18:30:00",
        "2026-11-22 18:30:00Z",
        "2026-11-22T18:30Z",
        "2026-11-22T24:00:01Z",
        "2026-02-30T00:00:00Z",
        "20261122T183000Z",
        "2026-W47-7T18:30:00Z",
        "2026-11-22T18:30:00+0530",
        "2026-11-22T18:30:00Z\n",
        "٢٠٢٦-11-22T18:30:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "1790000000",
    ],
)
def test_the_rest_is_refused(text: str) -> None:
    """No guessing: without date, time and offset it is not a moment."""
    with pytest.raises(ValueError, match="should be a time with an offset"):
        parse_rfc3339(text)
