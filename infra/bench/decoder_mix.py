"""
Mixed sizes in Poisson arrivals: how long pictures are in the decoder engine, against batches that run to completion.

Twice. The engine and the batches draw one short trace for real, on the same weights, and their pixels are compared. And many long traces
are replayed: nothing is drawn, each step and decode takes the time that it was measured to take on this machine. The engine is charged
with what its own turns cost, the batches with what steps of the bare loop do; the engine's order is that of its own `policy.choose`. The
replay is what is judged, because the ratio of one trace that can be drawn in a minute tells little: 0.4 to 0.8.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infra.bench.bare_decoder import BareLoop, check_equal, make_request, timed
from infra.bench.figures import Figure
from services.decoder_worker.engine import CPU_TOKEN_BUDGET, OVERDUE_SHARE, DecoderEngine, ImageRequest, ImageResult
from services.decoder_worker.policy import Candidate, choose
from services.decoder_worker.vae import vae_decode
from services.decoder_worker.weights import DecoderModel
from shared.cost import DitSize
from shared.grid import PATCH_PX

Mix = tuple[tuple[int, float], ...]
"""Sides in pixels and their shares."""

_PUBLISHED_MIX: Mix = ((128, 0.35), (256, 0.45), (512, 0.2))
"""In the proportions of 512, 1024 and 2048 pixels, whose costs are 1 : 4.4 : 25; shares as in the plan that the target comes from."""

_SMALL_MIX: Mix = ((64, 0.45), (128, 0.35), (256, 0.2))
"""What the miniature was trained to draw."""

_BATCH = 4
"""Of the batches that run to completion."""

_LOAD = 0.8
"""Of what one picture after the other would take."""

_STEPS = 8
_TIMED_STEPS = 3
"""Of a picture whose steps are timed, its beginning included; the end is not."""

_NUM_DRAWN = 32
_NUM_REPLAYED = 100
_NUM_TRACES = 15


def figures(bare: BareLoop) -> Iterator[Figure]:
    """The replays of both mixes, and the one trace that is drawn."""
    sides = sorted({side for mix in (_PUBLISHED_MIX, _SMALL_MIX) for side, _ in mix})
    engine = DecoderEngine(bare.model)
    costs = {side: _Cost.measure(bare, engine, side) for side in sides}
    size = DitSize.from_config(bare.model.transformer.config)
    told = "; ".join(f"{side} px: {cost.told()}" for side, cost in costs.items())
    yield Figure(
        "decoder, mixed sizes 1:2:4: mean time in system against FIFO batches of 4",
        _replayed(_PUBLISHED_MIX, costs, size),
        0.6,
        at_least=False,
        note=f"{_NUM_TRACES} replays of {_NUM_REPLAYED} pictures of {_told(_PUBLISHED_MIX)}, {_STEPS} steps, load {_LOAD}. {told}",
    )
    yield Figure(
        "decoder, small sizes 1:2:4, replayed",
        _replayed(_SMALL_MIX, costs, size),
        at_least=False,
        note=f"{_told(_SMALL_MIX)}. Bound: a small step alone still costs a good part of a large one's, in a full batch far less",
    )
    yield _drawn(bare, costs)


def _told(mix: Mix) -> str:
    return f"{'/'.join(str(side) for side, _ in mix)} px ({'/'.join(f'{share:.0%}' for _, share in mix)})"


@dataclass(frozen=True)
class _Cost:
    """
    Measured seconds of one size.

    Attributes:
        engine_step_s, bare_step_s: of a step with guidance, by batch size; of the engine up to what its budget allows.
        vae_s: of decoding one picture, which both do alike.
    """

    engine_step_s: dict[int, float]
    bare_step_s: dict[int, float]
    vae_s: float

    @classmethod
    def measure(cls, bare: BareLoop, engine: DecoderEngine, side: int) -> _Cost:
        latents = torch.zeros((1, bare.model.latent_channels, side // 8, side // 8))
        with torch.inference_mode():
            vae_s = min(timed(lambda: vae_decode(bare.model.vae, latents))[0] for _ in range(3))
        room = max(1, CPU_TOKEN_BUDGET // _num_patches(side))
        sizes = sorted({1, 2, _BATCH, room})
        engine_s: dict[int, list[float]] = {batch: [] for batch in sizes if batch <= room}
        bare_s: dict[int, list[float]] = {batch: [] for batch in sizes if batch <= _BATCH}
        # In turn, so that a machine that grows slower meanwhile is slower for both; the first of the engine also encodes the prompt.
        for _ in range(3):
            for batch in sizes:
                requests = [make_request(side, seed, steps=_TIMED_STEPS) for seed in range(batch)]
                if batch in engine_s:
                    engine_s[batch].append(_turns_s(engine, requests) / _TIMED_STEPS)
                if batch in bare_s:
                    bare_s[batch].append(timed(partial(bare.draw, requests, decode=False))[0] / _TIMED_STEPS)
        return cls(_between(engine_s), _between(bare_s), vae_s)

    def alone_s(self) -> float:
        """Of a whole picture by the bare loop."""
        return _STEPS * self.bare_step_s[1] + self.vae_s

    def told(self) -> str:
        def times(step_s: dict[int, float]) -> str:
            return ", ".join(f"{step_s[batch] * 1e3:.0f} ({batch})" for batch in sorted({1, max(step_s)}))

        return f"ms of a step (pictures) {times(self.engine_step_s)}, bare {times(self.bare_step_s)}, VAE {self.vae_s * 1e3:.0f}"


def _turns_s(engine: DecoderEngine, requests: Sequence[ImageRequest]) -> float:
    """Seconds that the engine takes for all steps but the last of these requests, which are then stopped before the VAE."""
    stop = threading.Event()
    for request in requests:
        engine.submit(dataclasses.replace(request, steps=request.steps + 1), lambda *_: None, stop.is_set)

    def take_turns() -> None:
        for _ in range(requests[0].steps):
            engine.turn()

    taken_s, _ = timed(take_turns)
    stop.set()
    engine.turn()
    return taken_s


def _between(measured: dict[int, list[float]]) -> dict[int, float]:
    """The best of each batch size, and what lies on the line between two for sizes that were not measured."""
    sizes = sorted(measured)
    best = [min(measured[size]) for size in sizes]
    return {batch: float(np.interp(batch, sizes, best)) for batch in range(1, sizes[-1] + 1)}


def _num_patches(side: int) -> int:
    return (side // PATCH_PX) ** 2


def _trace(mix: Mix, costs: dict[int, _Cost], count: int, seed: int) -> list[tuple[float, int]]:
    """When pictures come, and their sides."""
    draw = random.Random(seed)  # noqa: S311 - arrivals, not secrets
    sides = draw.choices([side for side, _ in mix], [share for _, share in mix], k=count)
    mean_s = sum(share * costs[side].alone_s() for side, share in mix)
    now, trace = 0.0, []
    for side in sides:
        now += draw.expovariate(_LOAD / mean_s)
        trace.append((now, side))
    return trace


def _ratio(trace: Sequence[tuple[float, Any]], ours: dict[int, float], theirs: dict[int, float]) -> float:
    """Mean time in system, ours over theirs."""
    mean = [statistics.fmean(ends[index] - came for index, (came, _) in enumerate(trace)) for ends in (ours, theirs)]
    return mean[0] / mean[1]


# ---- Replayed ----


def _replayed(mix: Mix, costs: dict[int, _Cost], size: DitSize) -> list[float]:
    traces = [_trace(mix, costs, _NUM_REPLAYED, seed) for seed in range(_NUM_TRACES)]
    return [_ratio(trace, _replay_engine(trace, costs, size), _replay_batches(trace, costs)) for trace in traces]


def _replay_batches(trace: list[tuple[float, int]], costs: dict[int, _Cost]) -> dict[int, float]:
    """When each picture ends if the oldest and those of its size that wait, up to four, are drawn to their end."""

    def run(batch: list[int]) -> float:
        cost = costs[trace[batch[0]][1]]
        return _STEPS * cost.bare_step_s[len(batch)] + len(batch) * cost.vae_s

    return _first_come_first_served([came for came, _ in trace], [side for _, side in trace], run)


def _first_come_first_served(arrivals: Sequence[float], shapes: Sequence[Any], run: Callable[[list[int]], float]) -> dict[int, float]:
    now, ends = 0.0, dict[int, float]()
    while len(ends) < len(arrivals):
        waiting = [index for index, came in enumerate(arrivals) if index not in ends and came <= now]
        if not waiting:
            now = min(came for index, came in enumerate(arrivals) if index not in ends)
            continue
        batch = [index for index in waiting if shapes[index] == shapes[waiting[0]]][:_BATCH]
        now += run(batch)
        ends |= dict.fromkeys(batch, now)
    return ends


def _replay_engine(trace: list[tuple[float, int]], costs: dict[int, _Cost], size: DitSize) -> dict[int, float]:
    """When each picture ends if the engine's policy chooses every step."""
    work = {side: size.step_flops(_num_patches(side), 6, 0, is_guided=True) for side in costs}
    now, work_done, favoured_at = 0.0, 0.0, 0.0
    left: dict[int, int] = {}
    moved_at: dict[int, float] = {}
    ends: dict[int, float] = {}
    num_came = 0
    while len(ends) < len(trace):
        while num_came < len(trace) and trace[num_came][0] <= now:
            left[num_came], moved_at[num_came] = _STEPS, work_done
            num_came += 1
        if not left:
            now = trace[num_came][0]
            continue
        indices = list(left)
        candidates = [
            Candidate(side, _num_patches(side), left[index] * work[side], work[side], work_done - moved_at[index])
            for index, side in ((index, trace[index][1]) for index in indices)
        ]
        choice = choose(candidates, CPU_TOKEN_BUDGET, OVERDUE_SHARE, work_done - favoured_at)
        favoured_at = work_done if choice.is_favour else favoured_at
        group = [indices[member] for member in choice.members]
        side = trace[group[0]][1]
        now += costs[side].engine_step_s[len(group)]
        work_done += len(group) * work[side]
        for index in group:
            left[index] -= 1
            moved_at[index] = work_done
        for index in [index for index in group if left[index] == 0]:
            now += costs[side].vae_s
            ends[index] = now
            del left[index]
    return ends


# ---- Drawn ----


@dataclass
class _Clock:
    """Time as it would pass if nothing but the measured work took any: CPU time of this thread, and jumps over idle spans."""

    now: float = 0.0

    def run(self, act: Callable[[], Any]) -> Any:
        started = time.thread_time()
        result = act()
        self.now += time.thread_time() - started
        return result


def _drawn(bare: BareLoop, costs: dict[int, _Cost]) -> Figure:
    """One trace of the small sizes, drawn by both."""
    sides = _trace(_SMALL_MIX, costs, _NUM_DRAWN, seed=1)
    trace = [(came, make_request(side, index, _STEPS)) for index, (came, side) in enumerate(sides)]
    theirs: dict[int, Tensor] = {}

    def run(batch: list[int]) -> float:
        taken_s, pixels = timed(lambda: bare.draw([trace[index][1] for index in batch]))
        theirs.update(zip(batch, pixels, strict=True))
        return taken_s

    their_ends = _first_come_first_served([came for came, _ in trace], [side for _, side in sides], run)
    ours, our_ends = _serve(bare.model, trace)
    difference = check_equal(ours, [theirs[index] for index in range(len(trace))])
    note = f"one trace of {_NUM_DRAWN} pictures; pixels differ by {difference:.0e}"
    return Figure("decoder, small sizes 1:2:4, drawn", [_ratio(trace, our_ends, their_ends)], at_least=False, note=note)


def _serve(model: DecoderModel, trace: Sequence[tuple[float, ImageRequest]]) -> tuple[list[Tensor], dict[int, float]]:
    """Hand the engine each request when its time has come, and let it take its turns."""
    engine = DecoderEngine(model)
    clock = _Clock()
    futures: list[Future[ImageResult]] = []
    ends: dict[int, float] = {}
    while len(ends) < len(trace):
        while len(futures) < len(trace) and trace[len(futures)][0] <= clock.now:
            futures.append(engine.submit(trace[len(futures)][1], lambda *_: None, lambda: False))
        if len(ends) == len(futures):
            clock.now = trace[len(futures)][0]
            continue
        clock.run(engine.turn)
        ends.update({index: clock.now for index, future in enumerate(futures) if index not in ends and future.done()})
    return [future.result().pixels for future in futures], ends
