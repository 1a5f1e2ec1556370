"""
The semantic codes of a poster: which there are, what each one says, and the one of every cell. Pure.

A code says a cell's colours and place and, in a row of text, which part of the text stands there; never which letter. So the AR model
decides the layout, and the DiT finds the letter for each patch in the glyph embeddings.
"""

from __future__ import annotations

import numpy as np

from checkpoints.train.posters import COLOURS, MAX_CELLS, NUM_PARTS, PAIRS, Grid, Poster, placed_lines

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
