"""The AR engine writes, id for id, what GlmImagePipeline.generate_prior_tokens writes with the same weights and seed."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import GlmImagePipeline
from PIL import Image

from services.ar_worker.engine import ArEngine, GridRequest, GridResult
from services.ar_worker.weights import load_ar_model
from shared.errors import WorkStoppedError
from shared.grid import TokenGrid

SQUARE, WIDE, TALL = (128, 128), (64, 224), (256, 96)


def load_reference(checkpoint: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The reference pipeline, its AR half only."""
    without = dict.fromkeys(("transformer", "vae", "text_encoder", "tokenizer", "scheduler"))
    # Not by .to() afterwards, which would round the rotary frequencies as well.
    return GlmImagePipeline.from_pretrained(checkpoint, local_files_only=True, dtype=dtype, **without)


@pytest.fixture(scope="module")
def reference(miniature: Path) -> Any:
    return load_reference(miniature)


@pytest.fixture(scope="module")
def engine(miniature: Path) -> Iterator[ArEngine]:
    engine = ArEngine(load_ar_model(miniature, "cpu", "float32"))
    engine.start()
    yield engine
    engine.close()


def request(prompt: str, size: tuple[int, int], seed: int = 0, **changes: Any) -> GridRequest:
    return GridRequest(**{"prompt": prompt, "grid": TokenGrid.covering(*size), "seed": seed, "temperature": 0.9, "top_p": 0.75, **changes})


def write(engine: ArEngine, wanted: GridRequest) -> GridResult:
    return engine.submit(wanted, lambda *_: None, lambda: False).result(timeout=120)


def write_by_reference(reference: Any, wanted: GridRequest) -> GridResult:
    """
    The reference's ids at token resolution.

    It repeats each id 2x2 for the decoder; every second row and column is what the model wrote.
    """
    config = reference.vision_language_encoder.generation_config
    before = config.temperature, config.top_p
    # The pipeline has no argument for them.
    config.temperature, config.top_p = wanted.temperature, wanted.top_p
    try:
        with torch.no_grad():
            ids, source_ids, source_grids = reference.generate_prior_tokens(
                prompt=wanted.prompt,
                height=wanted.grid.height_px,
                width=wanted.grid.width_px,
                image=[list(wanted.sources)] if wanted.sources else None,
                device=torch.device("cpu"),
                generator=torch.Generator().manual_seed(wanted.seed),
            )
    finally:
        config.temperature, config.top_p = before
    shapes = [(h, w) for _, h, w in source_grids[0].tolist()] if wanted.sources else []
    parts = source_ids[0].split([h * w for h, w in shapes]) if wanted.sources else []
    return GridResult(
        token_ids=ids.view(2 * wanted.grid.token_h, 2 * wanted.grid.token_w)[::2, ::2].tolist(),
        source_token_ids=tuple(part.view(shape)[::2, ::2].tolist() for part, shape in zip(parts, shapes, strict=True)),
        num_prompt_tokens=0,
    )


def picture(seed: int, height_px: int, width_px: int) -> Image.Image:
    """Soft blotches of colour, so that neighbouring tokens differ."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width_px, height_px), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("prompt", "size"),
    [
        ("A cat", SQUARE),
        ("A cat", (64, 64)),
        ("", WIDE),
        ('A sign that says "OPEN"', SQUARE),
        ("It's a dog's 'B' then “C” and \"D\" on\n two lines", TALL),
        ("一只猫，上面写着「こんにちは」 🐈‍⬛", WIDE),
    ],
)
def test_text_to_image_tokens_equal_the_reference(engine: ArEngine, reference: Any, prompt: str, size: tuple[int, int]) -> None:
    """Any prompt, any shape: the same ids."""
    wanted = request(prompt, size, seed=7)

    assert write(engine, wanted) == write_by_reference(reference, wanted)


@pytest.mark.parametrize(
    ("source_sizes", "size"),
    [
        ([(64, 64)], SQUARE),
        ([(64, 64)], TALL),
        ([(96, 256)], WIDE),
        ([(96, 256)], SQUARE),
        ([(128, 96), (64, 160)], TALL),
        ([(128, 96), (64, 160)], WIDE),
        ([(64, 64), (512, 128), (64, 96)], SQUARE),
        ([(64, 64), (512, 128), (64, 96)], WIDE),
    ],
)
def test_image_to_image_tokens_equal_the_reference(
    engine: ArEngine, reference: Any, source_sizes: list[tuple[int, int]], size: tuple[int, int]
) -> None:
    """With one, two or three sources of different sizes: the same ids, and the same ids of the sources."""
    sources = tuple(picture(i, *source_size) for i, source_size in enumerate(source_sizes))
    wanted = request("Make 'it' blue", size, seed=3, sources=sources)

    result = write(engine, wanted)

    assert result == write_by_reference(reference, wanted)
    assert [(32 * len(ids), 32 * len(ids[0])) for ids in result.source_token_ids] == source_sizes


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_every_seed_equals_the_reference(engine: ArEngine, reference: Any, seed: int) -> None:
    """From the smallest to the largest seed that the API takes."""
    wanted = request("A cat", SQUARE, seed=seed, sources=(picture(0, 64, 64),))

    assert write(engine, wanted) == write_by_reference(reference, wanted)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.3, 0.75), (1.0, 1.0), (1.7, 0.5), (2.0, 1.0), (0.9, 0.01)])
def test_every_temperature_and_top_p_equals_the_reference(engine: ArEngine, reference: Any, temperature: float, top_p: float) -> None:
    """Set per request here, and on the whole model there."""
    # With a source, before whose 64 tokens no draft of 256 is written.
    wanted = request("A cat", (256, 256), seed=5, temperature=temperature, top_p=top_p, sources=(picture(0, 64, 64),))

    assert write(engine, wanted) == write_by_reference(reference, wanted)


def test_bfloat16_tokens_equal_the_reference(miniature: Path) -> None:
    """In the dtype of a GPU too, the engine does the very same arithmetic."""
    reference, engine = load_reference(miniature, torch.bfloat16), ArEngine(load_ar_model(miniature, "cpu", "bfloat16"))
    engine.start()
    for wanted in (request("A cat", WIDE), request("A cat", TALL, sources=(picture(0, 96, 64), picture(1, 64, 64)))):
        assert write(engine, wanted) == write_by_reference(reference, wanted)
    engine.close()


def test_inputs_change_the_tokens(engine: ArEngine) -> None:
    """The miniature is worth comparing with: prompt, seed, sampling, size and source all count."""
    source = picture(0, 64, 64)
    wanted = [
        request("A cat", SQUARE),
        request("A dog", SQUARE),
        request("A cat", SQUARE, seed=1),
        request("A cat", SQUARE, temperature=2.0),
        request("A cat", SQUARE, top_p=1.0),
        request("A cat", SQUARE, sources=(source,)),
        request("A cat", SQUARE, sources=(picture(1, 64, 64),)),
        request("A cat", SQUARE, sources=(source, source)),
    ]

    futures = [engine.submit(one, lambda *_: None, lambda: False) for one in wanted]

    assert len({str(future.result(timeout=240).token_ids) for future in futures}) == len(wanted)


def test_a_neighbour_changes_nothing(engine: ArEngine, reference: Any) -> None:
    """Requests queued together get what each would get alone, in any order."""
    wanted = [
        request("A cat", WIDE, seed=1),
        request("Make it blue", SQUARE, seed=2, sources=(picture(0, 96, 64),)),
        request("A dog", TALL, seed=3, temperature=1.5),
    ]
    futures = [engine.submit(one, lambda *_: None, lambda: False) for one in wanted]

    results = [future.result(timeout=120) for future in futures]

    assert results == [write_by_reference(reference, one) for one in wanted]
    assert [write(engine, one) for one in reversed(wanted)] == results[::-1]


def test_the_global_generator_is_left_alone(engine: ArEngine) -> None:
    """Writing a grid neither reads nor moves torch's global generator."""
    wanted = request("A cat", SQUARE, sources=(picture(0, 64, 64),))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = write(engine, wanted)
    assert torch.equal(torch.get_rng_state(), state)

    torch.manual_seed(2)
    assert write(engine, wanted) == first


def test_the_shared_model_keeps_no_trace_of_a_request(miniature: Path) -> None:
    """Positions live with the request: the module's own cache of them stays empty."""
    model = load_ar_model(miniature, "cpu", "float32")
    engine = ArEngine(model)
    engine.start()
    write(engine, request("A cat", SQUARE, sources=(picture(0, 64, 64),)))
    engine.close()

    assert model.net.model.rope_deltas is None
    assert model.net.model._cached_decode_position_ids is None


def test_no_end_token_before_the_grid_is_full(miniature: Path, tmp_path: Path) -> None:
    """Given a checkpoint with which the reference wanders off the codebook, the engine still fills the grid with codes."""
    checkpoint = shutil.copytree(miniature, tmp_path / "checkpoint")
    file = checkpoint / "vision_language_encoder" / "generation_config.json"
    settings = json.loads(file.read_text())
    settings.pop("suppress_tokens")
    file.write_text(json.dumps(settings))
    wanted = request("A cat", SQUARE, seed=4, temperature=2.0, top_p=1.0)
    model = load_ar_model(checkpoint, "cpu", "float32")
    engine = ArEngine(model)
    engine.start()

    rows = write(engine, wanted).token_ids
    engine.close()

    assert [len(row) for row in rows] == [4, 4, 4, 4]
    assert all(0 <= token_id < model.codebook_size for row in rows for token_id in row)
    # The reference writes its end token early, and then has too few ids for the grid.
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        write_by_reference(load_reference(checkpoint), wanted)


def test_progress_counts_each_phase_to_its_end(engine: ArEngine) -> None:
    """Text-to-image reports every draft token, then every grid token; image-to-image only the latter."""
    wanted = request("A cat", WIDE)
    seen: list[tuple[str, int, int]] = []
    engine.submit(wanted, lambda *step: seen.append(step), lambda: False).result(timeout=120)
    draft, grid = wanted.grid.draft_h * wanted.grid.draft_w, wanted.grid.num_tokens
    assert seen == [*(("draft", i + 1, draft) for i in range(draft)), *(("grid", i + 1, grid) for i in range(grid))]

    seen.clear()
    engine.submit(request("A cat", WIDE, sources=(picture(0, 64, 64),)), lambda *step: seen.append(step), lambda: False).result(timeout=120)
    assert seen == [("grid", i + 1, grid) for i in range(grid)]


def test_a_grid_stops_within_64_tokens(engine: ArEngine, reference: Any) -> None:
    """Once `should_stop` turns true, the request ends within 64 tokens and the next one is unharmed."""
    stop, written = threading.Event(), 0

    def on_progress(phase: str, done: int, total: int) -> None:
        nonlocal written
        written += 1
        if written == 100:
            stop.set()

    future = engine.submit(request("A cat", SQUARE), on_progress, stop.is_set)
    with pytest.raises(WorkStoppedError):
        future.result(timeout=120)

    assert 100 <= written <= 164
    wanted = request("A dog", SQUARE, seed=9, sources=(picture(0, 64, 64),))
    assert write(engine, wanted) == write_by_reference(reference, wanted)
