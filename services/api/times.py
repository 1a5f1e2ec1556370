"""Moments as customers write them: RFC 3339 with an offset. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)


def parse_rfc3339(text: str) -> datetime:
    """
    Read a moment, as UTC.

    Raises:
        ValueError: it is not one, or has no offset; the text is for the customer.
    """
    try:
        if _RFC3339.fullmatch(text):
            # In UTC from here on: the last hours of the year 9999 with an offset do not exist there, and fail here.
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError("should be a time with an offset, such as 2026-11-22T18:30:00Z (in a URL, write + as %2B)")
