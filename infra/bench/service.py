"""
The whole service against the reference pipeline in a loop, and against what its engines reach alone. What equal requests cost it is in
`reuse.py`, and told with it.

The service is a stack as `glmq up` starts it, its customer posts jobs over HTTP and is told by signed webhooks; every picture it times is
stored and its webhook verified. The loop draws a sample of the same pictures, before and after the service, so that a machine that grows
slower meanwhile is slower for both; they are compared before anything counts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from infra.bench import reuse
from infra.bench.engines import Bound, bound
from infra.bench.figures import Figure, each_alone, show
from infra.bench.reference import GUIDANCE_SCALE, PipelineLoop, Reference, Wish
from infra.bench.stack import BenchStack, Job, Pixels, bench_stack, check_alike
from infra.bench.workload import MINIATURE, PUBLISHED_SHARES, Workload

_JOBS = 64
_CLIENTS = 4
_SLOTS = 32
"""Of the AR engine alone; the AR worker's own choice on a CPU."""
_BOUND_COUNT = 6
"""Pictures that each engine process draws of its grids."""
_SAMPLE = 4
"""Pictures of the loop, evenly from the first to the last of the jobs; one takes as long as another."""
_TIMEOUT_S = 600.0

_AT_LEAST = 5.0
_OF_BOUND = 0.85


def measure() -> Iterator[Figure]:
    """Throughput against the loop and against the bound, of either workload, and the cost of equal requests."""
    with tempfile.TemporaryDirectory(prefix="glmq-bench-") as name:
        Path(name).chmod(0o755)  # the workers' checkpoint
        workloads = (partial(_throughput, workload, Path(name)) for workload in (PUBLISHED_SHARES, MINIATURE))
        yield from each_alone((*workloads, reuse.figures))


def _throughput(workload: Workload, folder: Path) -> Iterator[Figure]:
    checkpoint = workload.checkpoint(folder)
    reference = Reference.load(checkpoint)
    prompts = [f'a poster with the words "NUMBER {number}"' for number in range(_JOBS)]
    wishes = [Wish(prompt, number, workload.side_px, workload.steps) for number, prompt in enumerate(prompts)]
    sample = [wishes[round(index * (_JOBS - 1) / (_SAMPLE - 1))] for index in range(_SAMPLE)]
    reference.draw(_warming_up(workload, 0))
    loop = PipelineLoop(reference, sample[0])
    loop.draw(sample[1 : _SAMPLE // 2])
    engines = [_bound(workload, checkpoint)]
    with bench_stack(checkpoint) as stack:
        _warm_up(stack, workload)
        service_s, served = _serve(stack, wishes)
    loop.draw(sample[_SAMPLE // 2 :])
    for wish, picture in loop.drawn.items():
        check_alike(f"the picture of {wish.prompt!r}", served[wish], picture)
    yield _against_loop(workload, loop, service_s)
    engines.append(_bound(workload, checkpoint))
    yield _against_bound(workload, engines, service_s)


def _bound(workload: Workload, checkpoint: Path) -> Bound:
    return bound(checkpoint, _SLOTS, _BOUND_COUNT, workload.side_px, workload.steps)


def _warming_up(workload: Workload, number: int) -> Wish:
    """None of them is asked for again."""
    return Wish("warm up", 1_000_000 + number, workload.side_px, workload.steps)


def _warm_up(stack: BenchStack, workload: Workload) -> None:
    """Draw a few pictures first, so that every worker has allocated what it needs."""
    jobs = [_submit(stack, _warming_up(workload, number)) for number in range(4)]
    stack.receiver.await_all(jobs, "job.succeeded", _TIMEOUT_S)


def _submit(stack: BenchStack, wish: Wish) -> Job:
    size = f"{wish.side_px}x{wish.side_px}"
    # Without previews: the loop shows none.
    return stack.submit(prompt=wish.prompt, seed=wish.seed, size=size, steps=wish.steps, guidance_scale=GUIDANCE_SCALE, previews=False)


def _serve(stack: BenchStack, wishes: Sequence[Wish]) -> tuple[float, dict[Wish, Pixels]]:
    """Seconds from the first POST to the last webhook, and the pictures that are in the store."""
    started = time.time()
    with ThreadPoolExecutor(_CLIENTS) as clients:
        jobs = list(clients.map(lambda wish: _submit(stack, wish), wishes))
    arrived = stack.receiver.await_all(jobs, "job.succeeded", _TIMEOUT_S)
    seconds = max(arrived) - started
    return seconds, {wish: stack.pixels(stack.job(job["id"])) for wish, job in zip(wishes, jobs, strict=True)}


def _against_loop(workload: Workload, loop: PipelineLoop, service_s: float) -> Figure:
    per_job = service_s / _JOBS
    seconds = ", ".join(f"{threads} threads {first_s:.2f} s" for threads, first_s in loop.first_s.items())
    return Figure(
        f"service, {_JOBS} jobs, against pipeline loop ({workload.name})",
        [seconds / per_job for seconds in loop.seconds],
        _AT_LEAST,
        note=f"{_JOBS} jobs in {service_s:.1f} s; loop per picture {statistics.median(loop.seconds):.2f} s (its first: {seconds}); "
        f"{len(loop.drawn)} pictures compared, webhooks verified",
    )


def _against_bound(workload: Workload, engines: Sequence[Bound], service_s: float) -> Figure:
    reached = _JOBS / service_s
    ar_s = statistics.mean(times.ar_s for one in engines for times in one.per_process)
    decoder_s = statistics.mean(times.decoder_s for one in engines for times in one.per_process)
    return Figure(
        f"service images/s against engines alone ({workload.name})",
        [reached / one.images_per_s for one in engines],
        _OF_BOUND,
        note=f"{reached:.2f} images/s; engines alone, a process on every core: AR {ar_s:.3f} s + decoder {decoder_s:.3f} s per image",
    )


if __name__ == "__main__":
    show(measure())
