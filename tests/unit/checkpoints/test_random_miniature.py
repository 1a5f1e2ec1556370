"""The random-weight miniature is the same everywhere, loads as the real one does, and reacts to every input."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import GlmImagePipeline
from PIL import Image
from torch import Tensor

from checkpoints.random_miniature import build

Draw = Callable[..., Tensor]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def draw(miniature: Path) -> Draw:
    """Draws one 64x64 picture with the reference pipeline, as floats of 0..1."""
    pipeline = GlmImagePipeline.from_pretrained(miniature, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str = "A cat", seed: int = 1, **changes: Any) -> Tensor:
        settings = {"height": 64, "width": 64, "num_inference_steps": 4, "output_type": "pt", **changes}
        pixels: Tensor = pipeline(prompt=prompt, generator=torch.Generator().manual_seed(seed), **settings).images[0]
        return pixels

    return draw


@pytest.fixture(scope="module")
def plain(draw: Draw) -> Tensor:
    return draw()


def colours(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)).resize(
        (64, 64), Image.Resampling.BICUBIC
    )


def test_two_builds_are_equal_byte_by_byte(tmp_path: Path, miniature: Path) -> None:
    """Whoever builds it gets the same checkpoint, and torch's global generator stays where it was."""
    state = torch.get_rng_state()

    assert contents(build(tmp_path / "again")) == contents(miniature)
    assert torch.equal(torch.get_rng_state(), state)


def test_builders_do_not_clash(tmp_path: Path, miniature: Path) -> None:
    """Two at once both succeed, and leave one whole folder and nothing else."""
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(build, [tmp_path / "checkpoint"] * 2))

    assert folders == [tmp_path / "checkpoint"] * 2
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoint"]
    assert contents(tmp_path / "checkpoint") == contents(miniature)


def test_what_is_there_already_is_kept(tmp_path: Path) -> None:
    """A finished folder is returned at once; a folder of something else is not touched."""
    done, other = tmp_path / "done", tmp_path / "other"
    for folder, file in ((done, "glmq.json"), (other, "thesis.txt")):
        folder.mkdir()
        (folder / file).write_text("precious")

    assert build(done) == done
    with pytest.raises(FileExistsError, match="other"):
        build(other)
    assert contents(tmp_path) == {"done/glmq.json": b"precious", "other/thesis.txt": b"precious"}


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"prompt": "A dog"},
        {"prompt": 'A cat "hi"'},
        {"guidance_scale": 3.0},
        {"num_inference_steps": 5},
        {"image": [colours(1)]},
    ],
)
def test_every_input_changes_the_picture(draw: Draw, plain: Tensor, changes: dict[str, Any]) -> None:
    """By more than a few 8-bit levels, so that a wrong turn in the pipeline shows."""
    assert (draw(**changes) - plain).abs().max() > 0.02


def test_decoder_inputs_change_the_picture_with_the_tokens_held(draw: Draw) -> None:
    """Glyph texts, their letters' order and reference images work on their own, not only through the AR model."""
    tokens = torch.arange(16)[None] * 11 % 256
    source_tokens = {"prior_token_image_ids": [tokens[0]], "source_image_grid_thw": [torch.tensor([[1, 4, 4]])]}
    pictures = [
        draw("A cat", prior_token_ids=tokens),
        draw("A cat", prior_token_ids=tokens.flip(1)),
        draw('A "cat"', prior_token_ids=tokens),
        draw('A "tac"', prior_token_ids=tokens),
        draw("A cat", prior_token_ids=tokens, image=[colours(1)], **source_tokens),
        draw("A cat", prior_token_ids=tokens, image=[colours(2)], **source_tokens),
    ]

    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert (one - other).abs().max() > 0.02


def test_pixels_are_rarely_clipped(draw: Draw) -> None:
    """A clipped pixel hides a difference; a flat picture would, too."""
    pixels = draw(height=128, width=128)

    assert ((pixels <= 0) | (pixels >= 1)).float().mean() < 0.1
    assert pixels.std() > 0.1
