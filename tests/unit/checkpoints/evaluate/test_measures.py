"""The measures say of a drawn poster what was drawn, and see what is wrong with a picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from checkpoints.evaluate.cases import edit_cases, prompt_cases
from checkpoints.evaluate.measures import Findings, has_positions, likeness, look, nearest_colour, right_words
from checkpoints.evaluate.reading import Line, Reader, joined, tidy
from checkpoints.train.posters import CELL_PX, COLOURS, PATCH_PX, Bytes, Poster, draw, placed_lines, start_column


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


def true_lines(poster: Poster) -> list[Line]:
    """What a perfect reader reads."""
    return [
        Line(
            line,
            CELL_PX * row,
            CELL_PX * (row + 1),
            PATCH_PX * start_column(poster.columns, line),
            PATCH_PX * (start_column(poster.columns, line) + len(line)),
        )
        for row, _, line in placed_lines(poster)
    ]


def find(poster: Poster, picture: Bytes | None = None, asked: Poster | None = None) -> Findings:
    return look(draw(poster)[0] if picture is None else picture, true_lines(poster), asked or poster)


@pytest.mark.parametrize("case", [*prompt_cases(), *edit_cases()], ids=lambda case: str(case.seed))
def test_a_reference_render_measures_as_what_it_is(case: object) -> None:
    """Colours, place, decoration and gradient of every held-out poster: the ceilings of these measures are one."""
    poster: Poster = case.poster
    found = find(poster)

    assert (found.background, found.colour) == (poster.background, poster.colour)
    assert found.position == poster.position
    assert (found.decoration, found.gradient) == (poster.decoration, poster.gradient)


def test_noise_of_a_decoder_does_not_change_the_findings() -> None:
    """Six levels on every pixel are much for a picture, and nothing for a median."""
    for case in prompt_cases()[::10]:
        picture = draw(case.poster)[0]
        noise = np.random.default_rng(case.seed).normal(0, 6, picture.shape)
        noisy = (picture + noise).clip(0, 255).astype(np.uint8)

        assert find(case.poster, noisy) == find(case.poster)


@pytest.mark.parametrize(
    "changes",
    [{"background": "green"}, {"colour": "yellow"}, {"position": "top"}, {"decoration": "bar above"}, {"gradient": True}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_wrong_picture_is_found_wrong(changes: dict[str, object]) -> None:
    """In what is wrong with it, and in nothing else."""
    asked = Poster(8, 8, "navy", "white", "MUSEUM")

    found, right = find(replace(asked, **changes), asked=asked), find(asked)
    assert {name for name in vars(right) if getattr(found, name) != getattr(right, name)} == set(changes)


def test_a_picture_without_text_has_no_position() -> None:
    """A flat picture is its background, and its ink is nothing else."""
    picture = np.full((64, 64, 3), COLOURS["teal"], np.uint8)

    found = look(picture, [], Poster(2, 2, "teal", "white", "42!"))
    assert (found.text, found.position, found.decoration, found.gradient) == ("", None, "none", False)
    assert (found.background, found.colour) == ("teal", "teal")


def test_places_that_are_equal_are_not_told_apart() -> None:
    """A poster that its text fills has one place, and so no wrong one."""
    assert not has_positions(Poster(2, 4, "teal", "white", "WET PAINT"))
    assert has_positions(Poster(2, 4, "teal", "white", "JIGSAW"))


def test_every_named_colour_is_nearest_to_itself() -> None:
    """Also as dark as the middle of a gradient, which is its median."""
    for name, colour in COLOURS.items():
        for shade in (0.9, 1.0):
            assert nearest_colour(np.array(colour, np.float32) * shade) == name


def test_words_count_when_exact_and_in_order() -> None:
    """Case and marks matter; extra words take nothing away, another order does."""
    assert right_words("MIND THAT STEP", "MIND THAT STEP") == 3
    assert right_words("MIND THAT STEP", "MIND THE STEP now") == 2
    assert right_words("MIND THAT STEP", "STEP THAT MIND") == 1
    assert right_words("Hurry!", "Hurry") == right_words("Walnut", "walnut") == right_words("Walnut", "") == 0


def test_likeness_is_one_minus_the_normalised_edit_distance() -> None:
    """One letter of eight wrong, missing or too many is an eighth."""
    assert likeness("LIBRARYS", "LIBRARYS") == 1
    assert likeness("LIBRARYS", "LIBRVRYS") == likeness("LIBRARYS", "LIBRARY") == likeness("IBRARYS", "LIBRARYS") == 7 / 8
    assert likeness("LIBRARY", "") == 0
    assert likeness("", "") == 1


def test_pieces_of_a_line_are_joined() -> None:
    """Side by side from the left, lines from the top, whatever the order in which they were found."""
    pieces = [Line("HOUR", 34, 60, 90, 150), Line("sale", 70, 92, 10, 60), Line("GOLDEN", 30, 62, 10, 80), Line(" ", 110, 120, 0, 9)]

    assert joined(pieces) == [Line("GOLDEN HOUR", 30, 62, 10, 150), Line("sale", 70, 92, 10, 60)]


@pytest.mark.parametrize(
    ("read", "tidied"),
    [
        ("No .5", "No .5"),
        ("No .", "No."),
        ("Why ?", "Why?"),
        ("Salt & Pepper", "Salt & Pepper"),
        ("don’t  go！", "don't go!"),
        ("a , b", "a, b"),
    ],
)
def test_marks_stand_beside_their_word(read: str, tidied: str) -> None:
    """A reader of proportional type takes the room before a full stop for a space."""
    assert tidy(read) == tidied


def test_the_reader_reads_the_reference_renders(reader: Reader) -> None:
    """Nearly every word of one line and of two or three, or the ceiling would hide faults. Four are seen by every tenth."""
    cases = [case for case in prompt_cases() if case.group != "four to six words"][::10]
    texts = [" ".join(line.text for line in reader.read(draw(case.poster)[0])) for case in cases]

    right = sum(right_words(case.poster.text, text) for case, text in zip(cases, texts, strict=True))
    assert right >= 0.95 * sum(len(case.poster.text.split()) for case in cases)


def test_the_reader_reads_nothing_where_nothing_stands(reader: Reader) -> None:
    """An empty picture has no lines; a border is no text."""
    assert reader.read(draw(Poster(8, 8, "teal", "white", "", decoration="border"))[0]) == []
