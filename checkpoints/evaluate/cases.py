"""
The held-out prompts and edits, and the posters that they ask for. Pure but for reading the two files beside it.

Written by hand and dealt out by a seeded generator once; sizes and seeds were never changed after a picture was seen. None of their
words is a training word, and no training prompt equals one: `tests/unit/checkpoints/evaluate/test_cases.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from checkpoints.train.posters import CELL_PX, Poster

_FOLDER = Path(__file__).parent

ONE_LINE, TWO_OR_THREE_LINES, FOUR_TO_SIX_WORDS = "one line", "two or three lines", "four to six words"

_Case = TypeVar("_Case")


@dataclass(frozen=True)
class PromptCase:
    """
    Attributes:
        group: what the table lists apart: one line, two or three lines, four to six words.
        poster: what the prompt asks for; its drawing is the reference.
    """

    group: str
    prompt: str
    height: int
    width: int
    seed: int
    poster: Poster


@dataclass(frozen=True)
class EditCase:
    """
    Attributes:
        kind: what the instruction changes: text, background or colour.
        source: the poster that is drawn and handed in.
        poster: what the instruction makes of it.
    """

    kind: str
    prompt: str
    height: int
    width: int
    seed: int
    source: Poster
    poster: Poster


def prompt_cases() -> list[PromptCase]:
    """100 of one line, 100 of two or three lines, 12 of four to six words."""
    return [
        PromptCase(row["group"], row["prompt"], row["height"], row["width"], row["seed"], _poster(row, "truth"))
        for row in _rows("prompts.json")
    ]


def edit_cases() -> list[EditCase]:
    """25 that replace the text, 15 that change the background, 10 that change the text's colour."""
    return [
        EditCase(row["kind"], row["instruction"], row["height"], row["width"], row["seed"], _poster(row, "source"), _poster(row, "truth"))
        for row in _rows("edits.json")
    ]


def spread(cases: Sequence[_Case], number: int) -> list[_Case]:
    """`number` of the cases, evenly spread over the list; all of them if it has no more."""
    return [cases[i * len(cases) // number] for i in range(number)] if number < len(cases) else list(cases)


def _rows(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((_FOLDER / name).read_text())
    return rows


def _poster(row: dict[str, Any], key: str) -> Poster:
    return Poster(row["height"] // CELL_PX, row["width"] // CELL_PX, **row[key])
