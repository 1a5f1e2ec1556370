"""The held-out prompts and edits are held out, hold together, and hold what the evaluation promises."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from checkpoints.evaluate.cases import (
    FOUR_TO_SIX_WORDS,
    ONE_LINE,
    TWO_OR_THREE_LINES,
    EditCase,
    PromptCase,
    edit_cases,
    prompt_cases,
    spread,
)
from checkpoints.train.posters import CELL_PX, COLOURS, MAX_CELLS, PAIRS, Poster, lines
from checkpoints.train.prompts import WORDS, sample_edit, sample_poster
from checkpoints.train.wordings import prompt_for
from shared.quoting.reference import glyph_texts

PROMPTS, EDITS = prompt_cases(), edit_cases()

NUM_LINES = {ONE_LINE: {1}, TWO_OR_THREE_LINES: {2, 3}, FOUR_TO_SIX_WORDS: {2, 3}}


def lines_of(poster: Poster) -> list[str]:
    return [line for _, line in lines(poster.text, poster.last_row - poster.first_row)]


def test_no_word_is_a_training_word() -> None:
    """Not in other capitals, not with a mark or a genitive behind it."""
    training = {word.lower() for word in WORDS}
    texts = [case.poster.text for case in (*PROMPTS, *EDITS)] + [case.source.text for case in EDITS]
    words = {word.lower() for text in texts for word in text.split()}

    bare = {word.strip(".,!?&'-:;").removesuffix("'s") for word in words}
    assert not (words | bare) & training


def test_no_training_prompt_is_a_held_out_one() -> None:
    """Neither among sampled prompts nor among sampled instructions."""
    rng = random.Random(1)
    held_out = {case.prompt.lower() for case in (*PROMPTS, *EDITS)}

    for _ in range(2000):
        rows, columns = rng.randint(2, MAX_CELLS), rng.randint(2, MAX_CELLS)
        assert prompt_for(rng, sample_poster(rng, rows, columns)).lower() not in held_out
        edit = sample_edit(rng, rows, columns)
        # An instruction to recolour has no words of its own; its poster is what must be new.
        assert edit.source not in [case.source for case in EDITS]


def test_there_are_as_many_of_each_kind_as_the_report_says() -> None:
    """The groups of the table, and no case twice."""
    assert Counter(case.group for case in PROMPTS) == {ONE_LINE: 100, TWO_OR_THREE_LINES: 100, FOUR_TO_SIX_WORDS: 12}
    assert Counter(case.kind for case in EDITS) == {"text": 25, "background": 15, "colour": 10}
    assert len({case.prompt for case in PROMPTS}) == len(PROMPTS)
    assert len({case.seed for case in (*PROMPTS, *EDITS)}) == len(PROMPTS) + len(EDITS)


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: str(case.seed))
def test_a_prompt_asks_for_its_poster(case: PromptCase) -> None:
    """It quotes the text, names the colours, and the text fits on as many lines as its group says."""
    poster = case.poster
    assert glyph_texts(case.prompt) == [poster.text]
    assert (case.height, case.width) == (CELL_PX * poster.rows, CELL_PX * poster.columns)
    assert (poster.background, poster.colour) in PAIRS
    outside = case.prompt.lower().replace(poster.text.lower(), "").replace("grey", "gray")
    words = set(re.findall("[a-z]+", outside))
    assert poster.background in words
    assert words & set(COLOURS) <= {poster.background, poster.colour}
    broken = lines_of(poster)
    assert len(broken) in NUM_LINES[case.group]
    assert max(len(line) for line in broken) <= 2 * poster.half_line


@pytest.mark.parametrize("case", EDITS, ids=lambda case: str(case.seed))
def test_an_edit_changes_what_it_says(case: EditCase) -> None:
    """One thing only; a new text is quoted, a new colour named, and both texts fit."""
    changed = {name for name in vars(case.source) if getattr(case.source, name) != getattr(case.poster, name)}
    assert changed == {case.kind}
    assert glyph_texts(case.prompt) == ([case.poster.text] if case.kind == "text" else [])
    if case.kind != "text":
        assert getattr(case.poster, case.kind) in case.prompt.replace("grey", "gray")
    for poster in (case.source, case.poster):
        assert (poster.background, poster.colour) in PAIRS
        assert max(len(line) for line in lines_of(poster)) <= 2 * poster.half_line


def test_every_shape_and_wish_is_asked_for() -> None:
    """All backgrounds and text colours, all decorations, every quotation mark; squares, wide and tall from 64 to 256 px."""
    posters = [case.poster for case in PROMPTS]
    assert {poster.background for poster in posters} == {poster.colour for poster in posters} == set(COLOURS)
    assert {poster.decoration for poster in posters} == {"none", "border", "bar above", "bar below"}
    assert {poster.position for poster in posters} == {"top", "centre", "bottom"}
    assert {poster.gradient for poster in posters} == {True, False}
    for mark in ("'", '"', "“", "「"):
        assert sum(mark in case.prompt for case in PROMPTS) >= 20
    sides = {case.height for case in PROMPTS} | {case.width for case in PROMPTS}
    assert (min(sides), max(sides)) == (64, 256)
    shapes = Counter((case.height > case.width) - (case.height < case.width) for case in PROMPTS)
    assert min(shapes.values()) >= 30
    letters = set("".join(poster.text for poster in posters))
    assert letters >= set("abcdefghijklmnopqrstuvwxyz0123456789.,!?&'-:")
    assert len(letters & set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")) == 26


def test_a_part_of_the_list_is_spread_over_all_of_it() -> None:
    """So that a short measurement sees every group."""
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(3), 5) == [0, 1, 2]
