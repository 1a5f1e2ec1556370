"""Every stage of the training runs, leaves what the next one needs, goes on where it stopped, and all fit into one checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import GlmImagePipeline
from matplotlib.figure import Figure
from safetensors.torch import load_file

from checkpoints.train import assemble, curves, glyphs, layout, pixels, tokens, vae

# Muon multiplies in bfloat16, whether the CPU has instructions for it or not.
pytestmark = pytest.mark.timeout(300)

_STAGES: dict[str, Callable[..., None]] = {
    "vae": vae.train,
    "glyphs": glyphs.train,
    "tokens": tokens.train,
    "layout": layout.train,
    "pixels": pixels.train,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder after a step of every stage, in the order of `make train`. Steps of a few rows do what large ones do."""
    folder = tmp_path_factory.mktemp("train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_STEPS", dict.fromkeys(layout._STEPS, (3, 2)))
        patch.setattr(tokens, "_BATCH_CELLS", 64)
        patch.setattr(pixels, "_PATCHES_PER_STEP", 256)
        # In bfloat16 without instructions for it, each iteration over the net's matrices takes a second.
        patch.setattr(torch.optim, "Muon", partial(torch.optim.Muon, ns_steps=1))
        for train in _STAGES.values():
            train(folder, max_steps=1)
    return folder


@pytest.mark.parametrize("stage", _STAGES)
def test_a_stage_leaves_a_snapshot_and_a_log(folder: Path, stage: str) -> None:
    """What it has learned and how it went, all of it finite."""
    clock = json.loads((folder / stage / "snapshot.json").read_text())
    assert clock["step"] == 1
    assert clock["samples"] > 0

    tensors = load_file(folder / stage / "snapshot.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"weight", "average", "state"}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())

    # One line, or one a step where a step takes longer than lines are apart.
    lines = [json.loads(line) for line in (folder / stage / "log.jsonl").read_text().splitlines()]
    assert lines
    for line in lines:
        assert line.keys() > {"step", "samples", "seconds"}
        assert all(math.isfinite(value) for value in line.values())


def test_a_finished_stage_does_nothing(folder: Path) -> None:
    """Asked again, it ends at once and changes no file."""
    snapshot = folder / "glyphs" / "snapshot.safetensors"
    before = snapshot.stat().st_mtime_ns

    glyphs.train(folder, max_steps=1)

    assert snapshot.stat().st_mtime_ns == before


def test_a_stage_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    """The second session takes weights, their average, and the optimizer's memory over from the first."""
    # Given
    stage = tmp_path / "glyphs"
    stage.mkdir()
    for file in (folder / "glyphs").iterdir():
        (stage / file.name).write_bytes(file.read_bytes())

    # When
    glyphs.train(tmp_path, max_steps=2)

    # Then
    assert json.loads((stage / "snapshot.json").read_text())["step"] == 2
    before, after = load_file(folder / "glyphs" / "snapshot.safetensors"), load_file(stage / "snapshot.safetensors")
    assert before.keys() == after.keys()
    steps = {name: value.item() for name, value in after.items() if name.endswith(".step")}
    assert set(steps.values()) == {2.0}
    moved = [(after[name] - before[name]).abs().max().item() for name in after if name.startswith("weight.")]
    # A step of AdamW is at most the learning rate, here still warming up, and not a start from other weights.
    assert 0 < max(moved) < 2e-3


def test_the_same_seed_gives_the_same_weights(folder: Path, tmp_path: Path) -> None:
    """Two runs of a stage from nothing are equal."""
    glyphs.train(tmp_path, max_steps=1)

    expected = load_file(folder / "glyphs" / "snapshot.safetensors")
    tensors = load_file(tmp_path / "glyphs" / "snapshot.safetensors")
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_the_stages_fit_together(folder: Path, tmp_path: Path) -> None:
    """The checkpoint is stored in bfloat16, loads as the published one does, and draws a picture."""
    # When
    assemble.write(folder, tmp_path / "miniature")

    # Then
    files = [file for file in (tmp_path / "miniature").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 40 * 10**6
    assert all(
        tensor.dtype == torch.bfloat16 or not tensor.is_floating_point()
        for file in files
        if file.suffix == ".safetensors"
        for tensor in load_file(file).values()
    )
    pipeline = GlmImagePipeline.from_pretrained(tmp_path / "miniature", dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(prompt="A teal poster with the word 'HI'", height=64, width=64, num_inference_steps=2, output_type="pt").images[0]
    assert picture.shape == (3, 64, 64)
    assert bool(torch.isfinite(picture).all())


def test_every_run_gets_its_curves(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VAE's phases have one each. What a stage logs can be plotted; that a plot becomes a picture is proved elsewhere."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    names = {path.name for path in curves.write(folder, tmp_path)}

    assert names == {"vae.png", "vae-skeleton.png", "vae-whole.png", "glyphs.png", "tokens.png", "layout.png", "pixels.png"}
