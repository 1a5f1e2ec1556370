"""Which checkpoint a stack runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.checkpoint import CheckpointError, named_checkpoint, random_miniature
from cli.data_folder import DataFolder

PARTS = ("vision_language_encoder", "processor", "transformer", "text_encoder", "tokenizer", "vae", "scheduler")


def put_checkpoint(folder: Path) -> Path:
    for part in PARTS:
        (folder / part).mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    return folder


def test_the_option_comes_before_the_environment(tmp_path: Path) -> None:
    """What the command line names wins; either is made absolute, for the roles run elsewhere."""
    first, second = put_checkpoint(tmp_path / "first"), put_checkpoint(tmp_path / "second")

    assert named_checkpoint(str(first), {"GLMQ_CHECKPOINT": str(second)}) == str(first)
    assert named_checkpoint(None, {"GLMQ_CHECKPOINT": str(second)}) == str(second)


def test_the_trained_miniature_is_the_default(tmp_path: Path) -> None:
    """Where nothing is named, glmq runs what it comes with; without that, the random miniature, which is built when needed."""
    trained = put_checkpoint(tmp_path / "trained")
    other = put_checkpoint(tmp_path / "other")

    assert named_checkpoint(None, {}, trained) == str(trained)
    assert named_checkpoint(None, {"GLMQ_CHECKPOINT": str(other)}, trained) == str(other)
    assert named_checkpoint(None, {}, tmp_path / "nothing") is None


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """A path that is not there is told before anything starts, also where it has the form of a hub id."""
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
        named_checkpoint(str(tmp_path / "nothing"), {})
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
        named_checkpoint("checkpoints/nothing", {})


@pytest.mark.parametrize("missing", ["model_index.json", "vae", "processor"])
def test_half_a_checkpoint_is_refused(tmp_path: Path, missing: str) -> None:
    """A folder without one of its parts is told by the part's name."""
    folder = put_checkpoint(tmp_path / "half")
    gone = folder / missing
    gone.rmdir() if gone.is_dir() else gone.unlink()

    with pytest.raises(CheckpointError, match=f"{missing} missing"):
        named_checkpoint(str(folder), {})


def test_a_downloaded_model_is_taken_without_asking(tmp_path: Path) -> None:
    """What the hub's cache holds needs no network."""
    (tmp_path / "models--someone--model" / "snapshots").mkdir(parents=True)

    assert named_checkpoint("someone/model", {"HF_HUB_CACHE": str(tmp_path)}) == "someone/model"


def test_an_unreachable_hub_is_told(tmp_path: Path) -> None:
    """Where the hub cannot be asked, the message says so, and that there is no such folder either."""
    with pytest.raises(CheckpointError, match="neither a folder here nor downloaded yet"):
        named_checkpoint("someone/model", {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:1"})


def test_the_random_miniature_has_one_place_per_recipe(tmp_path: Path) -> None:
    """The same recipe is found again by the next run."""
    data = DataFolder(tmp_path)

    assert random_miniature(data) == random_miniature(data)
    assert random_miniature(data).parent == tmp_path / "checkpoints"
