"""
Edits of source images: several pictures of one source, with what they share computed once, against the reference, which shares nothing.

Knows both engines and the pipeline, no service. Pixels are compared before a figure counts. Times are CPU times of this process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infra.bench.bare_decoder import PROMPT, STEPS, BareLoop, check_equal, make_ids, make_request, timed, upsampled
from infra.bench.figures import Figure, Measurement
from services.ar_worker.engine import ArEngine, GridRequest
from services.ar_worker.weights import ArModel
from services.decoder_worker import vae
from services.decoder_worker.dit import read_references
from services.decoder_worker.engine import DecoderEngine, ImageRequest, SourceInput
from services.decoder_worker.latents import starting_noise
from services.decoder_worker.references import encode_reference
from services.decoder_worker.schedule import make_schedule
from services.decoder_worker.weights import DecoderModel
from shared.grid import PATCH_PX, TOKEN_PX, TokenGrid

_SIDES = (64, 128, 256)


def measurements(bare: BareLoop, ar: ArModel, pipeline: Any, num_repeats: int) -> Iterator[Measurement]:
    """
    Args:
        pipeline: diffusers' own, with both halves.
    """
    for side in _SIDES:
        yield partial(_decoder_part, bare.model, pipeline, side, num_repeats)
    for side in _SIDES:
        # One less: at 256 px each takes most of a minute, and four AR runs beside four pictures differ less.
        yield partial(_end_to_end, bare.model, ar, pipeline, side, max(1, num_repeats - 1))
    for side in _SIDES[1:]:
        yield partial(_kept_reference, bare, side, num_repeats)
    yield partial(_eight_of_one, bare.model, num_repeats)


def _source(side: int, seed: int = 0) -> SourceInput:
    pixels = np.random.default_rng((side, seed)).integers(0, 256, (side, side, 3), dtype=np.uint8)
    grid = TokenGrid(side // TOKEN_PX, side // TOKEN_PX)
    return SourceInput(Image.fromarray(pixels), make_ids(grid, side + 1), key=f"source {side} {seed}")


def draw_together(model: DecoderModel, requests: Sequence[ImageRequest]) -> tuple[list[Tensor], DecoderEngine]:
    """Pixels of requests that come at once, by an engine that knows nothing yet."""
    engine = DecoderEngine(model)
    futures = [engine.submit(request, lambda *_: None, lambda: False) for request in requests]
    while not all(future.done() for future in futures):
        engine.turn()
    return [future.result().pixels for future in futures], engine


# ---- Four pictures of one source ----


def _pipeline_pixels(pipeline: Any, request: ImageRequest, *, whole: bool = False) -> Tensor:
    """The reference's picture of a request with one source: the whole call, or from the request's own prior tokens."""
    (source,) = request.sources
    tokens = {
        "prior_token_ids": upsampled(request.token_ids),
        "prior_token_image_ids": [upsampled(source.token_ids)[0]],
        "source_image_grid_thw": [torch.tensor([[1, source.image.height // PATCH_PX, source.image.width // PATCH_PX]])],
    }
    pixels: Tensor = pipeline(
        prompt=request.prompt,
        image=[source.image],
        height=request.grid.height_px,
        width=request.grid.width_px,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="pt",
        **({} if whole else tokens),
    ).images[0]
    return pixels


def _decoder_part(model: DecoderModel, pipeline: Any, side: int, num_repeats: int) -> list[Figure]:
    ratios = []
    difference = 0.0
    requests = [make_request(side, seed, sources=(_source(side),)) for seed in range(4)]
    for _ in range(num_repeats):
        theirs_s, theirs = timed(lambda: [_pipeline_pixels(pipeline, request) for request in requests])
        ours_s, (ours, engine) = timed(lambda: draw_together(model, requests))
        difference = max(difference, check_equal(ours, theirs))
        ratios.append(theirs_s / ours_s)
        if engine.shared.num_computed["reference"] != 1:
            raise AssertionError("the reference was encoded more than once")
    note = f"one {side}x{side} source, {STEPS} steps, same prior tokens; pixels differ by {difference:.0e}"
    return [Figure(f"i2i decoder, n = 4 of one reference, against 4 pipeline calls ({side} px)", ratios, 1.6, note=note)]


def _end_to_end(model: DecoderModel, ar: ArModel, pipeline: Any, side: int, num_repeats: int) -> list[Figure]:
    """The AR model once and the decoder for four, against four whole calls, each of which lays out and looks at the source anew."""
    grid = TokenGrid(side // TOKEN_PX, side // TOKEN_PX)
    sampling = pipeline.vision_language_encoder.generation_config
    engine = ArEngine(ar, 4)
    engine.start()

    def theirs(source: SourceInput, seed: int) -> list[Tensor]:
        return [_pipeline_pixels(pipeline, make_request(side, seed + index, sources=(source,)), whole=True) for index in range(4)]

    def ours(source: SourceInput, seed: int) -> tuple[list[Tensor], float]:
        wanted = GridRequest(PROMPT, grid, seed, sampling.temperature, sampling.top_p, sources=(source.image,))
        ar_s, laid_out = timed(engine.submit(wanted, lambda *_: None, lambda: False).result)
        known = SourceInput(source.image, laid_out.source_token_ids[0], key=source.key)
        requests = [ImageRequest(PROMPT, grid, laid_out.token_ids, seed + index, STEPS, 1.5, (known,)) for index in range(4)]
        return draw_together(model, requests)[0], ar_s

    ratios = []
    difference = 0.0
    ar_share = 0.0
    for repeat in range(num_repeats):
        source = _source(side, repeat)
        theirs_s, expected = timed(partial(theirs, source, 10 * repeat))
        ours_s, (pixels, ar_s) = timed(partial(ours, source, 10 * repeat))
        # Of the four only the first has the seed of its own layout, as every call has.
        difference = max(difference, check_equal(pixels[:1], expected[:1]))
        ratios.append(theirs_s / ours_s)
        ar_share = ar_s / ours_s
    engine.close()
    note = f"one {side}x{side} source, {STEPS} steps, prompt to pixels; AR part of ours {ar_share:.0%}; pixels differ by {difference:.0e}"
    return [Figure(f"i2i end to end, n = 4 of one reference, against 4 pipeline calls ({side} px)", ratios, 2.0, note=note)]


# ---- What keeping the reference's keys and values is worth ----


def _kept_reference(bare: BareLoop, side: int, num_repeats: int) -> list[Figure]:
    ratios = []
    difference = 0.0
    for repeat in range(num_repeats):
        request = make_request(side, repeat, sources=(_source(side),))
        theirs_s, theirs = timed(partial(_recomputing, bare, request))
        ours_s, (ours, _) = timed(partial(draw_together, bare.model, [request]))
        difference = max(difference, check_equal(ours, [theirs]))
        ratios.append(theirs_s / ours_s)
    note = f"one picture of one {side}x{side} source, {STEPS} steps, VAE included; pixels differ by {difference:.0e}"
    return [Figure(f"i2i decoder, keys and values kept, against the reference recomputed every step ({side} px)", ratios, 1.4, note=note)]


def _recomputing(bare: BareLoop, request: ImageRequest) -> Tensor:
    """The bare loop with a source whose keys and values are computed anew in every step."""
    with torch.inference_mode():
        return _draw_recomputing(bare, request)


def _draw_recomputing(bare: BareLoop, request: ImageRequest) -> Tensor:
    model = bare.model
    (source,) = request.sources
    ids, source_ids = upsampled(request.token_ids), upsampled(source.token_ids)
    schedule = make_schedule(model.schedule_params, ids.shape[1], request.steps)
    source_latents = vae.vae_encode(model.vae, source.image)
    latents = starting_noise(request.seed, request.grid, model.latent_channels, 8, model.dtype, model.device)
    for index, timestep in enumerate(schedule.timesteps):
        reference = encode_reference(model.transformer, source_latents, source_ids, source.image.height, source.image.width)
        read = read_references([(reference,)], len(model.transformer.transformer_blocks))
        cond = bare.velocity(latents, ids, timestep, request.grid, dropped=False, kv_caches=read)
        uncond = bare.velocity(latents, ids, timestep, request.grid, dropped=True)
        velocity = uncond + request.guidance_scale * (cond - uncond)
        latents = latents + (schedule.sigmas[index + 1] - schedule.sigmas[index]) * velocity
    return vae.vae_decode(model.vae, latents)[0]


# ---- Eight pictures of one layout and one source ----


def _eight_of_one(model: DecoderModel, num_repeats: int) -> list[Figure]:
    rates, encoded = [], []
    for repeat in range(num_repeats):
        requests = [make_request(128, 8 * repeat + seed, sources=(_source(128),)) for seed in range(8)]
        taken_s, (_, engine) = timed(partial(draw_together, model, requests))
        rates.append(len(requests) / taken_s)
        counts = engine.shared.num_computed
        encoded.append(float(counts["reference"]))
    note = f"128x128, {STEPS} steps; computed: {', '.join(f'{kind} {count}' for kind, count in sorted(counts.items()))}"
    name = "8 images of one layout and one reference"
    return [
        Figure(f"references encoded for {name}", encoded, 1, at_least=False, unit="", note="by one decoder engine"),
        Figure(f"decoder, {name}", rates, unit="images/s", note=note),
    ]
