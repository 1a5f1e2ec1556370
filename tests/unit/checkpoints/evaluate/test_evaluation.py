"""The evaluation runs end to end on any checkpoint, and its table tells the good from the bad."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.evaluate import evaluation
from checkpoints.evaluate.__main__ import main
from checkpoints.evaluate.cases import EditCase, edit_cases, prompt_cases, spread
from checkpoints.evaluate.measures import Findings
from checkpoints.evaluate.painter import Painter, Tokens
from checkpoints.evaluate.reading import Reader, tidy
from checkpoints.evaluate.report import condition_measures, edit_measures, mosaic, prompt_measures, table
from checkpoints.evaluate.results import Conditions, Examiner, Result
from checkpoints.train.posters import Poster, draw, lines


def findings(poster: Poster) -> Findings:
    num_lines = len(lines(poster.text, poster.last_row - poster.first_row))
    return Findings(tidy(poster.text), num_lines, poster.background, poster.colour, poster.position, poster.decoration, poster.gradient)


def result(found: Findings, ceiling: Findings, conditions: Conditions | None = None) -> Result:
    return Result(found, ceiling, np.zeros((64, 64, 3), np.uint8), conditions)


def test_perfect_pictures_reach_every_target() -> None:
    """Each measure is one, and the table says yes."""
    prompts = [(case, result(findings(case.poster), findings(case.poster))) for case in prompt_cases()]
    edits = [(case, result(findings(case.poster), findings(case.poster))) for case in edit_cases()]

    measures = prompt_measures(prompts) + edit_measures(edits)
    assert {measure.ratio for measure in measures} == {1.0}
    assert "| no |" not in table(measures)


def test_the_ceiling_forgives_what_the_reader_cannot_read() -> None:
    """A word misread in picture and reference alike costs nothing; misread in the picture alone, it does."""
    (case, *_), misread = prompt_cases(), "D0LPHIN"
    truth = findings(case.poster)
    unlucky = replace(truth, text=misread)

    exact, *_ = prompt_measures([(case, result(truth, truth)), (case, result(unlucky, unlucky))])
    assert (exact.figure, exact.ceiling, exact.ratio) == (0.5, 0.5, 1.0)
    exact, *_ = prompt_measures([(case, result(unlucky, truth))])
    assert exact.ratio == 0
    assert not exact.is_reached


def test_capitals_count_apart() -> None:
    """There is a row that asks for them, and one that does not."""
    case = prompt_cases()[0]
    truth = findings(case.poster)

    exact, folded, *_ = prompt_measures([(case, result(replace(truth, text=truth.text.swapcase()), truth))])
    assert (exact.figure, folded.figure) == (0, 1)


@pytest.mark.parametrize("part", ["text", "background", "colour", "decoration"])
def test_an_edit_must_change_what_it_says_and_keep_the_rest(part: str) -> None:
    """One wrong part makes it a failure."""
    case: EditCase = edit_cases()[0]
    truth = findings(case.poster)
    wrong = {"text": findings(case.source).text, "background": "teal", "colour": "pink", "decoration": "border"}

    done, *_ = edit_measures([(case, result(replace(truth, **{part: wrong[part]}), truth))])
    assert done.figure == 0


def test_conditions_that_are_not_used_show() -> None:
    """Same picture for another seed, text without glyphs, same layout for shuffled tokens: each is a no."""
    case = prompt_cases()[0]
    truth = findings(case.poster)
    blind = Conditions(seed_difference=0, other_seed=truth, without_glyphs=truth, moved_cells=0.05, shuffled=truth)
    seeing = Conditions(
        seed_difference=2, other_seed=truth, without_glyphs=replace(truth, text=""), moved_cells=0.3, shuffled=replace(truth, text="")
    )

    assert [m.is_reached for m in condition_measures([(case, result(truth, truth, blind))]) if m.target] == [False] * 3
    assert [m.is_reached for m in condition_measures([(case, result(truth, truth, seeing))]) if m.target] == [True] * 3
    assert condition_measures([(case, result(truth, truth))]) == []


def test_shuffled_tokens_are_the_same_tokens_elsewhere() -> None:
    """Cell by cell: each still covers its 2x2 patches."""
    cells = torch.arange(12).reshape(3, 4)
    tokens = Tokens(cells.repeat_interleave(2, 0).repeat_interleave(2, 1).reshape(1, -1))

    shuffled = tokens.shuffled(96, 128, seed=1).ids.reshape(6, 8)
    assert torch.equal(shuffled[::2, ::2], shuffled[1::2, 1::2])
    assert torch.equal(shuffled[::2, ::2].flatten().sort().values, torch.arange(12))
    assert not torch.equal(shuffled[::2, ::2], cells)


def test_a_mosaic_holds_pictures_of_all_sizes() -> None:
    """Side by side, group by group, on white."""
    tall, wide = draw(Poster(8, 2, "red", "white", "Yes!"))[0], draw(Poster(2, 8, "red", "white", "Yes!"))[0]

    page = mosaic([[tall, tall], [wide, wide], [wide, tall]], per_row=2)
    assert page.width == 2 * 264
    assert page.getpixel((0, 0)) == page.getpixel((264, 0)) == (200, 40, 40)
    assert page.getpixel((263, 255)) == (255, 255, 255)


def test_it_runs_on_any_checkpoint(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table, rows, sheets and pictures lie in the folder, and a case drawn anew gives the same row and picture."""
    # Small and once: what is timed is no matter here.
    monkeypatch.setattr(evaluation, "_TIMED_PX", 64)
    monkeypatch.setattr(evaluation, "_TIMED_STEPS", 2)
    monkeypatch.setattr(Painter, "time_parts", partialmethod(Painter.time_parts, repeats=1))
    assert main(["--checkpoint", str(miniature), "--out", str(tmp_path), "--only", "1"]) == 0

    assert (tmp_path / "report.md").read_text().strip() == capsys.readouterr().out.strip()
    written = json.loads((tmp_path / "results.json").read_text())
    assert min(written["times"].values()) > 0
    (row,), (_,) = written["prompts"], written["edits"]
    assert row["conditions"]["seed_difference"] > 1
    assert row["ceiling"]["text"] == tidy(row["case"]["poster"]["text"])
    for name in ("prompts", "edits"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width == 264

    (case,) = spread(prompt_cases(), 1)
    again = Examiner(Painter(miniature), Reader()).prompt(case, conditions=False)
    assert row["found"] == asdict(again.found)
    with Image.open(tmp_path / "pictures" / f"{case.seed}.png") as image:
        assert np.array_equal(np.asarray(image), again.picture)
