"""The page of examples shows every prompt of its list, with what was read in each picture."""

from __future__ import annotations

import numpy as np

from checkpoints.evaluate.showcase import PROMPTS, page
from checkpoints.train.posters import Poster, draw
from shared.quoting.reference import glyph_texts


def test_pictures_stand_four_to_a_row_with_captions_below() -> None:
    """A row is as high as its highest picture and the captions."""
    tall, wide = draw(Poster(8, 8, "red", "white", ""))[0], draw(Poster(4, 8, "navy", "white", ""))[0]

    image = page([("a red poster", "", tall)] * 4 + [("a navy poster", "NEXT / DOOR", wide)])
    pixels = np.asarray(image)
    assert pixels.shape == (24 + (256 + 100) + (128 + 100), 24 + 4 * 280, 3)
    assert (pixels[24:280, 24:280] == (200, 40, 40)).all()
    assert (pixels[380:508, 24:280] == (15, 25, 70)).all()
    assert (pixels[380:, 304:] == 255).all()
    assert (pixels[508:580, 24:280] < 128).any()


def test_every_example_quotes_a_text_and_fits() -> None:
    """Sizes are drawn ones, and no prompt stands there twice."""
    for prompt, height, width in PROMPTS:
        assert len(glyph_texts(prompt)) == 1
        assert height % 32 == width % 32 == 0
        assert max(height, width) <= 256
    assert len({prompt for prompt, _, _ in PROMPTS}) == len(PROMPTS) == 12
