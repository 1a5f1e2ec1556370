"""
`python -m checkpoints.evaluate.showcase`: writes docs/posters.png, a page of pictures drawn by a checkpoint, each with its prompt and
what the reader read in it.

Prompts, sizes and seeds are fixed below and were written before there was a picture; none was left out. The captions' font has no「」.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from checkpoints.evaluate.painter import Painter
from checkpoints.evaluate.reading import Reader
from checkpoints.train.posters import Bytes

PROMPTS: tuple[tuple[str, int, int], ...] = (
    ("A teal poster with the words 'GRAND OPENING' in white", 256, 256),
    ("A gradient navy poster with the title “Lighthouse” in yellow, with a frame", 256, 256),
    ("“WET PAINT” in black on a yellow background, at the top, with a bar at the bottom", 256, 256),
    ('An orange sign that reads "24-7" in navy letters, with a border', 256, 256),
    ("A pink poster with the words 'Once Upon Midnight' in purple, near the bottom", 256, 256),
    ("White background, red letters, “VACANCY”, with a bar at the top", 256, 256),
    ("A green card that says 'maple syrup'", 256, 256),
    ("A gradient purple poster with the words 'JOLLY PIRATES' in pink, at the bottom, with a border", 256, 256),
    ("A red banner with the text “Departures” in white", 128, 256),
    ('A black label that says "Why?" in orange', 128, 256),
    ("A grey notice with the words 'Knock, knock!' in black, with a bar below", 128, 256),
    ("A blue ticket with the words 'Gate B12' in yellow, with a border", 128, 256),
)
"""(prompt, height, width); the seed is the place in the list."""

_PER_ROW = 4
_SIDE_PX, _GAP_PX, _CAPTION_PX, _FONT_PX = 256, 24, 76, 12
_CAPTION_CHARACTERS = 40
_BLACK, _GREY, _WHITE = (20, 20, 24), (110, 114, 120), (255, 255, 255)


def page(pictures: list[tuple[str, str, Bytes]]) -> Image.Image:
    """(prompt, reading, picture) each in a cell of four to a row, the captions below; a row is as high as its highest picture."""
    bands = [pictures[first : first + _PER_ROW] for first in range(0, len(pictures), _PER_ROW)]
    heights = [max(picture.shape[0] for _, _, picture in band) + _CAPTION_PX + _GAP_PX for band in bands]
    image = Image.new("RGB", (_PER_ROW * (_SIDE_PX + _GAP_PX) + _GAP_PX, sum(heights) + _GAP_PX), _WHITE)
    pen = ImageDraw.Draw(image)
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", _FONT_PX)
    top = _GAP_PX
    for band, height in zip(bands, heights, strict=True):
        for number, (prompt, reading, picture) in enumerate(band):
            left = _GAP_PX + number * (_SIDE_PX + _GAP_PX)
            image.paste(Image.fromarray(picture), (left, top))
            caption = textwrap.wrap(prompt, _CAPTION_CHARACTERS)
            below = top + picture.shape[0] + 6
            pen.text((left, below), "\n".join(caption), fill=_BLACK, font=font)
            pen.text((left, below + len(caption) * (_FONT_PX + 4) + 2), f"read: {reading or '(nothing)'}", fill=_GREY, font=font)
        top += height
    return image


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m checkpoints.evaluate.showcase", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/miniature"))
    parser.add_argument("--out", type=Path, default=Path("docs/posters.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    painter, reader = Painter(options.checkpoint), Reader()
    pictures = []
    for seed, (prompt, height, width) in enumerate(PROMPTS):
        picture = painter.draw(prompt, painter.write_tokens(prompt, height, width, seed), height, width, seed)
        pictures.append((prompt, " / ".join(line.text for line in reader.read(picture)), picture))
    page(pictures).save(options.out, optimize=True)
    print(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
