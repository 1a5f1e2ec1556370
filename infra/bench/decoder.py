"""
The decoder engine beside what it is measured against: a bare loop, run-to-completion batches, and the reference pipeline.

On the shipped miniature, with one torch thread. Times are CPU times of this process: with one thread that is the time a free core
takes, and other programs on the machine disturb it less. `python -m infra.bench.decoder`.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from diffusers import GlmImagePipeline

from infra.bench import decoder_edits, decoder_mix
from infra.bench.bare_decoder import STEPS, BareLoop, check_equal, make_request, timed
from infra.bench.figures import Figure, each_alone, show
from services.ar_worker.weights import load_ar_model
from services.decoder_worker.engine import DecoderEngine
from services.decoder_worker.weights import DecoderModel, load_decoder_model

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "miniature"


def measure(num_repeats: int = 3) -> Iterator[Figure]:
    """All figures of the decoder engine."""
    torch.set_num_threads(1)
    model = load_decoder_model(CHECKPOINT, "cpu", "float32")
    bare = BareLoop(model)
    pipeline = GlmImagePipeline.from_pretrained(CHECKPOINT, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    ar = load_ar_model(CHECKPOINT, "cpu", "float32")
    yield from each_alone(
        (
            *(partial(_back_to_back, bare, side, num_repeats + 2) for side in (128, 256)),
            partial(decoder_mix.figures, bare),
            *decoder_edits.measurements(bare, ar, pipeline, num_repeats),
            partial(_fast, model, num_repeats),
        )
    )


# ---- One after the other ----


def _back_to_back(bare: BareLoop, side: int, num_repeats: int) -> list[Figure]:
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
    return [Figure(f"decoder engine, back to back, against a bare loop ({side} px)", ratios[1:], 0.95, note=note)]


# ---- The lossy tier ----


def _fast(model: DecoderModel, num_repeats: int) -> list[Figure]:
    """Fast against exact pictures: how much sooner, and how far away."""
    ratios, differences = [], []
    for seed in range(num_repeats):
        exact = make_request(256, seed)
        exact_s, ((theirs,), _) = timed(partial(decoder_edits.draw_together, model, [exact]))
        fast_s, ((ours,), _) = timed(partial(decoder_edits.draw_together, model, [dataclasses.replace(exact, fast=True)]))
        ratios.append(exact_s / fast_s)
        differences.append(float((ours - theirs).abs().mean()))
    note = f"256x256, {STEPS} steps; mean absolute difference of pixels in 0..1: {statistics.median(differences):.3f}"
    return [Figure("decoder, fast against exact (lossy, off unless asked)", ratios, note=note)]


if __name__ == "__main__":
    show(measure())
