"""
The whole service against the reference pipeline in a loop, against what its engines reach alone, and what equal requests cost it.

The service is a stack as `glmq up` starts it, its customer posts jobs over HTTP and is told by signed webhooks; every picture it times is
stored and its webhook verified. Pictures are compared with the pipeline's before anything counts.
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psycopg
from PIL import Image

from infra.bench.engines import Bound, bound
from infra.bench.figures import Figure, show
from infra.bench.reference import GUIDANCE_SCALE, Reference, Wish
from infra.bench.stack import BenchStack, Job, bench_stack
from infra.bench.workload import MINIATURE, PUBLISHED_SHARES, Workload

_JOBS = 64
_IDENTICAL = 100
_SHARED_LAYOUT = 8
_CLIENTS = 4
_SLOTS = 32
"""Of the AR engine alone; the AR worker's own choice on a CPU."""
_BOUND_COUNT = 16
"""Pictures of each engine process."""
_REFERENCES = 2
"""Pictures of each loop; one takes as long as another."""
_TIMEOUT_S = 300.0

_AT_LEAST = 5.0
_OF_BOUND = 0.85
_IDENTICAL_COST = 1.1
_LEVELS = 1
"""Of 255: how far a served picture may be from the pipeline's. It is rounded to levels after arithmetic that is equal to 1e-4."""


def measure() -> list[Figure]:
    """Throughput against the loop and against the bound, and the cost of equal requests."""
    with tempfile.TemporaryDirectory(prefix="glmq-bench-") as name:
        Path(name).chmod(0o755)  # the workers' checkpoint
        of_published_shares, _ = _measure(PUBLISHED_SHARES, Path(name))
        of_miniature, reuse = _measure(MINIATURE, Path(name))
    return [*of_published_shares, *of_miniature, *reuse]


def _measure(workload: Workload, folder: Path) -> tuple[list[Figure], list[Figure]]:
    """The figures of throughput, and those of equal requests."""
    checkpoint = workload.checkpoint(folder)
    reference = Reference.load(checkpoint)
    prompts = [f'a poster with the words "NUMBER {number}"' for number in range(_JOBS)]
    wishes = [Wish(prompt, number, workload.side_px, workload.steps) for number, prompt in enumerate(prompts)]
    reference.draw(wishes[0])
    # Before and after the service, so that a machine that grows slower meanwhile is slower for both.
    loops = _loops(reference, wishes[:_REFERENCES])
    expected = [reference.draw(wish) for wish in wishes[:_REFERENCES]]
    engines = [_bound(workload, checkpoint)]
    with bench_stack(checkpoint, decoders=len(os.sched_getaffinity(0))) as stack:
        _warm_up(stack, workload)
        service_s = _serve(stack, wishes, expected)
        reuse = _reuse(stack)
    engines.append(_bound(workload, checkpoint))
    again = _loops(reference, wishes[_REFERENCES : 2 * _REFERENCES])
    loops = {threads: (*loops[threads], *again[threads]) for threads in loops}
    return [*_throughput(workload, loops, service_s), *_against_bound(workload, engines, service_s)], reuse


def _bound(workload: Workload, checkpoint: Path) -> Bound:
    return bound(checkpoint, _BOUND_COUNT, _SLOTS, workload.side_px, workload.steps)


def _loops(reference: Reference, wishes: Sequence[Wish]) -> dict[int, tuple[float, ...]]:
    """Seconds per picture of the sequential loop, by torch threads."""
    cores = len(os.sched_getaffinity(0))
    return {threads: tuple(reference.seconds_per_picture([wish], threads) for wish in wishes) for threads in sorted({1, cores})}


def _warm_up(stack: BenchStack, workload: Workload) -> None:
    """Draw a few pictures first, so that every worker has allocated what it needs; none of them is asked for again."""
    jobs = [_submit(stack, Wish("warm up", 1_000_000 + number, workload.side_px, workload.steps)) for number in range(4)]
    stack.receiver.await_all(jobs, "job.succeeded", _TIMEOUT_S)


def _submit(stack: BenchStack, wish: Wish) -> Job:
    size = f"{wish.side_px}x{wish.side_px}"
    # Without previews: the loop shows none.
    return stack.submit(prompt=wish.prompt, seed=wish.seed, size=size, steps=wish.steps, guidance_scale=GUIDANCE_SCALE, previews=False)


def _serve(stack: BenchStack, wishes: Sequence[Wish], expected: Sequence[np.ndarray]) -> float:
    """Seconds from the first POST to the last webhook; the pictures are those expected, for as many as are given."""
    started = time.time()
    with ThreadPoolExecutor(_CLIENTS) as clients:
        jobs = list(clients.map(lambda wish: _submit(stack, wish), wishes))
    arrived = stack.receiver.await_all(jobs, "job.succeeded", _TIMEOUT_S)
    seconds = max(arrived) - started
    for job, picture in zip(jobs, expected, strict=False):
        served = np.asarray(Image.open(io.BytesIO(stack.picture(stack.job(job["id"])))).convert("RGB")).astype(np.int64)
        if served.shape != picture.shape or (largest := int(np.abs(served - picture).max())) > _LEVELS:
            raise RuntimeError(f"job {job['id']} is not the pipeline's picture: {served.shape}, differs by {largest} levels")
    sizes = {len(stack.picture(stack.job(job["id"]))) for job in jobs}
    if min(sizes) == 0:
        raise RuntimeError("a stored picture is empty")
    return seconds


def _throughput(workload: Workload, loops: dict[int, tuple[float, ...]], service_s: float) -> list[Figure]:
    best = min(loops, key=lambda threads: statistics.median(loops[threads]))
    per_job = service_s / _JOBS
    loop_note = ", ".join(f"{threads} threads {statistics.median(times):.2f} s" for threads, times in loops.items())
    note = f"{_JOBS} jobs in {service_s:.1f} s; loop per picture: {loop_note}; {_REFERENCES} pictures compared, webhooks verified"
    return [
        Figure(
            f"service, 64 jobs, against pipeline loop ({workload.name})",
            [seconds / per_job for seconds in loops[best]],
            _AT_LEAST,
            note=note,
        )
    ]


def _against_bound(workload: Workload, engines: Sequence[Bound], service_s: float) -> list[Figure]:
    reached = _JOBS / service_s
    ar_s = statistics.mean(times.ar_s for one in engines for times in one.per_process)
    decoder_s = statistics.mean(times.decoder_s for one in engines for times in one.per_process)
    note = f"{reached:.2f} images/s; engines alone, a process on every core: AR {ar_s:.3f} s + decoder {decoder_s:.3f} s per image"
    return [
        Figure(
            f"service images/s against engines alone ({workload.name})",
            [reached / one.images_per_s for one in engines],
            _OF_BOUND,
            note=note,
        )
    ]


def _reuse(stack: BenchStack) -> list[Figure]:
    """What equal requests, a redecode and one layout for eight images cost, by the usage that is billed."""
    request = {"prompt": "one of many", "size": "128x128", "steps": 4, "previews": False}
    before = _usage(stack)
    stack.receiver.await_all([stack.submit(**request, seed=7)], "job.succeeded", _TIMEOUT_S)
    one = _less(_usage(stack), before)

    before = _usage(stack)
    jobs = [stack.submit(**request, seed=8) for _ in range(_IDENTICAL)]
    stack.receiver.await_all(jobs, "job.succeeded", _TIMEOUT_S)
    many = _less(_usage(stack), before)
    ratios = [many[stage] / one[stage] for stage in one]
    identical_note = f"{_IDENTICAL} jobs: {many['ar']} AR tokens, {many['decoder']} decoder steps; one: {one['ar']}, {one['decoder']}"

    before = _usage(stack)
    again = stack.wait(stack.post(f"/v1/jobs/{jobs[0]['id']}/redecode", steps=6))
    redecoded = _less(_usage(stack), before)

    before = _usage(stack)
    encoded_before = stack.count_logged("sources_encoded")
    source = {"job_id": again["id"], "index": 0}
    stack.wait(stack.submit(**request, seed=9, n=_SHARED_LAYOUT, same_layout=True, images=[source]))
    encoded = stack.count_logged("sources_encoded") - encoded_before
    num_decoders = len(stack.decoder_logs())
    eight = _less(_usage(stack), before)
    if eight["decoder_runs"] != _SHARED_LAYOUT:
        raise RuntimeError(f"{_SHARED_LAYOUT} images took {eight['decoder_runs']} decoder runs")
    return [
        Figure("100 identical jobs cost, in jobs", ratios, _IDENTICAL_COST, at_least=False, note=identical_note),
        Figure("AR tokens of a redecode", [redecoded["ar"]], 0, at_least=False, unit="", note=f"{redecoded['decoder']} decoder steps"),
        Figure(
            "AR runs for 8 images of one layout and one reference",
            [eight["ar_runs"]],
            1,
            at_least=False,
            unit="",
            note=f"{eight['decoder_runs']} decoder runs",
        ),
        Figure(
            "references encoded for 8 images of one layout and one reference",
            [encoded],
            num_decoders,
            at_least=False,
            unit="",
            note=f"once per decoder worker that draws some of them; {num_decoders} workers",
        ),
    ]


def _usage(stack: BenchStack) -> dict[str, int]:
    """Units so far and runs so far, by stage."""
    with psycopg.connect(stack.environment["GLMQ_DATABASE_URL"]) as connection:
        rows = connection.execute("SELECT stage, sum(units), count(*) FROM usage GROUP BY stage").fetchall()
    found = {stage: (int(units), int(runs)) for stage, units, runs in rows}
    return {
        **{stage: found.get(stage, (0, 0))[0] for stage in ("ar", "decoder")},
        **{f"{stage}_runs": found.get(stage, (0, 0))[1] for stage in ("ar", "decoder")},
    }


def _less(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


if __name__ == "__main__":
    show(measure())
