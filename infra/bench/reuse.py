"""
What equal requests cost the service, by the usage that is billed: a hundred at once, a redecode, and eight images of one layout and source.

What was reused is compared with what the service draws for the same request where it may reuse nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from cli.checkpoint import TRAINED_MINIATURE
from infra.bench.figures import Figure, each_alone
from infra.bench.stack import BenchStack, Job, bench_stack, check_alike

_IDENTICAL = 100
_CLIENTS = 4
_COST = 1.1
_SHARED_LAYOUT = 8
_TIMEOUT_S = 300.0

_LONG = {"prompt": "one of many", "size": "256x256", "steps": 60, "previews": False}
"""Takes seconds, so that all hundred have been asked for before the first ends."""

_SHORT = {"prompt": "one of many", "size": "128x128", "steps": 4, "previews": False}


def figures() -> Iterator[Figure]:
    """Of the shipped miniature on a stack of their own."""
    with bench_stack(TRAINED_MINIATURE) as stack:
        yield from each_alone((lambda: _identical(stack), lambda: _redecode(stack), lambda: _one_layout(stack)))


def _identical(stack: BenchStack) -> Iterator[Figure]:
    before = _usage(stack)
    alone = _drawn_anew(stack, **_LONG, seed=7)
    one = _less(_usage(stack), before)

    before = _usage(stack)
    with ThreadPoolExecutor(_CLIENTS) as clients:
        asked = list(clients.map(lambda _: stack.submit(**_LONG, seed=7), range(_IDENTICAL)))
    stack.receiver.await_all(asked, "job.succeeded", _TIMEOUT_S)
    many = _less(_usage(stack), before)
    jobs = [stack.job(job["id"]) for job in asked]
    if (last := max(job["created_at"] for job in jobs)) > (first := min(job["completed_at"] for job in jobs)):
        raise RuntimeError(f"the last was asked for at {last}, when the first had ended at {first}: they were not in flight together")
    if len({job["outputs"][0]["sha256"] for job in jobs}) != 1:
        raise AssertionError("identical jobs have unlike pictures")
    check_alike("the picture of identical jobs", stack.pixels(jobs[-1]), stack.pixels(alone))
    note = f"{_IDENTICAL} jobs: {many['ar']} AR tokens, {many['decoder']} decoder steps; one: {one['ar']}, {one['decoder']}; one picture"
    ratios = [many[stage] / one[stage] for stage in ("ar", "decoder")]
    yield Figure(f"{_IDENTICAL} identical jobs cost, in jobs", ratios, _COST, at_least=False, note=note)


def _redecode(stack: BenchStack) -> Iterator[Figure]:
    first = stack.wait(stack.submit(**_SHORT, seed=8))
    before = _usage(stack)
    again = stack.wait(stack.post(f"/v1/jobs/{first['id']}/redecode", steps=6))
    redecoded = _less(_usage(stack), before)
    expected = _drawn_anew(stack, **{**_SHORT, "steps": 6}, seed=8)
    check_alike("the picture of a redecode", stack.pixels(again), stack.pixels(expected))
    note = f"{redecoded['decoder']} decoder steps; the picture is that of a new job with as many"
    yield Figure("AR tokens of a redecode", [redecoded["ar"]], 0, at_least=False, unit="", note=note)


def _one_layout(stack: BenchStack) -> Iterator[Figure]:
    source = {"job_id": stack.wait(stack.submit(**_SHORT, seed=8))["id"], "index": 0}
    before = _usage(stack)
    encoded_before = stack.count_logged("sources_encoded")
    job = stack.wait(stack.submit(**_SHORT, seed=9, n=_SHARED_LAYOUT, same_layout=True, images=[source]))
    encoded = stack.count_logged("sources_encoded") - encoded_before
    eight = _less(_usage(stack), before)
    if eight["decoder_runs"] != _SHARED_LAYOUT:
        raise RuntimeError(f"{_SHARED_LAYOUT} images took {eight['decoder_runs']} decoder runs")
    last = _SHARED_LAYOUT - 1
    alone = _drawn_anew(stack, **_SHORT, seed=9 + last, layout_seed=9, images=[source])
    check_alike(f"image {last} of one layout", stack.pixels(job, last), stack.pixels(alone))
    name = f"{_SHARED_LAYOUT} images of one layout and one reference"
    num_decoders = len(stack.decoder_logs())
    yield Figure(
        f"AR runs for {name}",
        [eight["ar_runs"]],
        1,
        at_least=False,
        unit="",
        note=f"{eight['decoder_runs']} decoder runs; the last is the picture of a job of its own",
    )
    yield Figure(
        f"references encoded for {name}",
        [encoded],
        num_decoders,
        at_least=False,
        unit="",
        note=f"once per decoder worker that draws some of them; {num_decoders} workers",
    )


def _drawn_anew(stack: BenchStack, **request: Any) -> Job:
    """The finished job of a request that reuses nothing, and whose results nobody reuses."""
    return stack.wait(stack.submit(**request, cache="off"), _TIMEOUT_S)


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
