"""The lossy tier: what it skips, and that it skips the same whatever surrounds it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from services.decoder_worker.engine import DecoderEngine, ImageRequest
from services.decoder_worker.fast import BlockMemory, FastParams, FastState
from services.decoder_worker.interim import Interim, LatentsSoFar
from services.decoder_worker.weights import DecoderModel
from shared.grid import TokenGrid

_REQUEST = ImageRequest('a "word"', TokenGrid(2, 3), [[1, 2, 3], [4, 5, 6]], seed=7, steps=20, guidance_scale=1.5, fast=True)
_NUM_PATCHES = 24
_ALL = FastParams(threshold=10)
"""Skips wherever it may: what a random net says changes much from step to step."""


def _draw(
    model: DecoderModel, *requests: ImageRequest, fast: FastParams = _ALL, checkpoint_steps: int = 4
) -> tuple[list[torch.Tensor], list[int], list[Interim]]:
    """Pixels of the requests, drawn together; the batch of each pass that reached the last block; and what was shown of the first."""
    engine = DecoderEngine(model, fast=fast, checkpoint_steps=checkpoint_steps)
    calls: list[int] = []
    shown: list[Interim] = []
    # Where both passes go side by side, a row has the patches of two.
    hook = model.transformer.transformer_blocks[-1].norm1.register_forward_hook(
        lambda _, inputs, __: calls.extend([inputs[0].shape[0]] * (inputs[0].shape[1] // _NUM_PATCHES))
    )
    try:
        futures = [
            engine.submit(request, lambda *_: None, lambda: False, shown.append if not index else lambda _: None)
            for index, request in enumerate(requests)
        ]
        while engine.live() or engine.num_waiting():
            engine.turn()
    finally:
        hook.remove()
    return [future.result(0).pixels for future in futures], calls, shown


def test_it_skips_and_stays_near(model: DecoderModel) -> None:
    """A fast picture takes fewer passes through the DiT than its 40 and comes out near the exact one, which takes all of them."""
    (fast,), fast_calls, _ = _draw(model, _REQUEST)
    (exact,), exact_calls, _ = _draw(model, dataclasses.replace(_REQUEST, fast=False))
    assert len(exact_calls) == 40
    assert len(fast_calls) < 30
    assert 0 < (fast - exact).abs().mean() < 0.1


def test_with_nothing_to_skip_it_is_exact(model: DecoderModel) -> None:
    """With a threshold of zero and guidance everywhere, fast is exact."""
    (fast,), calls, _ = _draw(model, _REQUEST, fast=FastParams(threshold=0, guidance_from=0, guidance_to=1))
    (exact,), _, _ = _draw(model, dataclasses.replace(_REQUEST, fast=False))
    assert len(calls) == 40
    assert torch.allclose(fast, exact, atol=1e-5)


def test_neighbours_change_nothing(model: DecoderModel) -> None:
    """A fast picture is the same to the last bit alone and beside equal and unlike ones, for it shares no batch."""
    (alone,), _, _ = _draw(model, _REQUEST)
    others = [
        dataclasses.replace(_REQUEST, seed=8),
        dataclasses.replace(_REQUEST, fast=False),
        dataclasses.replace(_REQUEST, fast=False, seed=9),
    ]
    beside, _, _ = _draw(model, _REQUEST, *others)
    assert torch.equal(alone, beside[0])


def test_a_resumed_one_is_the_undisturbed_one(model: DecoderModel) -> None:
    """Fast pictures are shown only where all is computed anew, and from each such place they go on to the same pixels."""
    (undisturbed,), _, shown = _draw(model, _REQUEST)
    assert [interim.num_done for interim in shown] == [5, 10, 15]
    for interim in shown:
        assert isinstance(interim, LatentsSoFar)
        (resumed,), calls, _ = _draw(model, dataclasses.replace(_REQUEST, resume=LatentsSoFar.from_bytes(interim.to_bytes())))
        assert len(calls) < 40
        assert torch.equal(resumed, undisturbed)
    # Every third step would not do, so it is every fifth; every eleventh becomes every tenth.
    assert [interim.num_done for interim in _draw(model, _REQUEST, checkpoint_steps=12)[2]] == [10]


def test_guidance_has_an_interval(model: DecoderModel) -> None:
    """Outside the interval there is one pass a step."""
    _, calls, _ = _draw(model, _REQUEST, fast=FastParams(threshold=0, guidance_from=2, guidance_to=3))
    assert len(calls) == 20


@pytest.mark.parametrize("num_done", [0, 5, 10])
def test_memory_is_refreshed(num_done: int) -> None:
    """At every fifth step both passes forget what they remember; in between neither does."""
    state = FastState(FastParams(refresh_steps=5), cond=BlockMemory(torch.ones(1)), uncond=BlockMemory(torch.zeros(1)))
    state.begin_step(num_done + 1)
    assert state.cond.first_added is not None
    assert state.uncond.first_added is not None
    state.begin_step(num_done)
    assert state.cond.first_added is None
    assert state.uncond.first_added is None
