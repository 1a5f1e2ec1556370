"""The decoder engine: progress, stopping, what is shown before the end, order, and one bad request among good ones."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from services.decoder_worker.engine import DecoderEngine, ImageRequest, SourceInput
from services.decoder_worker.interim import Interim, LatentsSoFar, Preview, PreviewLost
from services.decoder_worker.preview import draft_request
from services.decoder_worker.weights import DecoderModel, load_decoder_model
from shared.errors import PermanentWorkError, TokenGridError, TransientWorkError, WorkStoppedError
from shared.grid import TokenGrid
from shared.lora import LoraChoice

_REQUEST = ImageRequest(prompt='a "word"', grid=TokenGrid(2, 3), token_ids=[[1, 2, 3], [4, 5, 6]], seed=7, steps=3, guidance_scale=1.5)
_SOURCE = SourceInput(Image.new("RGB", (96, 64), "navy"), [[9, 8, 7], [6, 5, 4]])
_TIMEOUT_S = 60


def _silent(phase: str, done: int, total: int) -> None:
    pass


def _never() -> bool:
    return False


def _pixels(engine: DecoderEngine, request: ImageRequest) -> torch.Tensor:
    return engine.submit(request, _silent, _never).result(_TIMEOUT_S).pixels


def test_same_request_same_pixels(engine: DecoderEngine) -> None:
    """The same request gives the same pixels to the last bit; another seed, prompt or grid gives others."""
    pixels = _pixels(engine, _REQUEST)
    assert pixels.shape == (3, 64, 96)
    assert torch.equal(pixels, _pixels(engine, _REQUEST))
    for change in ({"seed": 8}, {"prompt": 'a "ward"'}, {"token_ids": [[1, 2, 3], [4, 5, 7]]}, {"sources": (_SOURCE,)}, {"steps": 2}):
        assert not torch.equal(pixels, _pixels(engine, dataclasses.replace(_REQUEST, **change)))


def test_given_texts_come_in_place_of_those_in_the_prompt(engine: DecoderEngine) -> None:
    """A picture depends on its texts, however the engine learned of them."""
    pixels = _pixels(engine, _REQUEST)
    assert torch.equal(pixels, _pixels(engine, dataclasses.replace(_REQUEST, prompt="it's a dog's", glyph_texts=("word",))))
    assert not torch.equal(pixels, _pixels(engine, dataclasses.replace(_REQUEST, glyph_texts=())))


def test_progress_is_told_step_by_step(engine: DecoderEngine) -> None:
    """Every denoising step is reported, then the VAE's start and end."""
    told: list[tuple[str, int, int]] = []
    engine.submit(_REQUEST, lambda *progress: told.append(progress), _never).result(_TIMEOUT_S)
    assert told == [*(("denoise", done, 3) for done in range(4)), ("vae", 0, 1), ("vae", 1, 1)]


def test_a_request_stops_within_one_step(engine: DecoderEngine) -> None:
    """Told to stop during its second of a thousand steps, a request begins no third one."""
    stop = threading.Event()
    told: list[int] = []

    def on_progress(phase: str, done: int, total: int) -> None:
        told.append(done)
        if done == 2:
            stop.set()

    future = engine.submit(dataclasses.replace(_REQUEST, steps=1000), on_progress, stop.is_set)
    with pytest.raises(WorkStoppedError):
        future.result(_TIMEOUT_S)
    assert told == [0, 1, 2]


def test_a_request_stopped_before_its_turn_never_starts(engine: DecoderEngine) -> None:
    """A request that is canceled while it waits does no work."""
    told: list[int] = []
    future = engine.submit(_REQUEST, lambda _phase, done, _total: told.append(done), lambda: True)
    with pytest.raises(WorkStoppedError):
        future.result(_TIMEOUT_S)
    assert told == []


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": [[1, 2, 3]]},
        {"token_ids": [[1, 2, 3], [4, 5, 256]]},
        {"token_ids": [[1, 2], [3, 4]]},
        {"sources": (SourceInput(_SOURCE.image, [[1, 2, 3]]),)},
        {"sources": (SourceInput(_SOURCE.image, [[9, 8, 7], [6, 5, -4]]),)},
        {"sources": (SourceInput(Image.new("RGB", (100, 64)), _SOURCE.token_ids),)},
        {"sources": (_SOURCE, SourceInput(Image.new("RGBA", (96, 64)), _SOURCE.token_ids))},
    ],
)
def test_ids_and_sizes_that_do_not_fit_fail_alone(engine: DecoderEngine, change: dict[str, object]) -> None:
    """A wrong shape, id, source size or source mode fails its own request before any net runs; the next request is served."""
    bad = engine.submit(dataclasses.replace(_REQUEST, **change), _silent, _never)
    good = engine.submit(_REQUEST, _silent, _never)
    with pytest.raises(TokenGridError):
        bad.result(_TIMEOUT_S)
    assert good.result(_TIMEOUT_S).pixels.shape == (3, 64, 96)


def _gpu_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def _cpu_out_of_memory() -> None:
    torch.empty(2**60)


@pytest.mark.parametrize("exhaust", [_gpu_out_of_memory, _cpu_out_of_memory])
def test_running_out_of_memory_is_worth_another_try(engine: DecoderEngine, exhaust: Callable[[], None]) -> None:
    """A request that runs out of memory fails as `decoder_oom`, to be tried again; the next request is served."""
    bad = engine.submit(_REQUEST, lambda *_: exhaust(), _never)
    good = engine.submit(_REQUEST, _silent, _never)
    with pytest.raises(TransientWorkError) as caught:
        bad.result(_TIMEOUT_S)
    assert caught.value.code == "decoder_oom"
    assert good.result(_TIMEOUT_S).pixels.shape == (3, 64, 96)


def test_any_other_fault_fails_alone(engine: DecoderEngine) -> None:
    """A fault in a callback, or a prompt that is no text, fails its own request as it is; the next request is served."""
    faulty = engine.submit(_REQUEST, lambda *_: [][0], _never)
    no_text = engine.submit(dataclasses.replace(_REQUEST, prompt='"\ud800"'), _silent, _never)
    good = engine.submit(_REQUEST, _silent, _never)
    with pytest.raises(IndexError):
        faulty.result(_TIMEOUT_S)
    assert no_text.exception(_TIMEOUT_S) is not None
    assert good.result(_TIMEOUT_S).pixels.shape == (3, 64, 96)


def test_numbers_that_overflow_are_no_picture(engine: DecoderEngine) -> None:
    """A request whose numbers grow beyond all bounds fails for good, and alone."""
    bad = engine.submit(dataclasses.replace(_REQUEST, guidance_scale=1e38), _silent, _never)
    good = engine.submit(_REQUEST, _silent, _never)
    with pytest.raises(PermanentWorkError) as caught:
        bad.result(_TIMEOUT_S)
    assert caught.value.code == "decoder_overflow"
    assert good.result(_TIMEOUT_S).pixels.isfinite().all()


def test_closing_stops_what_runs_and_what_waits(model: DecoderModel) -> None:
    """close() ends the running request at its next step, fails the waiting ones and refuses new ones."""
    engine = DecoderEngine(model)
    engine.start()
    started = threading.Event()
    running = engine.submit(dataclasses.replace(_REQUEST, steps=1000), lambda *_: started.set(), _never)
    waiting = engine.submit(dataclasses.replace(_REQUEST, steps=1000, seed=8), _silent, _never)
    assert started.wait(_TIMEOUT_S)
    engine.close()
    for future in (running, waiting, engine.submit(_REQUEST, _silent, _never)):
        with pytest.raises(WorkStoppedError):
            future.result(0)
    engine.close()


def _finish(engine: DecoderEngine) -> None:
    """Take turns on this thread until nothing is left."""
    while engine.live() or engine.num_waiting():
        engine.turn()


def _shown(model: DecoderModel, request: ImageRequest, **options: int) -> list[Interim]:
    engine = DecoderEngine(model, **options)
    shown: list[Interim] = []
    future = engine.submit(request, _silent, _never, shown.append)
    _finish(engine)
    assert future.exception(0) is None
    return shown


def test_latents_are_shown_so_often_that_k_steps_are_lost_at_most(model: DecoderModel) -> None:
    """Of 9 steps, of which 4 may be lost, the latents after 3 and 6 are shown: one is for storing. None at the end; none when off."""
    request = dataclasses.replace(_REQUEST, steps=9)
    shown = _shown(model, request, checkpoint_steps=4)
    assert [interim.num_done for interim in shown] == [3, 6]
    for interim in shown:
        assert isinstance(interim, LatentsSoFar)
        assert interim.latents.shape == (16, 8, 12)
        assert interim.latents.dtype == np.float32
        assert interim.made_for == request.digest()
    assert len(_shown(model, request, checkpoint_steps=1)) == 8
    assert _shown(model, request, checkpoint_steps=0) == []


@pytest.mark.parametrize(("steps", "num_previews", "after"), [(9, 2, [3, 6]), (20, 2, [7, 13]), (8, 2, []), (6, 1, [3]), (12, 0, [])])
def test_previews_are_few_and_small(model: DecoderModel, steps: int, num_previews: int, after: list[int]) -> None:
    """A picture that asks for previews shows them evenly spaced, half its size, in 0..1; one of few steps shows none."""
    request = dataclasses.replace(_REQUEST, steps=steps, show_previews=True)
    shown = _shown(model, request, num_previews=num_previews, checkpoint_steps=0)
    assert [interim.num_done for interim in shown] == after
    for interim in shown:
        assert isinstance(interim, Preview)
        assert interim.pixels.shape == (3, 32, 48)
        assert 0 <= interim.pixels.min() <= interim.pixels.max() <= 1
        assert interim.to_pil().size == (48, 32)


def test_in_bfloat16_pictures_go_alone_unless_told_otherwise(miniature: Path) -> None:
    """A product of more rows rounds otherwise there: each is what it is alone, to the last bit, and takes its steps one after another."""
    model = load_decoder_model(miniature, device="cpu", dtype="bfloat16")
    requests = [dataclasses.replace(_REQUEST, seed=seed) for seed in range(3)]

    def draw(*requests: ImageRequest, token_budget: int = 0) -> tuple[list[torch.Tensor], list[int]]:
        engine, order = DecoderEngine(model, token_budget=token_budget), list[int]()
        futures = [engine.submit(one, lambda _, done, total, seed=one.seed: order.append(seed), _never) for one in requests]
        _finish(engine)
        return [future.result(0).pixels for future in futures], order

    alone = [draw(request)[0][0] for request in requests]
    together, order = draw(*requests)

    assert all(torch.equal(mine, other) for mine, other in zip(together, alone, strict=True))
    assert order == sorted(order)
    assert (order := draw(*requests, token_budget=1024)[1]) != sorted(order)


def test_previews_change_nothing(model: DecoderModel) -> None:
    """A picture that is shown on its way ends with the same pixels as one that is not, and one that asks for none shows none."""
    shown: list[Interim] = []
    engine = DecoderEngine(model, checkpoint_steps=0)
    quiet, seen = (
        engine.submit(dataclasses.replace(_REQUEST, steps=9, show_previews=asked), _silent, _never, shown.append) for asked in (False, True)
    )
    _finish(engine)
    assert (quiet.result(0).pixels - seen.result(0).pixels).abs().max() < 1e-5
    assert len(shown) == 2


def test_a_preview_that_cannot_be_made_is_left_out(model: DecoderModel) -> None:
    """
    Where memory does not reach for a preview, the picture and its neighbours are drawn all the same; only the preview is missing, and
    whoever is shown the picture is told why.
    """
    num_calls = 0

    def exhaust_once(*_: object) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            _gpu_out_of_memory()

    hook = model.vae.decoder.register_forward_pre_hook(exhaust_once)
    try:
        shown: list[Interim] = []
        engine = DecoderEngine(model, checkpoint_steps=0)
        futures = [
            engine.submit(dataclasses.replace(_REQUEST, steps=9, show_previews=asked), _silent, _never, shown.append)
            for asked in (True, False)
        ]
        _finish(engine)
    finally:
        hook.remove()
    lost, preview = shown
    assert isinstance(lost, PreviewLost)
    assert (lost.num_done, "out of memory" in lost.error) == (3, True)
    assert isinstance(preview, Preview)
    assert preview.num_done == 6
    assert (futures[0].result(0).pixels - futures[1].result(0).pixels).abs().max() < 1e-5


def test_a_fault_of_who_is_shown_fails_alone(model: DecoderModel) -> None:
    """When what listens to a picture raises, that picture fails with the error, and its neighbour is drawn."""
    engine = DecoderEngine(model, checkpoint_steps=1)
    faulty = engine.submit(_REQUEST, _silent, _never, lambda _: [][0])
    good = engine.submit(_REQUEST, _silent, _never)
    _finish(engine)
    assert isinstance(faulty.exception(0), IndexError)
    assert good.result(0).pixels.shape == (3, 64, 96)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"prompt": '"other"'},
        {"steps": 8},
        {"token_ids": [[1, 2, 3], [4, 5, 7]]},
        {"guidance_scale": 2.0},
        {"sources": (_SOURCE,)},
    ],
)
def test_latents_of_another_request_are_ignored(model: DecoderModel, change: dict[str, object]) -> None:
    """A checkpoint that belongs to another picture is not gone on from: the picture starts anew and is right."""
    (foreign, *_) = _shown(model, dataclasses.replace(_REQUEST, **change), checkpoint_steps=1)
    assert isinstance(foreign, LatentsSoFar)
    engine = DecoderEngine(model)
    told: list[int] = []
    plain = engine.submit(_REQUEST, _silent, _never)
    resumed = engine.submit(dataclasses.replace(_REQUEST, resume=foreign), lambda _phase, done, _total: told.append(done), _never)
    _finish(engine)
    assert told[:2] == [0, 1]
    assert (plain.result(0).pixels - resumed.result(0).pixels).abs().max() < 1e-5


def test_latents_that_cannot_be_are_ignored(model: DecoderModel) -> None:
    """Latents of the wrong size, or after more steps than there are, are not gone on from, whatever they say they are for."""
    engine = DecoderEngine(model)
    for num_done, shape in ((1, (16, 8, 8)), (3, (16, 8, 12)), (99, (16, 8, 12))):
        resume = LatentsSoFar(num_done, np.zeros(shape, np.float32), _REQUEST.digest())
        told: list[int] = []
        engine.submit(dataclasses.replace(_REQUEST, resume=resume), lambda _phase, done, _total, told=told: told.append(done), _never)
        _finish(engine)
        assert told[0] == 0


def _order(model: DecoderModel, *requests: ImageRequest, token_budget: int = 1) -> list[int]:
    """In which order requests that came together end."""
    engine = DecoderEngine(model, token_budget=token_budget)
    ended: list[int] = []
    for index, request in enumerate(requests):
        engine.submit(request, _silent, _never).add_done_callback(lambda _, index=index: ended.append(index))
    _finish(engine)
    return ended


def test_small_pictures_pass_large_ones(model: DecoderModel) -> None:
    """Of pictures that came together the one with the least work ends first, and drafts end last."""
    large = ImageRequest("", TokenGrid(4, 4), [[1] * 4] * 4, 1, 6, 1.5)
    draft = draft_request("", [[1, 2], [3, 4]], 64)
    assert _order(model, draft, large, _REQUEST, dataclasses.replace(_REQUEST, steps=1)) == [3, 2, 1, 0]


def test_a_large_picture_that_runs_is_passed_by_a_small_one(model: DecoderModel) -> None:
    """A small picture that comes while a large one is drawn is done before the large one's next step."""
    engine = DecoderEngine(model)
    told: list[tuple[str, int]] = []
    large = ImageRequest("", TokenGrid(4, 4), [[1] * 4] * 4, 1, 6, 1.5)
    engine.submit(large, lambda phase, done, _: told.append((f"large {phase}", done)), _never)
    engine.turn()
    engine.submit(_REQUEST, lambda phase, done, _: told.append((phase, done)), _never)
    _finish(engine)
    assert told[:2] == [("large denoise", 0), ("large denoise", 1)]
    assert told[2:8] == [*(("denoise", done) for done in range(4)), ("vae", 0), ("vae", 1)]
    assert told[8] == ("large denoise", 2)


def test_an_adapter_that_is_not_there_fails_alone(model: DecoderModel) -> None:
    """A request for an unknown adapter fails for good; one without is drawn."""
    engine = DecoderEngine(model)
    adapted = engine.submit(dataclasses.replace(_REQUEST, lora=(LoraChoice("nobody's"),)), _silent, _never)
    plain = engine.submit(_REQUEST, _silent, _never)
    _finish(engine)
    assert isinstance(adapted.exception(0), PermanentWorkError)
    assert plain.result(0).pixels.shape == (3, 64, 96)


def test_a_picture_too_large_for_a_batch_fails_alone(model: DecoderModel) -> None:
    """When memory runs out for two pictures together, each is tried alone; the one that still does not fit fails, the other is drawn."""
    blocks: list[int] = []

    def full(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        blocks.append(inputs[0].shape[0])
        # Memory for one picture, and in the third call for none.
        if inputs[0].shape[0] > 1 or len(blocks) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine = DecoderEngine(model)
    first, second = (engine.submit(_REQUEST, _silent, _never) for _ in range(2))
    hook = model.transformer.transformer_blocks[0].norm1.register_forward_pre_hook(full)
    try:
        _finish(engine)
    finally:
        hook.remove()
    error = first.exception(0)
    assert isinstance(error, TransientWorkError)
    assert error.code == "decoder_oom"
    assert second.result(0).pixels.shape == (3, 64, 96)


def test_sources_with_a_key_are_known_by_it(engine: DecoderEngine) -> None:
    """Sources with equal keys and ids are encoded once, others each; without a key, equal pixels are the same source."""
    for source in (
        _SOURCE,
        SourceInput(_SOURCE.image.copy(), _SOURCE.token_ids),
        dataclasses.replace(_SOURCE, key="a"),
        SourceInput(_SOURCE.image.copy(), _SOURCE.token_ids, key="a"),
    ):
        _pixels(engine, dataclasses.replace(_REQUEST, sources=(source,), steps=1))
    assert engine.shared.num_computed["reference"] == 2
    _pixels(engine, dataclasses.replace(_REQUEST, sources=(dataclasses.replace(_SOURCE, key="a", token_ids=[[0] * 3] * 2),), steps=1))
    assert engine.shared.num_computed["reference"] == 3
