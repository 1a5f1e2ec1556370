"""
What can be measured in a picture of a poster: words, colours, place, decoration, gradient. Pure.

Nothing here knows whether a picture was generated or drawn, so what a measure cannot see costs the ceiling (the same measure on the
reference render) as much as the figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from checkpoints.evaluate.reading import Line
from checkpoints.train.posters import CELL_PX, COLOURS, Bytes, Decoration, Position, Poster, placed_lines

Pixels = npt.NDArray[np.float32]

_SHADES = (0.65, 1.2)
"""How dark and how light a gradient may make its colour: a little more than posters.draw does."""

_STRONG = 0.75
"""Ink this near to the strongest counts for its colour; the rest are blurred edges."""

_CLEAR = 0.3
"""Less ink than this is background."""

_MARGIN_PX = 20
"""Left out at both ends of a side that is searched for a border or a bar; the widest inset of both."""

_POSITIONS: tuple[Position, ...] = ("top", "centre", "bottom")


# ---------------------------------------------------------------- words


def right_words(asked: str, read: str) -> int:
    """How many of the asked words were read, exactly and in their order."""
    return _common(asked.split(), read.split())


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for a in first:
        diagonal = 0
        for i, b in enumerate(second, 1):
            diagonal, lengths[i] = lengths[i], diagonal + 1 if a == b else max(lengths[i], lengths[i - 1])
    return lengths[-1]


def likeness(asked: str, read: str) -> float:
    """One minus the normalised edit distance ("NED"): 1 when equal, 0 when nothing is right."""
    longest = max(len(asked), len(read))
    return 1 - _edits(asked, read) / longest if longest else 1.0


def _edits(first: str, second: str) -> int:
    """Fewest letters to insert, delete or replace."""
    costs = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, costs[0] = costs[0], i
        for j, b in enumerate(second, 1):
            diagonal, costs[j] = costs[j], min(diagonal + (a != b), costs[j] + 1, costs[j - 1] + 1)
    return costs[-1]


# ---------------------------------------------------------------- colours


def nearest_colour(colour: Pixels) -> str:
    """The named colour at the smallest distance in RGB."""
    return min(COLOURS, key=lambda name: float(np.linalg.norm(colour - np.array(COLOURS[name], np.float32))))


def background_and_ink(pixels: Bytes, lines: Sequence[Line]) -> tuple[Pixels, Pixels, Pixels]:
    """
    Take a picture apart.

    Args:
        lines: where the text is; without any, ink is looked for in the whole picture.

    Returns:
        colour of the background (median of the pixels without ink), colour of the text (median of its strongest ink), and how much
        ink each pixel has, 1 where it is as strong as in the text: (H, W).
    """
    values = pixels.astype(np.float32)
    middle = _median(values.reshape(-1, 3), values[0, 0])
    # Distance to any shade of the background, so that a gradient is no ink.
    shade = np.clip(values @ middle / max(float(middle @ middle), 1.0), *_SHADES)
    distance = np.linalg.norm(values - shade[..., None] * middle, axis=-1)
    inside = inside_boxes(pixels.shape[0], pixels.shape[1], lines) if lines else np.ones(pixels.shape[:2], bool)
    strongest = max(float(np.quantile(distance[inside], 0.98)), 1.0)
    ink = (distance / strongest).astype(np.float32)
    background = _median(values[ink < _CLEAR], middle)
    return background, _median(values[inside & (ink >= _STRONG)], background), ink


def _median(values: Pixels, otherwise: Pixels) -> Pixels:
    """Of (N, 3), each channel for itself."""
    return np.median(values, axis=0).astype(np.float32) if len(values) else otherwise


def inside_boxes(height: int, width: int, lines: Sequence[Line]) -> npt.NDArray[np.bool_]:
    """Which pixels lie in the box of a line, (H, W)."""
    inside = np.zeros((height, width), bool)
    for line in lines:
        inside[max(0, int(line.top)) : int(line.bottom) + 1, max(0, int(line.left)) : int(line.right) + 1] = True
    return inside


# ---------------------------------------------------------------- layout


def decoration(ink: Pixels, lines: Sequence[Line]) -> Decoration:
    """
    Border, bar or none: whether a straight line of ink runs along the sides.

    Args:
        ink: (H, W), see `background_and_ink`.
    """
    marks = (ink > 0.5) & ~inside_boxes(ink.shape[0], ink.shape[1], lines)
    inner = slice(_MARGIN_PX, -_MARGIN_PX)
    top, bottom = (bool((marks[cells, inner].mean(axis=1) > 0.8).any()) for cells in (slice(CELL_PX), slice(-CELL_PX, None)))
    left, right = (bool((marks[inner, cells].mean(axis=0) > 0.8).any()) for cells in (slice(CELL_PX), slice(-CELL_PX, None)))
    if left and right and (top or bottom):
        return "border"
    return "bar above" if top else "bar below" if bottom else "none"


def has_gradient(pixels: Bytes, ink: Pixels) -> bool:
    """Whether the background's lowest third is clearly darker than its highest."""
    third = len(pixels) // 3
    levels = pixels.astype(np.float32).mean(axis=-1)
    clear = [levels[rows][ink[rows] < _CLEAR] for rows in (slice(third), slice(-third, None))]
    if not all(len(some) for some in clear):
        return False
    high, low = (float(np.median(some)) for some in clear)
    # The least difference is for black, where a single level is five per cent.
    return low < 0.88 * high and high - low > 4


def position(poster: Poster, lines: Sequence[Line]) -> Position | None:
    """
    The placement of this poster's text whose middle is nearest to that of the text read; its own if another is as near.

    None when nothing was read.
    """
    if not lines:
        return None
    middle = (lines[0].top + lines[-1].bottom) / 2

    def distance(place: Position) -> float:
        return abs(_text_middle(replace(poster, position=place)) - middle)

    return min((poster.position, *_POSITIONS), key=distance)


def has_positions(poster: Poster) -> bool:
    """Whether top, centre and bottom differ for this poster."""
    return len({_text_middle(replace(poster, position=place)) for place in _POSITIONS}) > 1


def _text_middle(poster: Poster) -> float:
    """Height of the middle of the text, in pixels from the top."""
    rows = [row for row, _, _ in placed_lines(poster)]
    return CELL_PX * (rows[0] + rows[-1] + 1) / 2


# ---------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Findings:
    """What was found in one picture."""

    text: str
    num_lines: int
    background: str
    colour: str
    position: Position | None
    decoration: Decoration
    gradient: bool


def look(pixels: Bytes, lines: Sequence[Line], poster: Poster) -> Findings:
    """
    Measure a picture (H, W, 3) whose lines were read.

    Args:
        poster: says where top, centre and bottom are; the rest of it is not looked at.
    """
    background, text, ink = background_and_ink(pixels, lines)
    return Findings(
        text=" ".join(line.text for line in lines),
        num_lines=len(lines),
        background=nearest_colour(background),
        colour=nearest_colour(text),
        position=position(poster, lines),
        decoration=decoration(ink, lines),
        gradient=has_gradient(pixels, ink),
    )
