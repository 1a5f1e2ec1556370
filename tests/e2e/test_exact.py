"""
End to end over HTTP, Redis and S3, the pictures are those of diffusers' own pipeline.

Each case prints its largest difference in 8-bit levels (`pytest -s`).
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import GlmImagePipeline
from PIL import Image

from shared.artifacts import TokenGridArtifact
from tests.stack import Stack

STEPS = 3


@pytest.fixture(scope="module")
def pipeline(miniature: Path) -> Any:
    """The reference."""
    torch.set_num_threads(1)
    loaded = GlmImagePipeline.from_pretrained(miniature, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def largest_difference(data: bytes, expected: np.ndarray, prompt: str) -> int:
    """Between a served file and the reference, in levels of 255."""
    served = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert served.shape == expected.shape
    largest = int(np.abs(served - expected).max())
    print(f"| {expected.shape[0]}x{expected.shape[1]} | {prompt} | {largest} |")  # noqa: T201 - a table for people, shown with -s
    return largest


def reference(pipeline: Any, prompt: str, height: int, width: int, seed: int, sources: list[Image.Image]) -> np.ndarray:
    """The reference's 8-bit picture."""
    drawn = pipeline(
        prompt=prompt,
        image=sources or None,
        height=height,
        width=width,
        num_inference_steps=STEPS,
        guidance_scale=1.5,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    return np.asarray(drawn).astype(int)


def photo(height: int, width: int, seed: int) -> Image.Image:
    """Smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse).astype(int) + rng.integers(-8, 9, (height, width, 3)), 0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    """Lossless bytes."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("prompt", "height", "width", "seed"),
    [
        ("a lighthouse at dusk", 128, 128, 1),
        ("a sign that says 'OPEN'", 96, 160, 2**53 + 1),
        ("a poster with \"SPRING\" above “fair” and 'now'", 160, 64, 3),
        ("海报，标题「春の音楽会」", 64, 96, 4),
    ],
)
def test_text_to_image_is_the_references(stack: Stack, pipeline: Any, prompt: str, height: int, width: int, seed: int) -> None:
    """Token ids are equal, and pixels differ by at most one level of 255."""
    job = stack.wait(stack.submit(prompt=prompt, size=f"{width}x{height}", seed=seed, steps=STEPS, guidance_scale=1.5))
    assert job["status"] == "succeeded", job["error"]
    expected = reference(pipeline, prompt, height, width, seed, [])
    assert largest_difference(stack.result(job), expected, prompt) <= 1

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        prior, _, _ = pipeline.generate_prior_tokens(prompt=[prompt], height=height, width=width, generator=generator)
    assert stored_ids(stack, job) == prior.view(height // 16, width // 16)[::2, ::2].tolist()


@pytest.mark.parametrize("sizes", [((128, 96),), ((64, 128), (160, 64))], ids=["one source", "two sources"])
def test_image_to_image_is_the_references(stack: Stack, pipeline: Any, sizes: tuple[tuple[int, int], ...]) -> None:
    """The same with source images of different sizes, uploaded in one multipart request."""
    sources = [photo(height, width, seed) for seed, (height, width) in enumerate(sizes)]
    prompt = "the same, with the word 'SALE'"
    request = {"prompt": prompt, "size": "96x128", "seed": 5, "steps": STEPS, "guidance_scale": 1.5}
    answer = stack.client.post(
        "/v1/jobs",
        files=[
            ("request", (None, json.dumps(request), "application/json")),
            *(("image", ("photo.png", png(source), "image/png")) for source in sources),
        ],
    )
    assert answer.status_code == 202, answer.text
    job = stack.wait(answer.json())
    assert job["status"] == "succeeded", job["error"]
    expected = reference(pipeline, prompt, 128, 96, 5, sources)
    assert largest_difference(stack.result(job), expected, prompt) <= 1


def test_same_request_gives_the_same_bytes(stack: Stack) -> None:
    """The same seed gives the same file, beside neighbours or alone; another seed gives another."""
    request = {"prompt": "a red kite", "size": "64x64", "steps": STEPS, "n": 2, "seed": 40}
    first = stack.submit(**request)
    neighbours = [stack.submit(prompt=f"neighbour {number}", size="96x64", steps=STEPS) for number in range(3)]
    second = stack.submit(**request)
    one, two = (stack.wait(job)["outputs"] for job in (first, second))
    assert [output["sha256"] for output in one] == [output["sha256"] for output in two]
    assert one[0]["sha256"] != one[1]["sha256"]
    alone = stack.wait(stack.submit(**{**request, "n": 1, "seed": 41}))["outputs"]
    assert alone[0]["sha256"] == one[1]["sha256"]
    for neighbour in neighbours:
        assert stack.wait(neighbour)["status"] == "succeeded"


def stored_ids(stack: Stack, job: dict[str, Any]) -> list[list[int]]:
    """The token ids that the AR worker stored for a job's first image."""
    client, bucket = stack.objects()
    found = []
    for item in client.list_objects_v2(Bucket=bucket)["Contents"]:
        if "/grids/" in item["Key"]:
            grid = TokenGridArtifact.from_bytes(client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())
            if (
                grid.seed == job["params"]["layout_seed"]
                and f"{len(grid.token_ids[0]) * 32}x{len(grid.token_ids) * 32}" == job["params"]["size"]
            ):
                found.append(grid.token_ids)
    (ids,) = found
    return ids
