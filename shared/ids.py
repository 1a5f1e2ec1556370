"""Ids as customers see them: a type prefix and a UUIDv7 in 26 lower-case characters, sortable by creation time. Pure."""

from __future__ import annotations

import hashlib
import os
import re
import time

# Crockford's base 32 in lower case: no i, l, o, u, so an id survives being read aloud.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS = range(120, -1, -10)
_ID_PATTERN = re.compile(rf"[a-z]+[_-][{_ALPHABET}]{{26}}")
_HYPHENATED = ("file",)
"""Prefixes that OpenAI's tools know by their hyphen."""


def new_id(prefix: str) -> str:
    """
    Make an id such as `job_01k9v6s3m8e2t4…`.

    No dot ever appears: Standard Webhooks joins id, timestamp and body by dots.
    """
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    value = milliseconds << 80 | 0x7 << 76 | (random >> 6 & 0xFFF) << 64 | 0b10 << 62 | (random & (1 << 62) - 1)
    return _spelled(prefix, value)


def named_id(prefix: str, name: str) -> str:
    """The id of the one thing of this name: whoever makes it twice finds it there. It says nothing of the time."""
    return _spelled(prefix, int.from_bytes(hashlib.sha256(name.encode()).digest()[:16]))


def _spelled(prefix: str, value: int) -> str:
    # 26 characters are 130 bits, two more than the value has.
    return prefix + _separator(prefix) + "".join([_PAIRS[value >> shift & 0x3FF] for shift in _SHIFTS])


def is_id(text: str, prefix: str) -> bool:
    """Does `text` have the form of an id with this prefix?"""
    # With an underscore too: so the first files were named.
    return text.startswith((prefix + _separator(prefix), prefix + "_")) and _ID_PATTERN.fullmatch(text) is not None


def _separator(prefix: str) -> str:
    return "-" if prefix in _HYPHENATED else "_"
