"""
The decoder engine beside what it is measured against: a bare loop, run-to-completion batches, and the reference pipeline.

On the shipped miniature, with one torch thread. Times are CPU times of this process: with one thread that is the time a free core
takes, and other programs on the machine disturb it less. `python -m infra.bench.decoder`.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import GlmImagePipeline
from PIL import Image
from torch import Tensor

from infra.bench import decoder_mix
from infra.bench.bare_decoder import STEPS, BareLoop, check_equal, make_ids, make_request, timed, upsampled
from infra.bench.figures import Figure, show
from services.decoder_worker.engine import DecoderEngine, ImageRequest, SourceInput
from services.decoder_worker.weights import DecoderModel, load_decoder_model
from shared.grid import TOKEN_PX, TokenGrid

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "miniature"


def measure(num_repeats: int = 3) -> list[Figure]:
    """All figures of the decoder engine."""
    torch.set_num_threads(1)
    model = load_decoder_model(CHECKPOINT, "cpu", "float32")
    bare = BareLoop(model)
    pipeline = GlmImagePipeline.from_pretrained(CHECKPOINT, vision_language_encoder=None, processor=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return [
        *(_back_to_back(bare, side, num_repeats + 2) for side in (128, 256)),
        *decoder_mix.figures(bare),
        *(_edits(model, pipeline, side, num_repeats) for side in (64, 128, 256)),
        _eight_of_one(model, num_repeats),
        *_fast(model, num_repeats),
    ]


def _source(side: int) -> SourceInput:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    grid = TokenGrid(side // TOKEN_PX, side // TOKEN_PX)
    return SourceInput(Image.fromarray(pixels), make_ids(grid, side + 1), key=f"source {side}")


# ---- One after the other ----


def _back_to_back(bare: BareLoop, side: int, num_repeats: int) -> Figure:
    """One picture after the other through the running engine, against the bare loop."""
    engine = DecoderEngine(bare.model)
    engine.start()
    ratios = []
    difference = 0.0
    for repeat in range(num_repeats + 1):
        request = make_request(side, repeat)
        bare_s, theirs = timed(partial(bare.draw, [request]))
        ours_s, ours = timed(engine.submit(request, lambda *_: None, lambda: False).result)
        difference = max(difference, check_equal([ours.pixels], theirs))
        ratios.append(bare_s / ours_s)
    engine.close()
    # The first of each was warming up.
    note = f"t2i {side}x{side}, {STEPS} steps, both with guidance; pixels differ by {difference:.0e}"
    return Figure(f"decoder engine, back to back, against a bare loop ({side} px)", ratios[1:], 0.95, note=note)


# ---- Edits of one source ----


def _pipeline_pixels(pipeline: Any, request: ImageRequest) -> Tensor:
    """The reference's picture of a request with one source, from the same prior tokens."""
    (source,) = request.sources
    pixels: Tensor = pipeline(
        prompt=request.prompt,
        image=[source.image],
        height=request.grid.height_px,
        width=request.grid.width_px,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        prior_token_ids=upsampled(request.token_ids),
        prior_token_image_ids=[upsampled(source.token_ids)[0]],
        source_image_grid_thw=[torch.tensor([[1, source.image.height // 16, source.image.width // 16]])],
        output_type="pt",
    ).images[0]
    return pixels


def _draw_together(model: DecoderModel, requests: Sequence[ImageRequest]) -> tuple[list[Tensor], DecoderEngine]:
    engine = DecoderEngine(model)
    futures = [engine.submit(request, lambda *_: None, lambda: False) for request in requests]
    while not all(future.done() for future in futures):
        engine.turn()
    return [future.result().pixels for future in futures], engine


def _edits(model: DecoderModel, pipeline: Any, side: int, num_repeats: int) -> Figure:
    """Four pictures of one source and layout through the engine, against four calls of the reference pipeline."""
    ratios = []
    difference = 0.0
    requests = [make_request(side, seed, sources=(_source(side),)) for seed in range(4)]
    for _ in range(num_repeats):
        theirs_s, theirs = timed(lambda: [_pipeline_pixels(pipeline, request) for request in requests])
        ours_s, (ours, engine) = timed(lambda: _draw_together(model, requests))
        difference = max(difference, check_equal(ours, theirs))
        ratios.append(theirs_s / ours_s)
        if engine.shared.num_computed["reference"] != 1:
            raise AssertionError("the reference was encoded more than once")
    note = f"one {side}x{side} source, {STEPS} steps, same prior tokens, decoder part only; pixels differ by {difference:.0e}"
    return Figure(f"i2i decoder, n = 4 of one reference, against 4 pipeline calls ({side} px)", ratios, 1.6, note=note)


def _eight_of_one(model: DecoderModel, num_repeats: int) -> Figure:
    rates = []
    for repeat in range(num_repeats):
        requests = [make_request(128, 8 * repeat + seed, sources=(_source(128),)) for seed in range(8)]
        taken_s, (_, engine) = timed(partial(_draw_together, model, requests))
        rates.append(len(requests) / taken_s)
        counts = engine.shared.num_computed
    note = f"128x128, {STEPS} steps; computed: {', '.join(f'{kind} {count}' for kind, count in sorted(counts.items()))}"
    return Figure("decoder, n = 8 of one layout and one reference", rates, unit="images/s", note=note)


# ---- The lossy tier ----


def _fast(model: DecoderModel, num_repeats: int) -> list[Figure]:
    """Fast against exact pictures: how much sooner, and how far away."""
    ratios, differences = [], []
    for seed in range(num_repeats):
        exact = make_request(256, seed)
        exact_s, ((theirs,), _) = timed(partial(_draw_together, model, [exact]))
        fast_s, ((ours,), _) = timed(partial(_draw_together, model, [dataclasses.replace(exact, fast=True)]))
        ratios.append(exact_s / fast_s)
        differences.append(float((ours - theirs).abs().mean()))
    note = f"256x256, {STEPS} steps; mean absolute difference of pixels in 0..1: {statistics.median(differences):.3f}"
    return [Figure("decoder, fast against exact (lossy, off unless asked)", ratios, note=note)]


if __name__ == "__main__":
    show(measure())
