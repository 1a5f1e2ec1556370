"""The trained miniature writes what it is asked to write: the words of a prompt are read in the picture that the service hands out."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import GlmImagePipeline
from PIL import Image

from checkpoints.evaluate.reading import Reader
from checkpoints.train.posters import COLOURS
from cli.checkpoint import TRAINED_MINIATURE
from cli.demo import EDIT_PROMPT, TEXT_PROMPT
from tests.stack import Stack

_PATIENCE_S = 120


@pytest.fixture(scope="module")
def reader() -> Reader:
    """Reads letters as a person would."""
    return Reader()


def draw(stack: Stack, **request: Any) -> tuple[dict[str, Any], Image.Image]:
    """A finished job and its first picture."""
    job = stack.wait(stack.submit(**request), _PATIENCE_S)
    assert job["status"] == "succeeded", job["error"]
    return job, Image.open(io.BytesIO(stack.result(job))).convert("RGB")


def words(reader: Reader, picture: Image.Image) -> list[str]:
    """The lines that stand in a picture, from the top."""
    return [line.text for line in reader.read(np.asarray(picture))]


def background(picture: Image.Image) -> str:
    """The named colour nearest to the picture's edge."""
    pixels = np.asarray(picture).astype(int)
    edge = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    return min(COLOURS, key=lambda name: float(np.abs(edge - COLOURS[name]).sum()))


def test_what_a_request_leaves_out_the_checkpoint_says(trained_stack: Stack) -> None:
    """Size, steps, guidance, temperature and top_p are those of the checkpoint's files."""
    own = json.loads((TRAINED_MINIATURE / "glmq.json").read_text())
    sampling = json.loads((TRAINED_MINIATURE / "vision_language_encoder" / "generation_config.json").read_text())
    params = trained_stack.submit(prompt="A plain red card that says 'HI'")["params"]
    assert params["size"] == f"{own['default_width_px']}x{own['default_height_px']}"
    assert (params["steps"], params["guidance_scale"]) == (own["steps"], own["guidance_scale"])
    assert (params["temperature"], params["top_p"]) == (sampling["temperature"], sampling["top_p"])


@pytest.mark.parametrize(
    ("prompt", "size", "lines", "colour"),
    [
        ("A teal poster with the words 'GRAND OPENING' in white", None, ["GRAND", "OPENING"], "teal"),
        ("A yellow banner that says “Bakery”", "256x128", ["Bakery"], "yellow"),
        ("A plain white card with the word 「lantern」 in red and a border", "256x192", ["lantern"], "white"),
    ],
)
def test_the_words_of_a_prompt_are_read(
    trained_stack: Stack, reader: Reader, prompt: str, size: str | None, lines: list[str], colour: str
) -> None:
    """Words that training may never have seen stand on their lines, on the background that was asked for."""
    _, picture = draw(trained_stack, prompt=prompt, seed=1, **({"size": size} if size else {}))
    assert words(reader, picture) == lines
    assert background(picture) == colour


@pytest.mark.parametrize(("size", "generated"), [("1000x630", "256x160"), ("1600x240", "256x64")])
def test_a_picture_larger_than_the_model_draws_can_be_read(trained_stack: Stack, reader: Reader, size: str, generated: str) -> None:
    """It is drawn small, resized whole to the very size that was asked for, and the job says both; no letter is lost."""
    job, picture = draw(trained_stack, prompt='A green poster with the word "MARATHON" in white', size=size, seed=2)
    (output,) = job["outputs"]
    assert (f"{picture.width}x{picture.height}", f"{output['width']}x{output['height']}") == (size, size)
    assert f"{output['generated_width']}x{output['generated_height']}" == generated
    assert words(reader, picture) == ["MARATHON"]
    assert background(picture) == "green"


def test_the_demo_s_pictures_can_be_read(trained_stack: Stack, reader: Reader) -> None:
    """What a stranger sees first says what it should, and the edit of it changes the words and keeps the background."""
    first, picture = draw(trained_stack, prompt=TEXT_PROMPT, seed=3)
    assert words(reader, picture) == ["HELLO", "GLMQ"]
    assert background(picture) == "blue"
    _, edited = draw(trained_stack, prompt=EDIT_PROMPT, seed=3, size="auto", images=[{"job_id": first["id"], "index": 0}])
    assert words(reader, edited) == ["AGAIN"]
    assert background(edited) == "blue"


def test_trained_weights_draw_the_reference_s_picture(trained_stack: Stack) -> None:
    """With weights that mean something too, the service draws what diffusers' own pipeline draws, with their steps and guidance."""
    prompt, seed = "A black poster with the words 'NIGHT TRAIN' in pink, with a bar below", 5
    job, picture = draw(trained_stack, prompt=prompt, seed=seed, size="192x96")
    torch.set_num_threads(1)
    pipeline = GlmImagePipeline.from_pretrained(TRAINED_MINIATURE, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt=prompt,
        height=picture.height,
        width=picture.width,
        num_inference_steps=job["params"]["steps"],
        guidance_scale=job["params"]["guidance_scale"],
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(expected).astype(int)).max() <= 1
