"""`Prefer` (RFC 7240): does the client want to wait for the job, and how long? Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_WAIT_S = 55
"""Proxies commonly give up at 60 s."""
DEFAULT_WAIT_S = 30
"""What `wait` alone means."""

_ASYNC = "respond-async"
_PREFERENCE = re.compile(
    r"""\s*(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:=\s*(?:"(?P<quoted>[^"\\]*)"|(?P<bare>[^\s;,"]*)))?\s*(?:;(?:"[^"]*"|[^,"])*)?(?:,|$)""",
    re.ASCII,
)


@dataclass(frozen=True)
class Preference:
    """
    What of `Prefer` we honour.

    Attributes:
        wait_s: 0: answer at once.
        applied: the value of `Preference-Applied`; None if nothing was asked for that we know.
    """

    wait_s: int = 0
    applied: str | None = None

    @property
    def is_wait(self) -> bool:
        """Was an answer asked for that tells the end, if only of what has ended already (`wait=0`)?"""
        return self.applied is not None and self.applied != _ASYNC


NO_PREFERENCE = Preference()


def parse_prefer(headers: Iterable[str]) -> Preference:
    """
    Read every `Prefer` header of a request. What is unknown or malformed is ignored, as the RFC wants; of two, the first one counts.

    `respond-async` beside `wait` means: answer at once after that time, which is what we always do.
    """
    preferences: dict[str, str | None] = {}
    for header in headers:
        for found in _PREFERENCE.finditer(header):
            value = found["quoted"] if found["quoted"] is not None else found["bare"]
            preferences.setdefault(found["name"].lower(), value or None)
    wait_s = _seconds(preferences["wait"]) if "wait" in preferences else None
    if wait_s is not None:
        return Preference(wait_s, f"wait={wait_s}")
    return Preference(applied=_ASYNC) if _ASYNC in preferences else NO_PREFERENCE


def _seconds(value: str | None) -> int | None:
    if value is None:
        return DEFAULT_WAIT_S
    if not re.fullmatch("[0-9]+", value, re.ASCII):
        return None
    # Not int() of what may have thousands of digits.
    digits = value.lstrip("0") or "0"
    return min(int(digits), MAX_WAIT_S) if len(digits) < 9 else MAX_WAIT_S
