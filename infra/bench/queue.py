"""
Queue overhead: what the service adds to a job on an idle system, hop by hop, from the rows' timestamps and the receiver's clock.

Postgres stamps rows with the clock of this machine (`clock_timestamp()`), as the receiver does, so the four times of a job compare.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import psycopg

from cli.checkpoint import TRAINED_MINIATURE
from infra.bench.figures import Figure, show
from infra.bench.stack import BenchStack, bench_stack

_JOBS = 40
_WARM_UP = 8
_PAUSE_S = 0.15
"""Between two jobs, so that every one meets an idle system."""

_REQUEST = {"prompt": "a red square", "size": "64x64", "steps": 1, "previews": False}
"""The smallest picture: the figure is about what lies between the engines, not about them."""

_TARGET_MS = 25.0
_TIMES = """
    SELECT extract(epoch from job.created_at), extract(epoch from grid.started_at), extract(epoch from grid.finished_at),
           extract(epoch from image.started_at), extract(epoch from image.finished_at)
    FROM job JOIN output ON output.job_id = job.id JOIN image ON image.id = output.image_id JOIN grid ON grid.id = image.grid_id
    WHERE job.id = %s
"""


@dataclass(frozen=True)
class Hops:
    """Milliseconds that one job spent between the engines."""

    to_ar: float
    """From the row of the job to the claim of its grid."""
    to_decoder: float
    """From the grid's end to the claim of the image."""
    to_webhook: float
    """From the image's end to the verified webhook."""
    posting: float
    """The POST as the client saw it, from sending to the 202."""

    @property
    def total(self) -> float:
        return self.to_ar + self.to_decoder + self.to_webhook


def measure() -> list[Figure]:
    """The overhead of jobs one after another on an idle stack."""
    with bench_stack(TRAINED_MINIATURE, GLMQ_AR_WORKERS="1", GLMQ_DECODER_WORKERS="1") as stack:
        hops = [_one(stack, number) for number in range(_WARM_UP + _JOBS)][_WARM_UP:]
    totals = [hop.total for hop in hops]
    note = f"p95 {_p95(totals):.1f} ms; {_JOBS} jobs one by one, miniature, verified webhooks"
    return [
        Figure("queue overhead p50, all hops", totals, _TARGET_MS, at_least=False, unit="ms", note=note),
        *(
            Figure(f"… {name}", values, unit="ms", note=f"p95 {_p95(values):.1f} ms")
            for name, values in (
                ("submit → AR start", [hop.to_ar for hop in hops]),
                ("AR end → decoder start", [hop.to_decoder for hop in hops]),
                ("decoder end → webhook received", [hop.to_webhook for hop in hops]),
                ("POST /v1/jobs, client's view", [hop.posting for hop in hops]),
            )
        ),
    ]


def _one(stack: BenchStack, number: int) -> Hops:
    # A seed of its own: an equal grid would be found and not drawn.
    started = time.perf_counter()
    job = stack.submit(**_REQUEST, seed=number)
    posting = time.perf_counter() - started
    (arrived,) = stack.receiver.await_all([job], "job.succeeded", 60)
    with psycopg.connect(stack.environment["GLMQ_DATABASE_URL"]) as connection:
        row = connection.execute(_TIMES, (job["id"],)).fetchone()
    if row is None:
        raise RuntimeError(f"job {job['id']} has no image")
    created, ar_start, ar_end, decoder_start, decoder_end = (float(value) for value in row)
    time.sleep(_PAUSE_S)
    return Hops(*(1000 * value for value in (ar_start - created, decoder_start - ar_end, arrived - decoder_end, posting)))


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


if __name__ == "__main__":
    show(measure())
