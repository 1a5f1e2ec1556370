"""The decoder engine: order, progress, stopping, and one bad request among good ones."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from services.decoder_worker.engine import DecoderEngine, ImageRequest, SourceInput
from services.decoder_worker.weights import DecoderModel
from shared.errors import TokenGridError, TransientWorkError, WorkStoppedError
from shared.grid import TokenGrid

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


def test_closing_stops_what_runs_and_what_waits(model: DecoderModel) -> None:
    """close() ends the running request at its next step, fails the waiting ones and refuses new ones."""
    engine = DecoderEngine(model)
    engine.start()
    started = threading.Event()
    running = engine.submit(dataclasses.replace(_REQUEST, steps=1000), lambda *_: started.set(), _never)
    waiting = engine.submit(_REQUEST, _silent, _never)
    assert started.wait(_TIMEOUT_S)
    engine.close()
    for future in (running, waiting, engine.submit(_REQUEST, _silent, _never)):
        with pytest.raises(WorkStoppedError):
            future.result(0)
    engine.close()
