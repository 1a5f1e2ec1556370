"""
Pictures that share the decoder engine, beside diffusers' own pipeline drawing each of them alone.

The engine is driven turn by turn on the test's thread, so that arrivals, cancellations and resumes fall where hypothesis puts them.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import GlmImagePipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.decoder_worker.engine import DecoderEngine, ImageRequest, ImageResult, SourceInput
from services.decoder_worker.interim import Interim, LatentsSoFar
from services.decoder_worker.weights import DecoderModel, load_decoder_model
from shared.errors import WorkStoppedError
from shared.grid import TokenGrid

_TOLERANCE = 1e-4


def _ids(height: int, width: int, seed: int) -> list[list[int]]:
    rows: list[list[int]] = np.random.default_rng(seed).integers(0, 256, (height, width)).tolist()
    return rows


def _source(token_h: int, token_w: int, seed: int) -> SourceInput:
    pixels = np.random.default_rng(seed).integers(0, 256, (token_h * 32, token_w * 32, 3), dtype=np.uint8)
    return SourceInput(Image.fromarray(pixels), _ids(token_h, token_w, seed), key=f"source {seed}")


_FIRST, _SECOND, _OTHER_SHAPE = _source(2, 3, 1), _source(2, 3, 2), _source(3, 2, 3)


def _request(seed: int, prompt: str = '"OPEN"', **changes: Any) -> ImageRequest:
    grid = changes.pop("grid", TokenGrid(2, 3))
    ids = _ids(grid.token_h, grid.token_w, seed)
    request = ImageRequest(prompt=prompt, grid=grid, token_ids=ids, seed=seed, steps=4, guidance_scale=1.5)
    return dataclasses.replace(request, **changes)


_REQUESTS = (
    _request(1),
    _request(2, 'a sign: "SHUT"', steps=6),
    _request(3, '"ABCD"', guidance_scale=3.0, steps=2),
    _request(4, '"longer than that"'),
    _request(5, "no text", steps=5),
    _request(6, "no text at all", guidance_scale=1.0),
    _request(7, grid=TokenGrid(4, 4), steps=3),
    _request(8, grid=TokenGrid(3, 2)),
    _request(9, sources=(_FIRST,)),
    _request(10, sources=(_SECOND,), steps=5),
    _request(11, sources=(_FIRST, _OTHER_SHAPE)),
    _request(12, sources=(_SECOND, _OTHER_SHAPE), steps=3),
    _request(13, "no text", sources=(_FIRST,), guidance_scale=1.0),
)


@pytest.fixture(scope="module")
def model(miniature: Path) -> DecoderModel:
    return load_decoder_model(miniature, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def expected(miniature: Path) -> list[torch.Tensor]:
    """What the reference draws for each request."""
    pipeline = GlmImagePipeline.from_pretrained(miniature, vision_language_encoder=None, processor=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return [_reference(pipeline, request) for request in _REQUESTS]


def _reference(pipeline: Any, request: ImageRequest) -> torch.Tensor:
    arguments: dict[str, Any] = {}
    if request.sources:
        ids = [_upsampled(source.token_ids) for source in request.sources]
        thw = torch.tensor([[1, source.image.height // 16, source.image.width // 16] for source in request.sources])
        arguments = {
            "image": [source.image for source in request.sources],
            "prior_token_image_ids": [torch.cat(ids, dim=1)[0]],
            "source_image_grid_thw": [thw],
        }
    pixels: torch.Tensor = pipeline(
        prompt=request.prompt,
        height=request.grid.height_px,
        width=request.grid.width_px,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        prior_token_ids=_upsampled(request.token_ids),
        output_type="pt",
        **arguments,
    ).images[0]
    return pixels


def _upsampled(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows).repeat_interleave(2, dim=0).repeat_interleave(2, dim=1).view(1, -1)


@dataclasses.dataclass
class Arrival:
    """A request that comes before a turn, and perhaps is canceled after some of its steps."""

    index: int
    future: Future[ImageResult]
    steps: list[int]
    shown: list[Interim]


@dataclasses.dataclass
class Drive:
    """An engine without its thread: the test takes its turns."""

    engine: DecoderEngine

    def submit(self, index: int, stop_after: int | None = None, resume: LatentsSoFar | None = None) -> Arrival:
        steps: list[int] = []
        shown: list[Interim] = []
        request = dataclasses.replace(_REQUESTS[index], resume=resume)
        future = self.engine.submit(
            request,
            lambda phase, done, _: steps.append(done) if phase == "denoise" else None,
            lambda: stop_after is not None and stop_after in steps,
            shown.append,
        )
        return Arrival(index, future, steps, shown)

    def finish(self) -> None:
        while self.engine.live() or self.engine.num_waiting():
            self.engine.turn()


def _difference(arrival: Arrival, expected: list[torch.Tensor]) -> float:
    theirs = expected[arrival.index]
    assert theirs.std() > 0.02, "a flat picture would prove nothing"
    ours = arrival.future.result(0).pixels
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


@pytest.fixture(scope="module")
def checkpoints(model: DecoderModel) -> list[list[LatentsSoFar]]:
    """The latents of each request after each of its steps but the last, as stored and read again."""
    drive = Drive(DecoderEngine(model, checkpoint_steps=1))
    arrivals = [drive.submit(index) for index in range(len(_REQUESTS))]
    drive.finish()
    stored = [[shown.to_bytes() for shown in arrival.shown if isinstance(shown, LatentsSoFar)] for arrival in arrivals]
    return [[LatentsSoFar.from_bytes(data) for data in each] for each in stored]


class Known:
    """What the pictures are drawn with and compared to. No dataclass: hypothesis would print all of it with its arguments."""

    def __init__(self, model: DecoderModel, expected: list[torch.Tensor], checkpoints: list[list[LatentsSoFar]]) -> None:
        self.model = model
        self.expected = expected
        self.checkpoints = checkpoints


@pytest.fixture(scope="module")
def known(model: DecoderModel, expected: list[torch.Tensor], checkpoints: list[list[LatentsSoFar]]) -> Known:
    return Known(model, expected, checkpoints)


_ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, len(_REQUESTS) - 1),  # which request
        st.integers(0, 3),  # turns before the next one comes
        st.none() | st.integers(0, 3),  # the step after which it is canceled
        st.none() | st.integers(0, 4),  # the checkpoint from which it is resumed, as far as there is one
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=12, deadline=None)
@given(arrivals=_ARRIVALS, token_budget=st.sampled_from([1, 72, 1024]), cache_bytes=st.sampled_from([0, 1 << 30]))
def test_pictures_are_the_reference_s_beside_any_neighbours(
    known: Known,
    arrivals: list[tuple[int, int, int | None, int | None]],
    token_budget: int,
    cache_bytes: int,
) -> None:
    """Whatever comes when, is canceled or resumed beside it, every picture that is drawn is the reference's within 1e-4."""
    drive = Drive(DecoderEngine(known.model, token_budget=token_budget, reference_cache_bytes=cache_bytes, checkpoint_steps=2))
    came: list[Arrival] = []
    for index, num_turns, stop_after, resume_at in arrivals:
        usable = known.checkpoints[index]
        resume = usable[resume_at] if resume_at is not None and resume_at < len(usable) else None
        came.append(drive.submit(index, stop_after, resume))
        for _ in range(num_turns):
            drive.engine.turn()
    drive.finish()

    for arrival, (_, _, stop_after, _) in zip(came, arrivals, strict=True):
        if stop_after in arrival.steps:
            assert isinstance(arrival.future.exception(0), WorkStoppedError)
            assert arrival.steps[-1] == stop_after, "not one step more"
        else:
            assert _difference(arrival, known.expected) <= _TOLERANCE


def test_equal_shapes_take_their_steps_together(model: DecoderModel, expected: list[torch.Tensor]) -> None:
    """Pictures of one size and glyph length with unlike prompts, guidance, steps and references share calls of the DiT, and are exact."""
    calls: list[int] = []
    hook = model.transformer.transformer_blocks[0].norm1.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape[0]))
    try:
        drive = Drive(DecoderEngine(model, token_budget=1024))
        texts = [drive.submit(index) for index in (0, 1, 2)]
        drive.finish()
        # Six steps, both passes in one call: two with all three, two with the two longer ones, two with the longest.
        assert calls == [3] * 2 + [2] * 2 + [1] * 2
        calls.clear()
        edits = [drive.submit(index) for index in (8, 9)]
        drive.finish()
        # One forward for each reference, then four steps together and one alone.
        assert calls == [1, 1] + [2] * 4 + [1]
    finally:
        hook.remove()
    for arrival in (*texts, *edits):
        assert _difference(arrival, expected) <= _TOLERANCE


@pytest.mark.parametrize("index", [1, 9, 11])
def test_a_resumed_picture_is_the_undisturbed_one(
    model: DecoderModel, expected: list[torch.Tensor], checkpoints: list[list[LatentsSoFar]], index: int
) -> None:
    """From each of its checkpoints a picture goes on with the next step, and ends as if nothing had been, to the last bit."""
    alone = Drive(DecoderEngine(model))
    undisturbed = alone.submit(index)
    alone.finish()
    for checkpoint in checkpoints[index]:
        resumed = alone.submit(index, resume=checkpoint)
        alone.finish()
        assert resumed.steps == list(range(checkpoint.num_done, _REQUESTS[index].steps + 1))
        assert _difference(resumed, expected) <= _TOLERANCE
        assert (resumed.future.result(0).pixels - undisturbed.future.result(0).pixels).abs().max() <= 1e-5


def test_what_pictures_share_is_computed_once(model: DecoderModel, expected: list[torch.Tensor]) -> None:
    """Eight pictures of one layout and one reference, four of them later, cost one encoding of the reference, one layout and one prompt."""
    engine = DecoderEngine(model)
    drive = Drive(engine)
    drive.submit(8)
    drive.finish()
    for _ in range(7):
        drive.submit(8)
    last = drive.submit(8)
    drive.finish()
    assert engine.shared.num_computed == {
        "reference": 1,
        "reference_latents": 1,
        "prior": 1,
        "no_prior": 1,
        "glyphs": 2,
        "glyph_embeds": 2,
        "rotary": 1,
    }
    assert _difference(last, expected) <= _TOLERANCE


def test_a_reference_stays_while_pictures_in_hand_want_it(model: DecoderModel, expected: list[torch.Tensor]) -> None:
    """Three pictures of one source, one after the other, encode it once though the cache keeps nothing; a fourth, later, does again."""
    drive = Drive(DecoderEngine(model, reference_cache_bytes=0, token_budget=1))
    arrivals = [drive.submit(8) for _ in range(3)]
    drive.finish()
    assert drive.engine.shared.num_computed["reference"] == 1
    for arrival in arrivals:
        assert _difference(arrival, expected) <= _TOLERANCE
    drive.submit(8)
    drive.finish()
    assert drive.engine.shared.num_computed["reference"] == 2


def test_pictures_that_end_together_are_decoded_together(model: DecoderModel, expected: list[torch.Tensor]) -> None:
    """With the VAE's batching on, as on a GPU, two pictures that end in one turn are one call of the VAE, and exact."""
    drive = Drive(DecoderEngine(model, batch_vae=True, token_budget=1024))
    calls: list[int] = []
    hook = model.vae.decoder.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape[0]))
    try:
        both = [drive.submit(0), drive.submit(0)]
        drive.finish()
    finally:
        hook.remove()
    assert calls == [2]
    for arrival in both:
        assert _difference(arrival, expected) <= _TOLERANCE
