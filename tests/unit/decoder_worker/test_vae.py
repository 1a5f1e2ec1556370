"""Pixels to latents and back."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from services.decoder_worker.vae import pool_latents, to_pil, vae_decode, vae_encode
from services.decoder_worker.weights import DecoderModel


@torch.inference_mode()
def test_shapes(model: DecoderModel) -> None:
    """A picture of 64x96 is 16 channels of 8x12, and becomes 64x96 float32 pixels in 0..1 again."""
    latents = vae_encode(model.vae, Image.new("RGB", (96, 64), "orange"))
    assert latents.shape == (1, 16, 8, 12)
    pixels = vae_decode(model.vae, latents)
    assert pixels.shape == (1, 3, 64, 96)
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


@torch.inference_mode()
def test_a_batch_is_decoded_row_by_row(model: DecoderModel) -> None:
    """Two pictures decoded together are what each is alone."""
    latents = torch.randn((2, 16, 8, 12), generator=torch.Generator().manual_seed(1))
    together = vae_decode(model.vae, latents)
    for row in range(2):
        assert torch.allclose(together[row], vae_decode(model.vae, latents[row : row + 1])[0], atol=1e-5)


@torch.inference_mode()
def test_tiles_are_for_one_call(model: DecoderModel) -> None:
    """A picture larger than a tile is decoded in tiles and comes out nearly the same; the next call, untiled, is exact again."""
    tile = model.vae.tile_latent_min_size
    latents = torch.randn((1, 16, tile + 8, tile + 8), generator=torch.Generator().manual_seed(1))
    whole = vae_decode(model.vae, latents)
    tiled = vae_decode(model.vae, latents, tiled=True)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    # Random weights: statistics of a tile stray further from the picture's than a trained VAE's.
    assert (tiled - whole).abs().mean() < 0.25
    assert torch.equal(vae_decode(model.vae, latents), whole)
    small = latents[..., :tile, :tile]
    assert torch.equal(vae_decode(model.vae, small, tiled=True), vae_decode(model.vae, small)), "one tile is the whole"


@pytest.mark.parametrize(
    ("height", "width", "max_side", "pooled"), [(8, 12, 6, (4, 6)), (8, 12, 12, (8, 12)), (32, 4, 8, (8, 1)), (2, 64, 8, (1, 8))]
)
def test_latents_are_pooled_to_fit(height: int, width: int, max_side: int, pooled: tuple[int, int]) -> None:
    """The longest side fits, the aspect stays as nearly as whole pixels allow, no side is empty, and averages stay averages."""
    latents = torch.randn((1, 16, height, width), generator=torch.Generator().manual_seed(1))
    small = pool_latents(latents, max_side)
    assert tuple(small.shape[-2:]) == pooled
    assert torch.allclose(small.mean(dim=(2, 3)), latents.mean(dim=(2, 3)), atol=1e-5)
