"""
Both engines on this machine's GPU, with random weights of the published shapes in bfloat16: `python -m infra.bench gpu`, about two minutes.

Checks first what no CPU can tell: that a grid and a picture are the same beside all neighbours and on a successor, by this GPU's kernels.
Needs cuda and 48 GB of its memory. docs/gpu.md tells what was seen where.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import torch

from infra import gpu_arithmetic
from infra.bench.ar import generate, mixed_requests
from infra.bench.bare_decoder import make_request
from infra.bench.decoder_edits import draw_together
from infra.bench.figures import Figure, each_alone, show
from infra.bench.published_nets import PUBLISHED, Shapes, ar_model, decoder_model
from services.ar_worker.engine import ArEngine, GridRequest, GridResult, WrittenTokens
from services.ar_worker.settings import CompileMode
from services.decoder_worker import dit, vae
from services.decoder_worker.dit import Conditioning
from services.decoder_worker.weights import DecoderModel
from shared.grid import PATCH_PX

SLOTS = 64

SIDES = (512, 1024, 2048)

_SHOW_EVERY = 100
"""Of a few hundred ids: how far a successor finds a grid."""

_GLYPH_TOKENS = 64


def measure() -> Iterator[Figure]:
    """
    All of them.

    Raises:
        RuntimeError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("needs a GPU: torch sees no cuda device")
    device = torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_name(device)
    yield from each_alone((partial(of_ar, PUBLISHED, device, SLOTS, name), partial(of_decoder, PUBLISHED, device, SIDES, name)))


# ---- AR ----


def of_ar(
    shapes: Shapes,
    device: torch.device,
    slots: int,
    name: str,
    mode: CompileMode = "cuda_graphs",
    dtype: torch.dtype = torch.bfloat16,
) -> Iterator[Figure]:
    """
    Equality first; then a turn of all slots, grids one by one by transformers, and prompts.

    Raises:
        AssertionError: a grid depends on who was written beside it, or on who went on with it.
    """
    model = ar_model(shapes, device, dtype)
    engine = ArEngine(model, slots, 2048, mode, show_every=_SHOW_EVERY)
    requests = mixed_requests(slots)
    num_compared = check_neighbours(engine, requests)
    for request in requests:
        engine.submit(request, lambda *_: None, lambda: False)
    for _ in range(8):
        engine.turn()
    turns = [_seconds(engine.turn, device) for _ in range(30)]
    engine.close()
    note = f"{name}, {mode}; {num_compared} grids equal alone, among {slots}, late and on a successor"
    yield Figure(f"AR on a GPU, a turn of {slots} rows", [1e3 * turn for turn in turns], unit="ms", note=note)
    yield Figure("AR on a GPU, all slots taken", [slots / turn for turn in turns], unit="ids/s")
    one = requests[0]
    yield Figure("AR on a GPU, generate() one by one", [one.num_ids / _seconds(partial(generate, model, one), device)], unit="ids/s")
    for num_chars in (150, 1000):
        yield _prompt(ArEngine(model, 4, 2048, mode), num_chars, device)


def check_neighbours(engine: ArEngine, requests: list[GridRequest]) -> int:
    """
    Write all at once, and some of them alone, joining one after another, and going on where they were first shown.

    Returns:
        how many were written again.
    Raises:
        AssertionError: one came out otherwise.
    """
    shown: dict[int, WrittenTokens] = {}

    def keep_first(index: int, written: WrittenTokens) -> None:
        shown.setdefault(index, written)

    together = _written(engine, [_submit(engine, request, partial(keep_first, index)) for index, request in enumerate(requests)])
    some = range(0, len(requests), max(1, len(requests) // 8))
    joining = []
    for index in some:
        joining.append(_submit(engine, requests[index]))
        for _ in range(17):
            engine.turn()
    late = _written(engine, joining)
    resumed = [replace(requests[index], written=shown[index].token_ids) for index in some]
    gone_on = _written(engine, [_submit(engine, request) for request in resumed])
    for place, index in enumerate(some):
        alone = _written(engine, [_submit(engine, requests[index])]) if place < 3 else [together[index]]
        if not alone[0] == late[place] == gone_on[place] == together[index]:
            raise AssertionError(f"{requests[index]} depends on its neighbours")
    return len(some)


def _submit(engine: ArEngine, request: GridRequest, told: Callable[[WrittenTokens], None] = lambda _: None) -> Future[GridResult]:
    return engine.submit(request, lambda *_: None, lambda: False, told)


def _written(engine: ArEngine, futures: list[Future[GridResult]]) -> list[GridResult]:
    while not all(future.done() for future in futures):
        engine.turn()
    return [future.result() for future in futures]


def _prompt(engine: ArEngine, num_chars: int, device: torch.device) -> Figure:
    """What a turn takes longer in which a prompt comes; the tokenizer knows bytes."""
    seconds = []
    for seed in range(4):
        _submit(engine, replace(mixed_requests(1)[0], seed=seed, prompt=f"{seed}" * num_chars))
        first, second = (_seconds(engine.turn, device) for _ in range(2))
        seconds.append(first - second)
    return Figure(f"AR on a GPU, a prompt of {num_chars} letters", [1e3 * each for each in seconds[1:]], unit="ms")


# ---- Decoder ----


def of_decoder(shapes: Shapes, device: torch.device, sides: tuple[int, ...], name: str) -> Iterator[Figure]:
    """
    Equality first; then a pass of the DiT and the VAE by size.

    Raises:
        AssertionError: a picture depends on who was drawn beside it.
    """
    # The AR engine and its thread know each other, so nothing else takes its net off the device.
    gc.collect()
    torch.cuda.empty_cache()
    model = decoder_model(shapes, device, torch.bfloat16)
    requests = [make_request(min(sides), seed, steps=4) for seed in range(3)]
    together, _ = draw_together(model, requests)
    for request, pixels in zip(requests, together, strict=True):
        if not torch.equal(draw_together(model, [request])[0][0], pixels):
            raise AssertionError(f"picture {request.seed} depends on its neighbours")
    with torch.inference_mode():
        for side in sides:
            yield _pass_of_dit(model, side, f"{name}; {len(requests)} pictures equal alone and beside others, to the last bit")
            yield _pass_of_vae(model, side)


def _pass_of_dit(model: DecoderModel, side: int, note: str) -> Figure:
    width, patches = model.transformer.config.num_attention_heads * 128, (side // PATCH_PX) ** 2
    like = {"device": model.device, "dtype": model.dtype}
    latents = torch.randn(1, model.latent_channels, side // 8, side // 8, **like)
    conditioning = Conditioning(torch.randn(1, _GLYPH_TOKENS, width, **like), torch.randn(1, patches, width, **like))
    sizes = torch.full((1, 2), float(side), **like)
    times = dit.embed_times(model.transformer, torch.tensor([500.0], device=model.device), sizes, model.dtype)
    run = partial(dit.predict, model.transformer, latents, conditioning, times, dit.rotary(model.transformer, latents), None)
    seconds = _several(run, model.device)
    tflops = gpu_arithmetic.decoder_step_flops(side) / 2e12 / statistics.median(seconds)
    told = f"{tflops:.0f} TFLOP/s of the published shapes; a guided step takes two; {note}"
    return Figure(f"decoder on a GPU, a pass of the DiT at {side} px", [1e3 * each for each in seconds], unit="ms", note=told)


def _pass_of_vae(model: DecoderModel, side: int) -> Figure:
    latents = torch.randn(1, model.latent_channels, side // 8, side // 8, device=model.device)
    seconds = _several(partial(vae.vae_decode, model.vae, latents), model.device)
    return Figure(f"decoder on a GPU, the VAE at {side} px", [1e3 * each for each in seconds], unit="ms")


def _several(run: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of five runs, after one that chooses kernels."""
    return [_seconds(run, device) for _ in range(6)][1:]


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """By the clock, until the device has done it."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    show(measure())
