"""
One row of results for each held-out prompt and edit. A row says what was found in the generated picture and in the reference render.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from checkpoints.evaluate.cases import EditCase, PromptCase
from checkpoints.evaluate.measures import Findings, look, right_words
from checkpoints.evaluate.painter import Painter
from checkpoints.evaluate.reading import Reader, tidy
from checkpoints.train.posters import CELL_PX, Bytes, Poster, draw

_OTHER_SEED = 500_000
"""Added to a prompt's seed for its second picture."""

_MOVED_LEVELS = 24.0
"""A cell whose mean colour differs by more than this looks different; shades of one colour differ by half as much."""


@dataclass(frozen=True)
class Conditions:
    """
    What becomes of a picture when one of its inputs changes.

    Attributes:
        seed_difference: mean absolute difference from the picture of another seed, in levels of 256.
        other_seed: found in that picture.
        without_glyphs: found in the picture with the same tokens and seed, but no glyph text.
        moved_cells: share of the cells that look different when the tokens are shuffled, with the same seed and glyph text.
        shuffled: found in that picture.
    """

    seed_difference: float
    other_seed: Findings
    without_glyphs: Findings
    moved_cells: float
    shuffled: Findings


@dataclass(frozen=True)
class Result:
    """`found` in the generated picture, `ceiling` in the reference render. The pictures are for sheets."""

    found: Findings
    ceiling: Findings
    picture: Bytes = field(repr=False, compare=False)
    conditions: Conditions | None = None


class Examiner:
    """Draws a case with the checkpoint and measures it."""

    def __init__(self, painter: Painter, reader: Reader) -> None:
        self._painter, self._reader = painter, reader

    def _look(self, picture: Bytes, poster: Poster) -> Findings:
        return look(picture, self._reader.read(picture), poster)

    def prompt(self, case: PromptCase, *, conditions: bool) -> Result:
        """
        Args:
            conditions: also draw with another seed, without glyph text, and with shuffled tokens.
        """
        size = case.height, case.width
        tokens = self._painter.write_tokens(case.prompt, *size, case.seed)
        picture = self._painter.draw(case.prompt, tokens, *size, case.seed)
        found, ceiling = self._look(picture, case.poster), self._look(draw(case.poster)[0], case.poster)
        if not conditions:
            return Result(found, ceiling, picture)
        other_seed = case.seed + _OTHER_SEED
        second = self._painter.draw(case.prompt, self._painter.write_tokens(case.prompt, *size, other_seed), *size, other_seed)
        silent = self._painter.draw("", tokens, *size, case.seed)
        shuffled = self._painter.draw(case.prompt, tokens.shuffled(*size, case.seed), *size, case.seed)
        return Result(
            found,
            ceiling,
            picture,
            Conditions(
                seed_difference=round(float(np.abs(second.astype(np.float32) - picture).mean()), 3),
                other_seed=self._look(second, case.poster),
                without_glyphs=self._look(silent, case.poster),
                moved_cells=round(float((np.abs(_cells(shuffled) - _cells(picture)).max(axis=-1) > _MOVED_LEVELS).mean()), 3),
                shuffled=self._look(shuffled, case.poster),
            ),
        )

    def edit(self, case: EditCase) -> Result:
        source = draw(case.source)[0]
        tokens = self._painter.write_tokens(case.prompt, case.height, case.width, case.seed, source)
        picture = self._painter.draw(case.prompt, tokens, case.height, case.width, case.seed, source)
        return Result(self._look(picture, case.poster), self._look(draw(case.poster)[0], case.poster), picture)


def _cells(picture: Bytes) -> npt.NDArray[np.float32]:
    """Mean colour of each cell: (rows, columns, 3)."""
    rows, columns = picture.shape[0] // CELL_PX, picture.shape[1] // CELL_PX
    means: npt.NDArray[np.float32] = picture.astype(np.float32).reshape(rows, CELL_PX, columns, CELL_PX, 3).mean(axis=(1, 3))
    return means


def reads(found: Findings, poster: Poster) -> bool:
    """Whether every word of the poster was read, and nothing else."""
    return found.text == tidy(poster.text)


def reads_any(found: Findings, poster: Poster) -> bool:
    """Whether any word of the poster was read."""
    return right_words(tidy(poster.text).lower(), found.text.lower()) > 0


def edit_parts(result: Result, case: EditCase) -> dict[str, bool]:
    """
    Which parts of an edit are as asked: what was to change has changed, and the rest is as before.

    A part is right when the picture measures as the instruction says, or as the reference render does.
    """
    found, reference, truth = result.found, result.ceiling, case.poster
    return {
        "text": found.text in (tidy(truth.text), reference.text),
        "background": found.background in (truth.background, reference.background),
        "colour": found.colour in (truth.colour, reference.colour),
        "decoration": found.decoration in (truth.decoration, reference.decoration),
    }
