"""Secrets at rest."""

from __future__ import annotations

import base64
import os

import pytest

from shared.errors import StartupError
from shared.sealing import Sealer


def test_seal_and_unseal() -> None:
    """A secret comes back, differs in every sealing, and needs its own key."""
    sealer, other = (Sealer(base64.b64encode(os.urandom(32)).decode()) for _ in range(2))
    sealed = sealer.seal("whsec_x")
    assert sealer.unseal(sealed) == "whsec_x"
    assert sealed != sealer.seal("whsec_x")
    assert b"whsec" not in sealed
    for wrong in (other, sealer):
        with pytest.raises(StartupError):
            wrong.unseal(sealed if wrong is other else sealed[:-1] + b"\x00")


@pytest.mark.parametrize("key", ["", "short", "x" * 43, base64.b64encode(b"x" * 16).decode(), "not base64!"])
def test_bad_keys_are_refused(key: str) -> None:
    """Only 32 bytes in base64 are a key; the message does not repeat what was given."""
    with pytest.raises(StartupError, match="GLMQ_SECRET_KEY") as refused:
        Sealer(key)
    assert not key or key not in str(refused.value)
