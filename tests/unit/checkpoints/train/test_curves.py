"""Curves show each minute of a run once, and what belongs together in one panel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints.train import curves


def write_log(folder: Path, *lines: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return log


def test_lines_that_a_resumed_run_wrote_again_count_once(tmp_path: Path) -> None:
    """A run that died 40 s after its snapshot repeats these 40 s; its curve does not go back in time."""
    log = write_log(
        tmp_path,
        *(
            {"step": step, "samples": step, "seconds": seconds, "loss": loss}
            for step, seconds, loss in [(1, 20, 3), (2, 40, 2), (3, 60, 1)]
        ),
        {"step": 2, "samples": 2, "seconds": 41, "loss": 1.9},
    )

    assert [(line["seconds"], line["loss"]) for line in curves.read_log(log)] == [(20, 3), (40, 2), (41, 1.9)]


def test_metrics_of_one_kind_share_a_panel() -> None:
    """The last word of a metric's name says what it measures, the first one that it was sampled; the clock is no metric."""
    lines = [
        {"step": 1.0, "samples": 1.0, "seconds": 1.0, "loss": 1.0, "letter accuracy": 0.5, "draft_nats": 9.0},
        {"seconds": 2.0, "word accuracy": 0.1, "sampled_rows": 0.2, "sampled_colour": 0.3},
    ]

    assert curves.panels(lines) == {
        "loss": ["loss"],
        "accuracy": ["letter accuracy", "word accuracy"],
        "nats": ["draft_nats"],
        "sampled": ["sampled_rows", "sampled_colour"],
    }


def test_the_same_log_gives_the_same_picture(tmp_path: Path) -> None:
    """So the curves in the repository change only when the runs do."""
    for name in ("one", "other"):
        write_log(
            tmp_path / "runs" / name / "vae",
            {"step": 1, "samples": 8, "seconds": 20, "loss": 1.0, "note": "no number"},
            {"step": 2, "samples": 16, "seconds": 40, "loss": 0.5, "psnr": 20.0},
        )

    first, second = curves.write(tmp_path / "runs", tmp_path / "curves")

    assert (first.name, second.name) == ("one-vae.png", "other-vae.png")
    one = curves.write(tmp_path / "runs" / "one", tmp_path / "a")
    other = curves.write(tmp_path / "runs" / "other", tmp_path / "b")
    assert one[0].read_bytes() == other[0].read_bytes()


def test_no_log_is_said_so(tmp_path: Path) -> None:
    """A wrong folder is an error, not an empty gallery."""
    with pytest.raises(FileNotFoundError, match="no log"):
        curves.write(tmp_path, tmp_path / "curves")
