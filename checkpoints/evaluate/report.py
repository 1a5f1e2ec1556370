"""From rows of results to the table, the JSON and the sheets of pictures. Knows no networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from checkpoints.evaluate.cases import FOUR_TO_SIX_WORDS, ONE_LINE, TWO_OR_THREE_LINES, EditCase, PromptCase
from checkpoints.evaluate.measures import Findings, has_positions, likeness, right_words
from checkpoints.evaluate.painter import PartTimes
from checkpoints.evaluate.reading import tidy
from checkpoints.evaluate.results import Result, edit_parts, reads, reads_any
from checkpoints.train.posters import CELL_PX, MAX_CELLS, Bytes, draw, lines

PromptRow = tuple[PromptCase, Result]
EditRow = tuple[EditCase, Result]

LEAST_MOVED = 0.1
"""Share of the cells that must look different for a layout to be another: a line of text is seldom less."""


@dataclass(frozen=True)
class Measure:
    """
    A line of the table.

    Attributes:
        figure: of the generated pictures.
        ceiling: the same of the reference renders; None where there is no such thing.
        target: what figure / ceiling should reach, or the figure where there is no ceiling; None: no target.
        num: of how many words, pictures or prompts.
    """

    name: str
    figure: float
    ceiling: float | None
    target: float | None
    num: int

    @property
    def ratio(self) -> float:
        return self.figure / self.ceiling if self.ceiling else self.figure

    @property
    def is_reached(self) -> bool | None:
        return None if self.target is None else self.ratio >= self.target


def prompt_measures(rows: Sequence[PromptRow]) -> list[Measure]:
    """What the held-out prompts show. A group without a row has no line."""
    measures = []
    targets = {ONE_LINE: (0.90, 0.95), TWO_OR_THREE_LINES: (0.80, 0.90), FOUR_TO_SIX_WORDS: (None, None)}
    for group, (exact, likely) in targets.items():
        some = [row for row in rows if row[0].group == group]
        if some:
            measures += [
                _of_words(f"Words exact, {group}", some, exact, str),
                _of_words(f"Words exact but for case, {group}", some, None, str.lower),
                _of_pictures(f"NED, {group}", some, likely, lambda found, case: likeness(tidy(case.poster.text), found.text)),
            ]
    # Colours, place and the rest count on the two groups that have targets.
    some = [row for row in rows if row[0].group != FOUR_TO_SIX_WORDS]
    placed = [row for row in some if has_positions(row[0].poster)]
    measures += [
        _of_pictures("Background right", some, 0.95, lambda found, case: found.background == case.poster.background),
        _of_pictures("Text colour right", some, 0.95, lambda found, case: found.colour == case.poster.colour),
        _of_pictures("Position right", placed, 0.90, lambda found, case: found.position == case.poster.position),
        _of_pictures("Number of lines right", some, None, lambda found, case: found.num_lines == _num_lines(case)),
        _of_pictures("Decoration right", some, None, lambda found, case: found.decoration == case.poster.decoration),
        _of_pictures("Gradient or plain right", some, None, lambda found, case: found.gradient == case.poster.gradient),
    ]
    return [measure for measure in measures if measure.num]


def condition_measures(rows: Sequence[PromptRow]) -> list[Measure]:
    """What the pictures drawn with one input changed show."""
    some = [(case, result.found, result.conditions) for case, result in rows if result.conditions]
    if not some:
        return []
    num = len(some)
    words = sum(len(tidy(case.poster.text).split()) for case, _, _ in some)

    def share(values: list[bool]) -> float:
        return sum(values) / num

    return [
        Measure("Another seed, another picture", share([c.seed_difference > 0 for _, _, c in some]), None, 1.0, num),
        Measure("Another seed, mean difference in levels of 256", sum(c.seed_difference for _, _, c in some) / num, None, None, num),
        Measure("Another seed, words exact", sum(_words(case, c.other_seed) for case, _, c in some) / words, None, None, words),
        Measure(
            "No glyph text, no word read", share([not reads_any(c.without_glyphs, case.poster) for case, _, c in some]), None, 0.95, num
        ),
        Measure("Shuffled tokens, another layout", share([c.moved_cells >= LEAST_MOVED for _, _, c in some]), None, 0.95, num),
        Measure("Shuffled tokens, text still whole", share([reads(c.shuffled, case.poster) for case, _, c in some]), None, None, num),
    ]


def edit_measures(rows: Sequence[EditRow]) -> list[Measure]:
    """What the held-out edits show."""
    if not rows:
        return []
    parts = [(case.kind, edit_parts(result, case)) for case, result in rows]
    measures = [Measure("Edit done and the rest kept", _mean([all(right.values()) for _, right in parts]), None, 0.75, len(rows))]
    for kind in ("text", "background", "colour"):
        some = [all(right.values()) for other, right in parts if other == kind]
        if some:
            measures.append(Measure(f"… new {kind}", _mean(some), None, None, len(some)))
    replaced = [right["text"] and right["background"] for kind, right in parts if kind == "text"]
    if replaced:
        measures.append(Measure("… new text read, background kept", _mean(replaced), None, 0.75, len(replaced)))
    measures += [
        Measure(f"Edits with the right {part}", _mean([right[part] for _, right in parts]), None, None, len(rows)) for part in parts[0][1]
    ]
    return measures


def table(measures: Sequence[Measure]) -> str:
    """The measures as Markdown."""
    head = "| measure | of | figure | ceiling | ratio | target | |\n| --- | ---: | ---: | ---: | ---: | ---: | --- |"

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    return "\n".join(
        [
            head,
            *(
                f"| {m.name} | {m.num} | {number(m.figure)} | {number(m.ceiling)} | {number(m.ratio if m.ceiling else None)} "
                f"| {'' if m.target is None else f'{m.target:.2f}'} | {'' if m.is_reached is None else 'yes' if m.is_reached else 'no'} |"
                for m in measures
            ),
        ]
    )


def times_table(times: PartTimes) -> str:
    return (
        "| one 256x256 picture, 20 steps, one core | AR | DiT and glyphs | VAE | together | target |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        f"| seconds | {times.ar_s:.2f} | {times.dit_s:.2f} | {times.vae_s:.2f} | {times.total_s:.2f} | 6.00 |"
    )


def as_json(case: PromptCase | EditCase, result: Result) -> dict[str, Any]:
    """A row with everything but its picture."""
    row = {"case": asdict(case), "found": asdict(result.found), "ceiling": asdict(result.ceiling)}
    if result.conditions:
        row["conditions"] = asdict(result.conditions)
    if isinstance(case, EditCase):
        row["right"] = edit_parts(result, case)
    return row


# ---------------------------------------------------------------- counting


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _num_lines(case: PromptCase) -> int:
    return len(lines(case.poster.text, case.poster.last_row - case.poster.first_row))


def _words(case: PromptCase, found: Findings, fold: Callable[[str], str] = str) -> int:
    return right_words(fold(tidy(case.poster.text)), fold(found.text))


def _of_words(name: str, rows: Sequence[PromptRow], target: float | None, fold: Callable[[str], str]) -> Measure:
    num = sum(len(tidy(case.poster.text).split()) for case, _ in rows)
    figure = sum(_words(case, result.found, fold) for case, result in rows) / num
    return Measure(name, figure, sum(_words(case, result.ceiling, fold) for case, result in rows) / num, target, num)


def _of_pictures(name: str, rows: Sequence[PromptRow], target: float | None, score: Callable[[Findings, PromptCase], float]) -> Measure:
    if not rows:
        return Measure(name, 0.0, None, target, 0)
    figure = sum(score(result.found, case) for case, result in rows) / len(rows)
    return Measure(name, figure, sum(score(result.ceiling, case) for case, result in rows) / len(rows), target, len(rows))


# ---------------------------------------------------------------- sheets

_SHEET_COLUMNS = 12
_SHEET_PAIRS = 96


def sheet(rows: Sequence[PromptRow] | Sequence[EditRow]) -> Image.Image:
    """Up to 96 of the cases: each reference above what was generated; of an edit, its source above both."""
    columns = []
    step = max(1, -(-len(rows) // _SHEET_PAIRS))
    for case, result in rows[::step]:
        source = [draw(case.source)[0]] if isinstance(case, EditCase) else []
        columns.append([*source, draw(case.poster)[0], result.picture])
    return mosaic(columns, min(_SHEET_COLUMNS, len(columns)))


def mosaic(columns: Sequence[Sequence[Bytes]], per_row: int, gap_px: int = 8) -> Image.Image:
    """Groups of pictures on white, side by side, `per_row` of them in a row; a group's pictures stand one above the other."""
    side = MAX_CELLS * CELL_PX
    bands = []
    for first in range(0, len(columns), per_row):
        group = columns[first : first + per_row]
        for level in zip(*group, strict=True):
            band = np.full((max(picture.shape[0] for picture in level) + gap_px // 4, per_row * (side + gap_px), 3), 255, np.uint8)
            for number, picture in enumerate(level):
                height, width = picture.shape[:2]
                band[:height, number * (side + gap_px) : number * (side + gap_px) + width] = picture
            bands.append(band)
        bands.append(np.full((2 * gap_px, per_row * (side + gap_px), 3), 255, np.uint8))
    return Image.fromarray(np.concatenate(bands))
