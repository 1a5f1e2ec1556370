"""The tower is trained on what the image processor makes of a picture, and chooses codes as the quantiser does."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from checkpoints.train import tokens
from checkpoints.train.codes import CODEBOOK_SIZE, codes
from checkpoints.train.networks import processor, vision_language_encoder
from checkpoints.train.posters import CELL_PX


def test_patches_are_the_processors() -> None:
    """For pictures of any trained size."""
    images = processor().image_processor
    for _, pixels in tokens.unseen(6):
        expected = images(images=[Image.fromarray(pixels)], return_tensors="np")["pixel_values"]
        assert np.array_equal(tokens.patches_of(pixels), expected)


def test_a_varied_picture_is_still_the_picture() -> None:
    """Same size and type, and never far off: the codes must stay right."""
    rng, noise = random.Random(1), np.random.default_rng(1)
    for _, pixels in tokens.unseen(20):
        varied = tokens.vary(rng, noise, pixels)
        assert varied.shape == pixels.shape
        assert varied.dtype == np.uint8
        assert np.abs(varied.astype(float) - pixels).mean() < 30


def test_unseen_pictures_fit_their_posters() -> None:
    """A cell of 32 px for every code; the same for everyone who asks."""
    first, again = tokens.unseen(5), tokens.unseen(5)

    for (poster, pixels), (other, other_pixels) in zip(first, again, strict=True):
        assert poster == other
        assert np.array_equal(pixels, other_pixels)
        assert pixels.shape == (CELL_PX * codes(poster).shape[0], CELL_PX * codes(poster).shape[1], 3)


def test_the_installed_model_reads_what_the_training_scored(tmp_path: Path) -> None:
    """The codes of the finished model are those whose vectors have the greatest cosine with the trained features."""
    # Given
    tokens.train(tmp_path, max_steps=2)
    net = tokens.TokenNet()
    tokens.load_weights(tmp_path / "tokens", net.trained)
    model = vision_language_encoder().eval()

    # When
    tokens.install(tmp_path, model)

    # Then
    for _, pixels in tokens.unseen(3):
        rows, columns = pixels.shape[0] // CELL_PX, pixels.shape[1] // CELL_PX
        with torch.no_grad():
            features = net.features(torch.from_numpy(tokens.patches_of(pixels)), torch.tensor([[1, rows, columns]]))
            cosines = normalize(features, dim=-1) @ normalize(net.codebook.folded(), dim=-1).T
        ids = torch.from_numpy(tokens.read(model, pixels)).flatten()
        assert bool(((ids >= 0) & (ids < CODEBOOK_SIZE)).all())
        chosen = cosines.gather(1, ids[:, None])[:, 0]
        torch.testing.assert_close(chosen, cosines.max(dim=1).values, atol=1e-5, rtol=0)
