"""
Synthetic posters: what a poster is, how it is drawn, which semantic code each cell has, and the prompts that ask for it.

A poster lies on a grid of 32-px cells, as GLM-Image's AR model sees a picture. A line of text takes one row of cells, and each of
its characters one patch column (16 x 32 px), centred on the middle of the picture. The code of a cell says its colours and, in a
row of text, which part of the text stands there and how far the cell is from the middle; never which letter. So the AR model
decides the layout, and the DiT finds the letter for each patch in the glyph embeddings. Pure but for reading the font.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
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


# ---------------------------------------------------------------- codes

Feature = tuple[str, str | int | bool]
"""One thing that a code says, such as ("background", "teal") or ("row", 3)."""

_MAX_DRAFT_CELLS = 32
"""Longest side of a draft: that of a picture four times as long as wide."""


def _all_codes() -> list[tuple[Feature, ...]]:
    """
    What each code says.

    A code of the picture tells its own place, by row, column or both, so that the next one follows from it and the prompt, and
    nothing has to be counted. A column is told from the middle, as the letters are placed. A code of the draft tells the background and,
    at the start of a row, the draft's row, else its column.
    """
    columns = range(-MAX_CELLS // 2, MAX_CELLS // 2)
    found: list[tuple[Feature, ...]] = []
    for background in COLOURS:
        for gradient in (False, True):
            ground = (("background", background), ("gradient", gradient))
            found += [(("kind", "plain"), *ground, ("row", row), ("column", column)) for row in range(MAX_CELLS) for column in columns]
            found += [(("kind", "draft"), *ground, ("draft row", row)) for row in range(_MAX_DRAFT_CELLS)]
            found += [(("kind", "draft"), *ground, ("draft column", column)) for column in range(1, _MAX_DRAFT_CELLS)]
    for background, colour in PAIRS:
        pair = (("background", background), ("colour", colour))
        found += [(("kind", "text"), *pair, ("part", part), ("column", column)) for part in range(NUM_PARTS) for column in columns]
        found += [
            (("kind", kind), *pair, ("column", column))
            for kind in ("bar above", "bar below", "border top", "border bottom")
            for column in columns
        ]
        found += [(("kind", kind), *pair, ("row", row)) for kind in ("border left", "border right") for row in range(MAX_CELLS)]
        found += [(("kind", f"corner {end} {side}"), *pair) for end in ("top", "bottom") for side in ("left", "right")]
    return found


CODES = _all_codes()
_NUMBERS = {features: code for code, features in enumerate(CODES)}
CODEBOOK_SIZE = -(-len(CODES) // 128) * 128


def codes(poster: Poster) -> Grid:
    """The semantic code of every cell, (rows, columns)."""
    ground: tuple[Feature, ...] = (("background", poster.background), ("gradient", poster.gradient))
    pair: tuple[Feature, ...] = (("background", poster.background), ("colour", poster.colour))
    parts = {row: part for row, part, _ in placed_lines(poster)}
    last_row, last_column = poster.rows - 1, poster.columns - 1

    def features(row: int, index: int) -> tuple[Feature, ...]:
        column: Feature = ("column", index - poster.columns // 2)
        if poster.decoration == "border" and (row in (0, last_row) or index in (0, last_column)):
            end, side = ("top" if row == 0 else "bottom"), ("left" if index == 0 else "right")
            if row not in (0, last_row):
                return ("kind", f"border {side}"), *pair, ("row", row)
            if index not in (0, last_column):
                return ("kind", f"border {end}"), *pair, column
            return ("kind", f"corner {end} {side}"), *pair
        if poster.decoration.startswith("bar") and row == (0 if poster.decoration == "bar above" else last_row):
            return ("kind", poster.decoration), *pair, column
        if row in parts:
            return ("kind", "text"), *pair, ("part", parts[row]), column
        return ("kind", "plain"), *ground, ("row", row), column

    return np.array([[_NUMBERS[features(row, index)] for index in range(poster.columns)] for row in range(poster.rows)])


def draft_codes(poster: Poster, rows: int, columns: int) -> Grid:
    """The codes of the poster's draft, (rows, columns), of whatever size the processor asks for: the background and the place."""
    ground: tuple[Feature, ...] = (("kind", "draft"), ("background", poster.background), ("gradient", poster.gradient))
    row_codes = [[_NUMBERS[*ground, ("draft row", row)]] for row in range(rows)]
    rest = [_NUMBERS[*ground, ("draft column", column)] for column in range(1, columns)]
    return np.array([first + rest for first in row_codes])


def code_factors() -> list[tuple[int, ...]]:
    """
    For each code the numbers of its features.

    Tables of embeddings are trained as sums over these, so that what is learned of one teal cell holds for every teal cell.
    """
    numbers: dict[Feature, int] = {}
    return [tuple(numbers.setdefault(feature, len(numbers)) for feature in features) for features in CODES]


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


# ---------------------------------------------------------------- sampling

WORDS = (
    "open sale coffee hello world music fresh grand city park summer winter spring autumn festival night market street food dream big "
    "stay calm good vibes only love peace happy new year party live rock blues cinema book shop club tea house pizza sushi grill bar "
    "cafe flower garden health yoga run fast slow stop go exit enter push pull welcome home sweet travel paris rome beach ocean river "
    "lake forest sky star moon sun rain snow wind fire water earth space rocket today now here free entry gift card half price best deal "
    "top ten news daily times week month zone quiet please thank you all day the of and we are your our hot cold ice cream red blue "
    "green black white special offer soon limited time buy one get two kids family menu lunch dinner fish chips beer wine art show game "
    "team win join us order online class school sport fitness studio repair service car wash books toys shoes hats"
).split()
"""Training words. The evaluation's are others; `tests/unit/checkpoints` compares the two lists."""

_PUNCTUATION = ".,!?&'-:;"


def _word(rng: random.Random, longest: int) -> str:
    kind = rng.random()
    if kind < 0.4:
        word = rng.choice(WORDS)
    elif kind < 0.85:
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(1, longest)))
    elif kind < 0.93:
        word = "".join(rng.choice("0123456789") for _ in range(rng.randint(1, min(4, longest))))
    else:
        word = "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(1, longest)))
    word = rng.choice([word.upper(), word.upper(), word, word.capitalize()])[:longest]
    if len(word) < longest and rng.random() < 0.12:
        word += rng.choice("!!.,?:;")
    elif len(word) > 2 and rng.random() < 0.1:
        at = rng.randrange(1, len(word) - 1)
        word = word[:at] + rng.choice(_PUNCTUATION) + word[at + 1 :]
    return word


def sample_text(rng: random.Random, half_line: int, rows: int, words: int | None = None) -> str:
    """A text that fits `rows` lines of `2 * half_line` characters, of `words` words if they fit."""
    longest = 2 * half_line
    words = words or rng.choices([1, 2, 3, 4, 5, 6], [36, 28, 16, 9, 6, 5])[0]
    while True:
        fitting = (longest - 1) // 2 if words > 3 else longest
        if fitting >= 1:
            pick = min(fitting, rng.choice([4, 6, 8, 10, 12]))
            text = " ".join(_word(rng, pick) for _ in range(words))
            # A quote that the pipeline's patterns would cut short, or a pair of apostrophes, is no text of one line.
            if text.count("'") <= 1 and all(len(line) <= longest for _, line in lines(text, rows)):
                return text
        words = max(1, words - 1) if rng.random() < 0.5 or fitting < 1 else words


def sample_poster(rng: random.Random, rows: int, columns: int, words: int | None = None) -> Poster:
    """A poster of this size. `words` of text if they fit; by default any number, sometimes none."""
    background, colour = rng.choice(PAIRS)
    if rng.random() < 0.3:
        colour = usual_text_colour(background)
    decorations: list[Decoration] = ["none"]
    if rows >= 3:
        decorations += ["bar above", "bar below"]
    if rows >= 3 and columns >= 4:
        decorations += ["border", "border"]
    decoration = rng.choice(decorations) if rng.random() < 0.6 else "none"
    poster = Poster(rows, columns, background, colour, "", rng.choice(("top", "centre", "bottom")), decoration, rng.random() < 0.25)
    if words is None and rng.random() < 0.04:
        return poster
    poster = replace(poster, text=sample_text(rng, poster.half_line, poster.last_row - poster.first_row, words))
    if poster.gradient and all(("kind", "plain") not in CODES[code] for code in codes(poster).flat):
        poster = replace(poster, gradient=False)  # no plain cell would show it
    return poster


# ---------------------------------------------------------------- prompts

_QUOTES = (("'", "'"), ("'", "'"), ('"', '"'), ("“", "”"), ("「", "」"))

_NOUNS = ["poster"] * 6 + ["sign", "banner", "card", "flyer", "label", "picture", "image", "cover", "ad", "design", "billboard", "page"]
_ADJECTIVES = [""] * 10 + ["simple ", "bold ", "clean ", "modern ", "plain ", "bright ", "minimal ", "small ", "nice "]
_OPENINGS = ["", "", "", "", "Create ", "Make ", "Design ", "Draw ", "Please make ", "I want ", "Generate ", "Show me "]
_CARRIERS = {
    1: ["with the word {}", "with the text {}", "that says {}", "saying {}", "reading {}", "with {}", "which says {}", "with the title {}"],
    2: [
        "with the words {}",
        "with the text {}",
        "that says {}",
        "saying {}",
        "reading {}",
        "with {}",
        "which says {}",
        "with the words {} on it",
    ],
}
_COLOURINGS = ["in {}", "in {}", "in {}", "in {} letters", "in {} text", "in {} type", "written in {}", "in {} lettering", "in bold {}"]
_POSITIONS = {
    "top": ["at the top", "at the top", "on top", "near the top", "at the very top", "with the text at the top", "in the upper part"],
    "bottom": ["at the bottom", "at the bottom", "near the bottom", "with the text at the bottom", "in the lower part"],
    "centre": ["in the centre", "in the center", "in the middle", "centred", "centered", "with the text in the middle"],
}
_DECORATIONS = {
    "border": ["with a border", "and a border", "with a border around it", "with a frame", "framed by a border", "with a {fg} border"],
    "bar above": ["with a bar above", "with a bar at the top", "with a line above", "and a bar on top", "with a {fg} bar above"],
    "bar below": ["with a bar below", "with a bar at the bottom", "with a line below", "with a bar", "and a bar", "with a {fg} bar below"],
    "none": [""],
}


def _spelled(rng: random.Random, colour: str) -> str:
    return "grey" if colour == "gray" and rng.random() < 0.5 else colour


def quote(rng: random.Random, text: str) -> str:
    opening, closing = rng.choice([pair for pair in _QUOTES if pair[0] not in text])
    return f"{opening}{text}{closing}"


def write_prompt(rng: random.Random, poster: Poster) -> str:
    """
    A prompt in plain English for this poster, all of it: what is not said has one meaning.

    Not said: text colour -> the background's usual one; position -> centre; decoration -> none.
    """
    quoted = quote(rng, poster.text) if poster.text else ""
    background = _spelled(rng, poster.background)
    colour = _spelled(rng, poster.colour)
    if poster.colour != usual_text_colour(poster.background):
        say_colour = True
    else:
        say_colour = rng.random() < 0.5
        if say_colour and rng.random() < 0.06:  # a wish that could not be read
            unreadable = [name for name in COLOURS if (poster.background, name) not in PAIRS and name != poster.background]
            colour = _spelled(rng, rng.choice(unreadable)) if unreadable else colour
    gradient = "gradient " if poster.gradient else rng.choice([""] * 8 + ["plain ", "solid "])
    say_position = poster.text and (poster.position != "centre" or rng.random() < 0.3)
    position = rng.choice(_POSITIONS[poster.position]) if say_position else ""
    decoration = rng.choice(_DECORATIONS[poster.decoration]).format(fg=colour)
    noun, adjective, opening = rng.choice(_NOUNS), rng.choice(_ADJECTIVES), rng.choice(_OPENINGS)
    ground = f"{gradient}{background}" if rng.random() < 0.85 or not gradient else f"{background} {gradient.strip()}"
    if poster.gradient and rng.random() < 0.2:
        ground = rng.choice([f"{background} gradient", f"gradient {background}"])
    carrier = rng.choice(_CARRIERS[min(2, len(poster.text.split(" ")))]).format(quoted)
    colouring = rng.choice(_COLOURINGS).format(colour) if say_colour else ""
    shape = rng.random()
    if not quoted:
        ink = f" {rng.choice(['in', 'with'])} {colour}" if poster.decoration != "none" and say_colour else ""
        parts = [
            f"{opening}a {adjective}{ground} {rng.choice(['background', noun])}{rng.choice(['', ' without text', ' with no text'])}{ink}"
        ]
    elif shape < 0.45:
        parts = [f"{opening}a {adjective}{ground} {noun} {carrier}", colouring]
    elif shape < 0.6:
        parts = [f"{opening}a {adjective}{noun} {carrier}", colouring, f"on a {ground} background"]
    elif shape < 0.72:
        ink = f", {colour} text" if say_colour else ""
        parts = [f"{ground} background{ink}, {quoted}"]
    elif shape < 0.84:
        parts = [f"{quoted}", colouring, f"on a {ground} {rng.choice(['background', noun])}"]
    elif shape < 0.92:
        parts = [
            f"{opening}a {adjective}{noun} with a {ground} background and",
            f"the {colour} text {quoted}" if say_colour else f"the text {quoted}",
        ]
    else:
        parts = [f"{opening}a {ground} {noun},", f"{colour} text {quoted}" if say_colour else f"text {quoted}"]
    extras = [extra for extra in (position, decoration) if extra]
    rng.shuffle(extras)
    comma = rng.random() < 0.4
    text = " ".join(part for part in parts if part)
    for extra in extras:
        text += f", {extra}" if comma else f" {extra}"
    if text.startswith("a ") and rng.random() < 0.85:
        text = "A" + text[1:]
    elif rng.random() < 0.15 and text[0].isalpha():
        text = text[0].lower() + text[1:]
    return text + rng.choice(["", "", "."])


# ---------------------------------------------------------------- edits


@dataclass(frozen=True)
class Edit:
    """An instruction about `source`, and the poster that follows it. `text` is what the instruction quotes, or empty."""

    source: Poster
    target: Poster
    instruction: str
    text: str


def sample_edit(rng: random.Random, rows: int, columns: int) -> Edit:
    source = sample_poster(rng, rows, columns, words=rng.choices([1, 2, 3, 4, 5], [36, 28, 18, 10, 8])[0])
    kind = rng.choices(["text", "background", "colour", "position"], [45, 30, 15, 10])[0]
    if kind == "text":
        text = sample_text(rng, source.half_line, source.last_row - source.first_row)
        verb = rng.choice(
            [
                "replace the text with {}",
                "replace the text with {}",
                "replace the words with {}",
                "change the text to {}",
                "change the words to {}",
                "make it say {}",
                "set the text to {}",
                "the text should say {}",
            ]
        )
        return Edit(source, replace(source, text=text), _sentence(rng, verb.format(quote(rng, text))), text)
    if kind == "background":
        background = rng.choice([name for name in COLOURS if name != source.background])
        colour = source.colour if (background, source.colour) in PAIRS else usual_text_colour(background)
        verb = rng.choice(
            [
                "make the background {}",
                "make the background {}",
                "change the background to {}",
                "change the background colour to {}",
                "turn the background {}",
                "use a {} background",
                "set the background to {}",
            ]
        )
        return Edit(
            source, replace(source, background=background, colour=colour), _sentence(rng, verb.format(_spelled(rng, background))), ""
        )
    if kind == "colour":
        choices = [text for ground, text in PAIRS if ground == source.background and text != source.colour]
        colour = rng.choice(choices)
        verb = rng.choice(
            [
                "make the text {}",
                "make the text {}",
                "change the text colour to {}",
                "change the text color to {}",
                "turn the text {}",
                "use {} letters",
                "write it in {}",
            ]
        )
        return Edit(source, replace(source, colour=colour), _sentence(rng, verb.format(_spelled(rng, colour))), "")
    position: Position = rng.choice([name for name in ("top", "centre", "bottom") if name != source.position])
    verb = rng.choice(["move the text to the {}", "put the text at the {}", "move the words to the {}"])
    # A text that moves is quoted, for it is drawn anew.
    said = rng.choice(["middle", "centre", "center"]) if position == "centre" else position
    instruction = verb.format(said) + f", {quote(rng, source.text)}"
    return Edit(source, replace(source, position=position), _sentence(rng, instruction), source.text)


def _sentence(rng: random.Random, text: str) -> str:
    return (text[0].upper() + text[1:] if rng.random() < 0.4 else text) + rng.choice(["", "", "."])


def all_sizes() -> Iterator[tuple[int, int]]:
    """(rows, columns) of every trained size: 64 to 256 px a side."""
    return ((rows, columns) for rows in range(2, MAX_CELLS + 1) for columns in range(2, MAX_CELLS + 1))
