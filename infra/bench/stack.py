"""
A whole stack for a benchmark, as `glmq up` starts it, in a throw-away folder, and what a customer beside it sees: an HTTP client and a
webhook receiver with the time of every event. Measures nothing itself.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from cli.background import background_stack
from cli.data_folder import DataFolder
from cli.demo import RECEIVER_NETWORK
from cli.receiver import WebhookReceiver
from cli.worker_counts import WorkerCounts, worker_counts

_TIMEOUT_S = 30.0
_POLL_S = 0.02
_PASSABLE = 0o711
"""Root's Postgres runs as nobody, who must be able to pass through."""

_LEVELS = 1
"""Of 255: how far a served picture may be from the one expected. It is rounded to levels after arithmetic that is equal to 1e-4."""

Job = dict[str, Any]

Pixels = np.ndarray[Any, np.dtype[np.int64]]
"""[height_px, width_px, 3], levels of 0 to 255."""


class TimedReceiver(WebhookReceiver):
    """Keeps when each verified event arrived, in seconds since 1970: the clock that Postgres on this machine has too."""

    def __init__(self, secret: str) -> None:
        super().__init__(secret)
        self.arrived_at: dict[str, float] = {}
        """By job and event type."""

    def take(self, body: bytes, headers: dict[str, str]) -> bool:
        at = time.time()
        if not super().take(body, headers):
            return False
        event = self.events[-1]
        self.arrived_at.setdefault(f"{event['data']['id']} {event['type']}", at)
        return True

    def await_all(self, jobs: list[Job], event_type: str, timeout_s: float) -> list[float]:
        """
        When the event of each job arrived, once all have.

        Raises:
            RuntimeError: one of the jobs failed.
            TimeoutError: not all have in time.
        """
        keys = [f"{job['id']} {event_type}" for job in jobs]
        give_up_at = time.monotonic() + timeout_s
        while not all(key in self.arrived_at for key in keys):
            if failed := [job["id"] for job in jobs if f"{job['id']} job.failed" in self.arrived_at]:
                raise RuntimeError(f"{len(failed)} of {len(jobs)} jobs failed: {failed[:3]}")
            if time.monotonic() > give_up_at:
                missing = [key for key in keys if key not in self.arrived_at]
                raise TimeoutError(f"{len(missing)} of {len(keys)} webhooks did not come within {timeout_s:.0f} s: {missing[:3]}")
            time.sleep(_POLL_S)
        return [self.arrived_at[key] for key in keys]


@dataclass
class BenchStack:
    """A running stack and its customer."""

    url: str
    api_key: str
    environment: Mapping[str, str]
    receiver: TimedReceiver
    logs: Path
    """Folder of the processes' logs."""

    def __post_init__(self) -> None:
        self.http = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.api_key}"}, timeout=_TIMEOUT_S, trust_env=False
        )

    def submit(self, **request: Any) -> Job:
        """POST a job whose end is told to the receiver."""
        webhook = {"url": self.receiver.url, "events": ["job.succeeded", "job.failed"]}
        return self._checked(self.http.post("/v1/jobs", json={**request, "webhook": webhook}))

    def post(self, path: str, **body: Any) -> Job:
        """POST to another route that answers with a job."""
        return self._checked(self.http.post(path, json=body))

    def job(self, job_id: str) -> Job:
        """GET a job."""
        return self._checked(self.http.get(f"/v1/jobs/{job_id}"))

    def wait(self, job: Job, timeout_s: float = 120) -> Job:
        """The job once it has succeeded."""
        give_up_at = time.monotonic() + timeout_s
        while (now := self.job(job["id"]))["status"] not in ("succeeded", "failed", "canceled", "expired"):
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"job {job['id']} is {now['status']} after {timeout_s:.0f} s")
            time.sleep(_POLL_S)
        if now["status"] != "succeeded":
            raise RuntimeError(f"job {job['id']} {now['status']}: {now['error']}")
        return now

    def picture(self, job: Job, index: int = 0) -> bytes:
        """The bytes of a finished image, through its presigned URL."""
        return httpx.get(job["outputs"][index]["url"], timeout=_TIMEOUT_S, trust_env=False).raise_for_status().content

    def pixels(self, job: Job, index: int = 0) -> Pixels:
        """A finished image, decoded."""
        return np.asarray(Image.open(io.BytesIO(self.picture(job, index))).convert("RGB")).astype(np.int64)

    def count_logged(self, event: str) -> int:
        """Lines about this event that decoder workers have written so far."""
        return sum(log.read_text(errors="replace").count(event) for log in self.decoder_logs())

    def decoder_logs(self) -> list[Path]:
        """The log of each decoder worker."""
        return list(self.logs.glob("decoder_worker*.log"))

    @staticmethod
    def _checked(answer: httpx.Response) -> Job:
        if answer.is_error:
            raise RuntimeError(f"HTTP {answer.status_code}: {answer.text[:500]}")
        found: Job = answer.json()
        return found


def check_alike(what: str, served: Pixels, expected: Pixels) -> None:
    """
    Raises:
        AssertionError: they differ by more than rounding does.
    """
    if served.shape != expected.shape:
        raise AssertionError(f"{what} is {served.shape}, not {expected.shape}")
    if (largest := int(np.abs(served - expected).max())) > _LEVELS:
        raise AssertionError(f"{what} is not the one expected: it differs by {largest} levels")


def _await_workers(client: httpx.Client, counts: WorkerCounts) -> None:
    """The stack is ready with the first of each kind; what is measured is all of them."""
    give_up_at = time.monotonic() + _TIMEOUT_S
    while True:
        checks = client.get("/readyz").raise_for_status().json()["checks"]
        if checks["ar_workers"] >= counts.ar and checks["decoder_workers"] >= counts.decoder:
            return
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"not all of {counts} live after {_TIMEOUT_S:.0f} s: {checks}")
        time.sleep(_POLL_S)


@contextmanager
def bench_stack(checkpoint: Path, **settings: str) -> Iterator[BenchStack]:
    """
    A stack with this checkpoint and the workers that `glmq up` would give it, stopped and deleted afterwards.

    Args:
        settings: environment variables beside those of `glmq up`.
    """
    with tempfile.TemporaryDirectory(prefix="glmq-bench-") as name:
        folder = DataFolder(Path(name) / "stack")
        Path(name).chmod(_PASSABLE)
        folder.make()
        chosen = {"GLMQ_EGRESS_ALLOW": RECEIVER_NETWORK, **settings}
        with background_stack(folder) as stack:
            stack.start(str(checkpoint), 0, outlive=False, settings=chosen)
            state = stack.await_ready(lambda step: None)
            exports = state.exports
            with httpx.Client(base_url=exports["GLMQ_URL"], trust_env=False) as client:
                _await_workers(client, worker_counts(str(checkpoint), {**os.environ, **settings}))
                told = client.get("/v1/webhooks/default/secret", headers={"Authorization": f"Bearer {exports['GLMQ_API_KEY']}"})
            with TimedReceiver(str(told.raise_for_status().json()["key"])) as receiver:
                yield BenchStack(exports["GLMQ_URL"], exports["GLMQ_API_KEY"], exports, receiver, folder.logs)
