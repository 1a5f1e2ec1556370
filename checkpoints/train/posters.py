"""
Synthetic posters: what a poster is, how its text is broken into lines, and how it is drawn. Pure but for reading the font.

A poster lies on a grid of 32-px cells, as GLM-Image's AR model sees a picture. A line of text takes one row of cells, and each of
its characters one patch column (16 x 32 px), centred on the middle of the picture.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

CELL_PX = 32
PATCH_PX = 16
MAX_CELLS = 8
"""Longest side of a poster in cells: 256 px."""

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,!?&'-:;"

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 40, 40),
    "blue": (35, 70, 180),
    "green": (30, 130, 70),
    "yellow": (240, 205, 60),
    "orange": (235, 130, 40),
    "purple": (110, 50, 150),
    "teal": (20, 140, 150),
    "black": (20, 20, 24),
    "white": (245, 245, 242),
    "pink": (240, 150, 180),
    "navy": (15, 25, 70),
    "gray": (120, 124, 130),
}

Decoration = Literal["none", "border", "bar above", "bar below"]
Position = Literal["top", "centre", "bottom"]
Bytes = npt.NDArray[np.uint8]
Grid = npt.NDArray[np.int64]


def luminance(colour: str) -> float:
    red, green, blue = COLOURS[colour]
    return 0.299 * red + 0.587 * green + 0.114 * blue


_MIN_CONTRAST = 40.0
PAIRS = [(background, text) for background in COLOURS for text in COLOURS if abs(luminance(background) - luminance(text)) >= _MIN_CONTRAST]
"""(background, text colour) that can be read; every other wish for a text colour gets the background's usual one."""


def usual_text_colour(background: str) -> str:
    return "white" if luminance(background) < 140 else "black"


@dataclass(frozen=True)
class Poster:
    """
    Attributes:
        rows, columns: in cells of 32 px.
        text: one to six words, see `lines`, or none.
        gradient: the background darkens downwards.
    """

    rows: int
    columns: int
    background: str
    colour: str
    text: str
    position: Position = "centre"
    decoration: Decoration = "none"
    gradient: bool = False

    @property
    def first_row(self) -> int:
        """First row of cells that text may use."""
        return int(self.decoration in ("border", "bar above"))

    @property
    def last_row(self) -> int:
        """The row after the last that text may use."""
        return self.rows - int(self.decoration in ("border", "bar below"))

    @property
    def margin(self) -> int:
        """Columns on either side that text may not use."""
        return int(self.decoration == "border")

    @property
    def half_line(self) -> int:
        """How many characters fit on either side of the middle. An odd number of cells puts the middle half a cell to the left."""
        return 2 * (min(self.columns // 2, self.columns - self.columns // 2) - self.margin)


# ---------------------------------------------------------------- lines

SINGLE, STACKED, PAIRED = 0, 1, 4
"""First `part` of each way to break a text: on one line, a word a line (up to 3), two words a line (up to 3)."""

NUM_PARTS = 7


def lines(text: str, rows: int) -> list[tuple[int, str]]:
    """
    (part, line) of a text for at most `rows` lines.

    Two or three words stand one above the other, four to six in pairs, as long as the rows suffice; anything else is one line.
    No text has no line.
    """
    if not text:
        return []
    words = text.split(" ")
    if 2 <= len(words) <= 3 and len(words) <= rows:
        return [(STACKED + i, word) for i, word in enumerate(words)]
    if 4 <= len(words) <= 6 and (len(words) + 1) // 2 <= rows:
        return [(PAIRED + i, " ".join(words[2 * i : 2 * i + 2])) for i in range((len(words) + 1) // 2)]
    return [(SINGLE, text)]


def placed_lines(poster: Poster) -> list[tuple[int, int, str]]:
    """(row, part, line) of every line of text."""
    rows = poster.last_row - poster.first_row
    parts = lines(poster.text, rows)
    free = rows - len(parts)
    top = min(1, free // 3)
    start = {"top": top, "centre": free // 2, "bottom": free - top}[poster.position]
    return [(poster.first_row + start + i, part, line) for i, (part, line) in enumerate(parts)]


def start_column(columns: int, line: str) -> int:
    """Patch column of a line's first character; negative where the line is too long."""
    return 2 * (columns // 2) - (len(line) + 1) // 2


# ---------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Style:
    """What a picture of a poster is free to choose, and no prompt or code says. Shades are added to the colours."""

    background_shade: tuple[int, int, int] = (0, 0, 0)
    text_shade: tuple[int, int, int] = (0, 0, 0)
    inset_px: int = 8
    thickness_px: int = 4

    @classmethod
    def sample(cls, rng: random.Random) -> Style:
        def shade() -> tuple[int, int, int]:
            return rng.randint(-6, 6), rng.randint(-6, 6), rng.randint(-6, 6)

        return cls(shade(), shade(), rng.choice([6, 8, 10]), rng.choice([2, 4, 6]))


@cache
def _glyph(character: str) -> npt.NDArray[np.float32]:
    """Ink of a character in 0..1, (32, 16, 1)."""
    font = _font()
    image = Image.new("L", (PATCH_PX, CELL_PX), 0)
    ImageDraw.Draw(image).text(((PATCH_PX - font.getlength(character)) / 2, 1), character, font=font, fill=255)
    return np.asarray(image, np.float32)[..., None] / np.float32(255)


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSansMono-Bold.ttf", 26)


def draw(poster: Poster, style: Style | None = None, letters: bool = True) -> tuple[Bytes, Grid]:
    """
    A picture of the poster.

    Args:
        letters: whether the text is drawn; without, its place stays empty.

    Returns:
        pixels (32 rows, 32 columns, 3), and for each 16-px patch the number of its character, from 1, or 0: (2 rows, 2 columns).
    """
    style = style or Style()
    height, width = CELL_PX * poster.rows, CELL_PX * poster.columns
    background = np.array(COLOURS[poster.background], np.float32) + np.array(style.background_shade, np.float32)
    ink = np.array(COLOURS[poster.colour], np.float32) + np.array(style.text_shade, np.float32)
    pixels = np.empty((height, width, 3), np.float32)
    # The middle stays nearest to the colour's name.
    pixels[:] = (
        background * (np.linspace(1.1, 0.72, height, dtype=np.float32) if poster.gradient else np.ones(height, np.float32))[:, None, None]
    )
    inset, thick = style.inset_px, style.thickness_px
    if poster.decoration == "border":
        inner = np.ones((height, width), bool)
        inner[inset + thick : height - inset - thick, inset + thick : width - inset - thick] = False
        inner[:inset], inner[height - inset :], inner[:, :inset], inner[:, width - inset :] = False, False, False, False
        pixels[inner] = ink
    elif poster.decoration != "none":
        top = (CELL_PX - thick) // 2 + (0 if poster.decoration == "bar above" else height - CELL_PX)
        pixels[top : top + thick + 2, 2 * inset : width - 2 * inset] = ink
    characters = np.zeros((2 * poster.rows, 2 * poster.columns), np.int64)
    for row, _, line in placed_lines(poster) if letters else ():
        for column, character in enumerate(line, start_column(poster.columns, line)):
            if character == " " or not 2 * poster.margin <= column < 2 * (poster.columns - poster.margin):
                continue
            box = np.s_[CELL_PX * row : CELL_PX * (row + 1), PATCH_PX * column : PATCH_PX * (column + 1)]
            glyph = _glyph(character)
            pixels[box] = pixels[box] * (1 - glyph) + ink * glyph
            characters[2 * row : 2 * row + 2, column] = 1 + CHARACTERS.index(character)
    return pixels.clip(0, 255).round().astype(np.uint8), characters


def all_sizes() -> Iterator[tuple[int, int]]:
    """(rows, columns) of every trained size: 64 to 256 px a side."""
    return ((rows, columns) for rows in range(2, MAX_CELLS + 1) for columns in range(2, MAX_CELLS + 1))
