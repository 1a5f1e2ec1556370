"""Pixels to latents and back."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from services.decoder_worker.vae import to_pil, vae_decode, vae_encode
from services.decoder_worker.weights import DecoderModel


@torch.inference_mode()
def test_shapes(model: DecoderModel) -> None:
    """A picture of 64x96 is 16 channels of 8x12, and becomes 64x96 float32 pixels in 0..1 again."""
    latents = vae_encode(model.vae, Image.new("RGB", (96, 64), "orange"))
    assert latents.shape == (1, 16, 8, 12)
    pixels = vae_decode(model.vae, latents)
    assert pixels.shape == (3, 64, 96)
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() <= pixels.max() <= 1


@torch.inference_mode()
def test_one_image_has_one_encoding(model: DecoderModel) -> None:
    """Encoding takes the mode, so the global generator has no say."""
    image = Image.new("RGB", (64, 64), "teal")
    first = vae_encode(model.vae, image)
    torch.rand(3)
    assert torch.equal(first, vae_encode(model.vae, image))


@pytest.mark.parametrize(("value", "level"), [(0.0, 0), (0.5 / 255, 0), (1.5 / 255, 2), (2.4 / 255, 2), (254.6 / 255, 255), (1.0, 255)])
def test_rounding_is_half_to_even(value: float, level: int) -> None:
    """Floats become the nearest of 256 levels, and halves the even one, as in the reference."""
    assert to_pil(torch.full((3, 2, 4), value)).getpixel((3, 1)) == (level, level, level)


def test_rows_stay_rows() -> None:
    """The pixel at row 1, column 3 of channel 0 is the red of that pixel."""
    pixels = torch.zeros((3, 2, 4))
    pixels[0, 1, 3] = 1
    image = to_pil(pixels)
    assert image.size == (4, 2)
    assert image.getpixel((3, 1)) == (255, 0, 0)
