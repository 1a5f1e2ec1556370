"""API keys: `glmq_<id>_<secret>`. The id finds the row, the secret's hash proves it. Pure."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass

_ALPHABET = string.ascii_letters + string.digits
_PATTERN = re.compile(r"glmq_([a-z0-9]{12})_([A-Za-z0-9]{32,64})")

SCOPES = ("read", "submit", "admin", "operator")
"""What a key may do, each with all before it: look, submit, manage its tenant, manage tenants."""


@dataclass(frozen=True)
class ApiKeyText:
    """A key as its holder sends it."""

    id: str
    secret_sha256: bytes

    @classmethod
    def parse(cls, text: str) -> ApiKeyText | None:
        """None if it has not the form of a key."""
        match = _PATTERN.fullmatch(text)
        # A plain hash: the secret is random and long, so a slow hash would add nothing but latency.
        return cls(match[1], hashlib.sha256(match[2].encode()).digest()) if match else None

    def matches(self, secret_sha256: bytes) -> bool:
        """Compared in constant time."""
        return hmac.compare_digest(self.secret_sha256, secret_sha256)


def new_api_key() -> str:
    """A fresh key; shown once, stored as a hash."""
    key_id = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(12))
    return f"glmq_{key_id}_" + "".join(secrets.choice(_ALPHABET) for _ in range(43))
