"""Checkpoints of a picture: what is stored is what is read, and nothing else is believed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from services.decoder_worker.interim import LatentsSoFar
from shared.errors import TokenGridError

_LATENTS = np.random.default_rng(1).standard_normal((16, 8, 12)).astype(np.float32)
_SO_FAR = LatentsSoFar(7, _LATENTS, "digest")


def _stored(latents: np.ndarray = _LATENTS, **changes: object) -> bytes:
    about = {"version": 1, "num_done": 7, "made_for": "digest"} | changes
    return save({"latents": latents}, {"glmq-latents": json.dumps(about)})


def test_what_is_stored_is_read() -> None:
    """Steps, owner and every bit of the latents come back, and equal latents give equal bytes."""
    data = _SO_FAR.to_bytes()
    read = LatentsSoFar.from_bytes(data)
    assert (read.num_done, read.made_for) == (7, "digest")
    assert np.array_equal(read.latents, _LATENTS)
    assert data == _SO_FAR.to_bytes() == _stored()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 64,
        _stored()[:-1],
        _stored(version=2),
        _stored(num_done=0),
        _stored(num_done="7"),
        _stored(num_done=True),
        _stored(made_for=7),
        _stored(_LATENTS.astype(np.float64)),
        _stored(_LATENTS[0]),
        _stored(_LATENTS[:0]),
        _stored(np.full_like(_LATENTS, np.nan)),
        _stored(np.full_like(_LATENTS, np.inf)),
        save({"latents": _LATENTS}),
        save({"latents": _LATENTS, "more": _LATENTS}, {"glmq-latents": json.dumps({"version": 1, "num_done": 7, "made_for": "digest"})}),
        save({"other": _LATENTS}, {"glmq-latents": json.dumps({"version": 1, "num_done": 7, "made_for": "digest"})}),
        save({"latents": _LATENTS}, {"glmq-latents": "[]"}),
        bytes(33 << 20),
    ],
    ids=range(18),
)
def test_anything_else_is_refused(data: bytes) -> None:
    """Cut, foreign, of another version, type, shape or number of tensors, not finite, or far too large: refused."""
    with pytest.raises(TokenGridError):
        LatentsSoFar.from_bytes(data)


@settings(deadline=None)
@given(position=st.integers(0, len(_stored()) - 1), byte=st.integers(0, 255))
def test_no_damage_gets_past_but_into_the_numbers(position: int, byte: int) -> None:
    """With any one byte changed, the checkpoint is refused or still a checkpoint of finite latents."""
    data = bytearray(_stored())
    data[position] = byte
    try:
        read = LatentsSoFar.from_bytes(bytes(data))
    except TokenGridError:
        return
    assert read.num_done >= 1
    assert read.latents.ndim == 3
    assert np.isfinite(read.latents).all()
