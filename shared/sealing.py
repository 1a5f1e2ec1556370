"""Secrets at rest: AES-256-GCM under one key that only the processes know. Knows no tables."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.errors import StartupError

_NONCE_BYTES = 12


class Sealer:
    """Seals short secrets, such as those that sign webhooks."""

    def __init__(self, secret_key: str) -> None:
        """
        Raises:
            StartupError: the key is not 32 bytes in base64.
        """
        try:
            key = base64.b64decode(secret_key, validate=True)
        except binascii.Error:
            key = b""
        if len(key) != 32:
            raise StartupError("GLMQ_SECRET_KEY must be 32 random bytes in base64, as `openssl rand -base64 32` prints")
        self._cipher = AESGCM(key)
        # Another key for another purpose.
        self._tag_key = hmac.digest(key, b"glmq tags", hashlib.sha256)

    def tag(self, text: str) -> str:
        """A signature of a text that nobody else can make."""
        return hmac.digest(self._tag_key, text.encode("utf-8", "replace"), hashlib.sha256).hex()

    def seal(self, secret: str) -> bytes:
        """Encrypt; the nonce stands in front."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret.encode(), None)

    def unseal(self, sealed: bytes) -> str:
        """
        Raises:
            StartupError: sealed under another key.
        """
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None).decode()
        except InvalidTag:
            raise StartupError("GLMQ_SECRET_KEY is not the key that the stored secrets were sealed with") from None
