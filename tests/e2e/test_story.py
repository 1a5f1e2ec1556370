"""A customer's day: submit, watch, cancel, download, be told."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import httpx
import pytest
from PIL import Image, ImageCms
from standardwebhooks import Webhook

from shared.job_document import PHASES
from tests.stack import Stack, wait_until

Received = Queue[tuple[dict[str, str], bytes]]


@pytest.fixture
def receiver() -> Iterator[tuple[str, Received]]:
    """A customer's webhook endpoint."""
    received: Received = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.put((dict(self.headers.items()), body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/hook", received
    server.shutdown()
    server.server_close()


def test_job_is_watched_to_its_end(stack: Stack) -> None:
    """Status, stage and progress only move forward, through every phase, and the links work."""
    job = stack.submit(prompt="a 'BIG' sign", size="512x512", steps=12, metadata={"order": "7"}, custom_id="c-1")
    assert job["status"] == "queued"
    seen: list[tuple[int, int]] = []
    statuses: list[str] = []

    def watch() -> dict[str, Any] | None:
        now = stack.job(job["id"])
        seen.append((PHASES.index(now["progress"]["phase"]), now["progress"]["done"]))
        statuses.append(now["status"])
        return now if now["status"] == "succeeded" else None

    done = wait_until(watch, 60, 0.02)
    assert seen == sorted(seen)
    assert {"running", "succeeded"} <= set(statuses)
    assert {PHASES.index("draft"), PHASES.index("grid"), PHASES.index("denoise")} <= {phase for phase, _ in seen}
    assert (done["metadata"], done["custom_id"]) == ({"order": "7"}, "c-1")
    assert done["usage"].pop("text_tokens") > 5
    assert done["usage"] == {"image_tokens": 0, "ar_tokens": 512, "decoder_steps": 12, "images": 1}
    redirect = stack.client.get(f"/v1/jobs/{job['id']}/images/0")
    assert redirect.status_code == 302
    assert httpx.get(redirect.headers["Location"]).content == stack.result(done)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize(("width", "height"), [(100, 75), (333, 64), (65, 301)])
def test_any_size_and_format(stack: Stack, image_format: str, width: int, height: int) -> None:
    """The result has exactly the size asked for, an sRGB profile, and tells the size that was generated."""
    job = stack.wait(stack.submit(prompt="a fish", size=f"{width}x{height}", steps=1, format=image_format))
    (output,) = job["outputs"]
    assert (output["width"], output["height"]) == (width, height)
    assert (output["generated_width"] % 32, output["generated_height"] % 32) == (0, 0)
    assert 0 <= output["generated_width"] - width < 32
    assert 0 <= output["generated_height"] - height < 32
    data = stack.result(job)
    assert len(data) == output["bytes"]
    image = Image.open(io.BytesIO(data))
    assert (image.size, image.format) == ((width, height), image_format.upper())
    assert "sRGB" in str(ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))))


def test_cancel_while_running(stack: Stack) -> None:
    """A canceled job ends at once, has no result, and frees its worker for the next."""
    slow = stack.submit(prompt="slow", size="512x512", steps=200)
    wait_until(lambda: stack.job(slow["id"])["progress"]["phase"] == "denoise")
    answer = stack.client.post(f"/v1/jobs/{slow['id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    started = time.monotonic()
    assert stack.wait(stack.submit(prompt="next", size="64x64", steps=1))["status"] == "succeeded"
    assert time.monotonic() - started < 60
    assert stack.client.post(f"/v1/jobs/{slow['id']}/cancel").status_code == 409
    assert stack.job(slow["id"])["outputs"][0]["url"] is None


def test_webhook_tells_the_end(stack: Stack, receiver: tuple[str, Received]) -> None:
    """One signed delivery with the job and a link that works; the secret is read over HTTP."""
    url, received = receiver
    job = stack.submit(prompt="told", size="64x64", steps=1, webhook={"url": url, "events": ["job.succeeded"]})
    headers, body = received.get(timeout=30)
    secret = stack.client.get("/v1/webhooks/default/secret").json()["key"]
    event = Webhook(secret).verify(body, {name.lower(): value for name, value in headers.items()})
    assert (event["type"], event["data"]["id"], event["data"]["status"]) == ("job.succeeded", job["id"], "succeeded")
    assert httpx.get(event["data"]["outputs"][0]["url"]).status_code == 200
    assert len(body) < 20_000
    assert json.loads(body) == event
    time.sleep(1)
    assert received.empty()


def test_expired_deadline(stack: Stack) -> None:
    """A job that is not done by its deadline, here because nobody approves its draft, expires and says so."""
    deadline = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    job = stack.wait(stack.submit(prompt="too slow", size="64x64", approve=True, deadline=deadline))
    assert (job["status"], job["error"]["code"]) == ("expired", "deadline_exceeded")
