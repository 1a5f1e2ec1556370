"""
The AR engine's figures: against transformers one by one, against itself with equal requests, and against its own matrix products.

Knows the engine and the reference, no service. Every load that is timed is also compared with the reference, in requests of each size that
were there from its beginning and that joined late. Times are those of one core (`time.process_time`): nothing here waits for anything else.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import GlmImagePipeline
from torch.nn.functional import linear

from checkpoints import random_miniature
from infra.bench.figures import Figure, each_alone, show
from services.ar_worker.engine import ArEngine, GridRequest, GridResult
from services.ar_worker.layers import HEAD_ROWS
from services.ar_worker.weights import ArModel, load_ar_model
from shared.grid import TokenGrid

MINIATURE = Path(__file__).resolve().parents[2] / "checkpoints" / "miniature"

SLOTS = 32

_PROMPTS = (
    'A poster that says "OPEN"',
    'A red poster with the words "FRESH BREAD" in white letters at the top, on a plain ground',
    'A blue poster with a yellow border and the words "GRAND OPENING" in large white letters in the middle, below a thin line, '
    "on a ground that grows darker towards the bottom; nothing else is to be seen",
)
_GRIDS = (TokenGrid(4, 4), TokenGrid(8, 8), TokenGrid(16, 16))
"""272, 320 and 512 ids."""

_CACHE_TOKENS = 1024

_LOAD = 1.15
"""Requests that come for each that leaves: the slots stay full, and some requests wait."""

_WIDE = random_miniature.Widths(codebook=16384, ar_hidden=512, ar_layers=8, ar_head_dim=64, ar_ff=1376)
"""Of the published vocabulary: 16,512 with the spare ids."""

_REPEATS = 3


def measure() -> Iterator[Figure]:
    """All of them, with one torch thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from each_alone((_of_the_miniature, _of_a_wide_net))
    finally:
        torch.set_num_threads(before)


def _of_the_miniature() -> list[Figure]:
    return measure_against_reference(load_ar_model(MINIATURE, "cpu", "float32"))


def _of_a_wide_net() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        wide = load_ar_model(random_miniature.build(Path(folder) / "wide", _WIDE), "cpu", "float32")
    return [measure_against_products(wide)]


def measure_against_reference(model: ArModel, num_requests: int = len(_GRIDS) * SLOTS, repeats: int = _REPEATS) -> list[Figure]:
    """Ids per second of a mixed load in `SLOTS` slots, against generate() one by one and against full batches of one size."""
    mixed = mixed_requests(num_requests)
    # The very same requests, so that both sides have the same work.
    batches = [[request for request in mixed if request.grid == grid] for grid in _GRIDS]
    known = Known(model, [*mixed[: len(_GRIDS)], *last_of_each_size(mixed)])
    engine = ArEngine(model, SLOTS, _CACHE_TOKENS)
    engine.start()
    Load(engine, mixed[: len(_GRIDS)]).run(known)
    one_by_one, mixed_rates, equal_rates = [], [], []
    for i in range(repeats):
        wanted = mixed[i]
        one_by_one.append(num_ids(wanted) / seconds_of(partial(generate, model, wanted)))
        mixed_rates.append(Load(engine, mixed).run(known))
        batches_s = [sum(map(num_ids, batch)) / Load(engine, batch).run(known) for batch in batches]
        equal_rates.append(sum(map(num_ids, mixed)) / sum(batches_s))
    engine.close()
    # Each size's own rate differs less than this machine's moods: one rate for all, of as many ids.
    base = statistics.median(one_by_one)
    return [
        Figure(
            f"AR, {SLOTS} slots, mixed sizes, Poisson / generate() one by one",
            [rate / base for rate in mixed_rates],
            12,
            note=f"{len(mixed)} requests; {len(known.ids)} compared, the last of each size among them",
        ),
        Figure(
            "AR, mixed sizes, Poisson / full batches of one size",
            [a / b for a, b in zip(mixed_rates, equal_rates, strict=True)],
            0.9,
            note=f"the same requests, {SLOTS} of each size at once",
        ),
        Figure("AR, mixed sizes, Poisson", mixed_rates, unit="ids/s", note="the shipped miniature: 4 layers x 192, 13,824 ids"),
        Figure("AR, generate() one by one", one_by_one, unit="ids/s"),
    ]


def measure_against_products(model: ArModel, repeats: int = _REPEATS, slots: int = SLOTS) -> Figure:
    """
    A full batch's seconds against those of its matrix products alone, of the same shapes: of every step and of every prompt.

    All requests come at once and are equally long, so all rows take all steps together.
    """
    engine = ArEngine(model, slots, _CACHE_TOKENS)
    engine.start()
    requests = [replace(mixed_requests(1)[0], seed=i, prompt=f"{_PROMPTS[0]} {i}") for i in range(slots)]
    known = Known(model, requests[-1:])
    Load(engine, requests[:1]).run(known)
    num_prompt = len(engine.prepare(requests[0]).prompt.input_ids[0])
    num_steps = num_ids(requests[0]) - 1  # the first id is drawn from what follows the prompt
    step, prompt = bare_products(model, slots, slots), bare_products(model, num_prompt, 1)

    def bare_s() -> float:
        step_s, prompt_s = (statistics.median(seconds_of(products) for _ in range(9)) for products in (step, prompt))
        return num_steps * step_s + len(requests) * prompt_s

    shares = []
    for _ in range(repeats):
        before = bare_s()
        engine_s = sum(map(num_ids, requests)) / Load(engine, requests).run(known)
        shares.append((before + bare_s()) / 2 / engine_s)
    engine.close()
    return Figure(
        "AR, bare matrix products / engine",
        shares,
        0.6,
        note=f"8 layers x 512, 16,384 ids, {slots} rows, {num_ids(requests[0])} ids each after prompts of {num_prompt}",
    )


class Load:
    """
    Requests on an engine: the first `SLOTS` at once, the others as a Poisson process in the time that ids take.

    Time is counted in ids, so that a load is the same on every machine.
    """

    def __init__(self, engine: ArEngine, requests: list[GridRequest]) -> None:
        self._engine = engine
        self._waiting = list(requests)
        self._requests = tuple(requests)
        self._futures: list[Future[GridResult]] = []
        chance = np.random.default_rng(1)
        mean_gap = statistics.mean(map(num_ids, requests)) / _LOAD
        self._arrivals = [0.0] * min(SLOTS, len(requests))
        while len(self._arrivals) < len(requests):
            self._arrivals.append(self._arrivals[-1] + chance.exponential(mean_gap))
        self._num_ids = 0
        self._end: tuple[int, float] | None = None

    def run(self, known: Known) -> float:
        """
        Ids per second, from the first arrival to the last; to the end, if all come at once.

        Raises:
            AssertionError: a request that is known got other ids than the reference's.
        """
        is_burst = not any(self._arrivals)
        begin = time.process_time()
        while self._arrivals and self._arrivals[0] <= 0:
            self._submit()
        for future in self._futures:  # grows meanwhile, on the engine's thread
            future.result()
        if is_burst or self._end is None:
            self._end = self._num_ids, time.process_time()
        for request, future in zip(self._requests, self._futures, strict=True):
            known.check(request, future.result().token_ids)
        num_written, end = self._end
        return num_written / (end - begin)

    def _submit(self) -> None:
        self._arrivals.pop(0)
        self._futures.append(self._engine.submit(self._waiting.pop(0), self._on_progress, lambda: False))

    def _on_progress(self, phase: str, done: int, total: int) -> None:
        self._num_ids += 1
        while self._arrivals and self._arrivals[0] <= self._num_ids:
            self._submit()
            if not self._arrivals:
                self._end = self._num_ids, time.process_time()


def mixed_requests(count: int) -> list[GridRequest]:
    """Three sizes and three lengths of prompt, no prompt twice, in an order that mixes them."""
    requests = [GridRequest(f"{_PROMPTS[i // 3 % 3]} {i}", _GRIDS[i % 3], seed=i, temperature=0.9, top_p=0.75) for i in range(count)]
    order = np.random.default_rng(2).permutation(range(min(3, count), count)).tolist()
    return [*requests[:3], *(requests[i] for i in order)]


def num_ids(request: GridRequest) -> int:
    return request.num_ids


def last_of_each_size(requests: list[GridRequest]) -> list[GridRequest]:
    """Those that come when others of all sizes have gone, and find slots that others had."""
    return list({request.grid: request for request in requests}.values())


class Known:
    """What the reference writes for some requests, one by one."""

    def __init__(self, model: ArModel, requests: list[GridRequest]) -> None:
        self.ids = {request: generate(model, request) for request in requests}

    def check(self, request: GridRequest, ids: list[list[int]]) -> None:
        """
        Raises:
            AssertionError: it is known, and by other ids.
        """
        if self.ids.get(request, ids) != ids:
            raise AssertionError(f"the engine's ids are not the reference's for {request}")


def generate(model: ArModel, request: GridRequest) -> list[list[int]]:
    """The reference's ids of one grid, through transformers' generate()."""
    nothing: dict[str, Any] = dict.fromkeys(("tokenizer", "text_encoder", "vae", "transformer", "scheduler"))
    pipeline = GlmImagePipeline(processor=model.processor, vision_language_encoder=model.net, **nothing)
    config = model.net.generation_config
    config.temperature, config.top_p = request.temperature, request.top_p
    with torch.inference_mode():
        ids, _, _ = pipeline.generate_prior_tokens(
            prompt=request.prompt,
            height=request.grid.height_px,
            width=request.grid.width_px,
            device=model.device,
            generator=torch.Generator().manual_seed(request.seed),
        )
    rows: list[list[int]] = ids.view(2 * request.grid.token_h, 2 * request.grid.token_w)[::2, ::2].tolist()
    return rows


def bare_products(model: ArModel, num_rows: int, num_drawn: int) -> Callable[[], None]:
    """
    The matrix products for `num_rows` hidden states and nothing else; the head's for `num_drawn` of them.

    The head is multiplied for as many ids, and in the parts, that the engine uses: whole, it takes half as long again.
    """
    text = model.net.model.language_model
    weights = []
    for layer in text.layers:
        attention = layer.self_attn
        qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        weights += [qkv, attention.o_proj.weight, layer.mlp.gate_up_proj.weight, layer.mlp.down_proj.weight]
    inputs = [torch.randn(num_rows, weight.shape[1]) for weight in weights]
    head = model.net.lm_head.weight[: model.codebook_size].split(HEAD_ROWS)
    weights += head
    inputs += [torch.randn(num_drawn, part.shape[1]) for part in head]

    def multiply() -> None:
        with torch.inference_mode():
            for hidden, weight in zip(inputs, weights, strict=True):
                linear(hidden, weight)

    return multiply


def seconds_of(call: Callable[[], object]) -> float:
    """Of one core."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


if __name__ == "__main__":
    show(measure())
