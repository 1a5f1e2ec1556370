"""Reference images and their keys and values."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from services.decoder_worker.references import encode_references
from services.decoder_worker.weights import DecoderModel
from shared.errors import WorkStoppedError

_Reference = tuple[Image.Image, torch.Tensor]


def _reference(height: int, width: int, seed: int) -> _Reference:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    ids = torch.randint(0, 256, (1, height * width // 256), generator=generator)
    return Image.fromarray(pixels.numpy()), ids


def _keys(model: DecoderModel, *references: _Reference) -> torch.Tensor:
    with torch.inference_mode():
        cache = encode_references(model.transformer, model.vae, references, lambda: None)
    return cache[1].k_caches[0]


def test_references_stand_one_after_the_other(model: DecoderModel) -> None:
    """Two references of different sizes leave the keys that each leaves alone, joined: they never see one another."""
    first, second = _reference(64, 96, 1), _reference(128, 64, 2)
    both = _keys(model, first, second)
    assert both.shape[1] == 64 * 96 // 256 + 128 * 64 // 256
    assert torch.equal(both, torch.cat([_keys(model, first), _keys(model, second)], dim=1))


def test_stopping_is_asked_before_each_image(model: DecoderModel) -> None:
    """Told to stop after its first image, it does not begin the second."""
    calls: list[int] = []

    def stop_after_one() -> None:
        if calls:
            raise WorkStoppedError("stop")

    hook = model.transformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(WorkStoppedError), torch.inference_mode():
            encode_references(model.transformer, model.vae, [_reference(64, 64, 1), _reference(64, 64, 2)], stop_after_one)
    finally:
        hook.remove()
    assert calls == [1]
