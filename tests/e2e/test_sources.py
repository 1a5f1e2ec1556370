"""Photos as people have them go through, and hostile ones are refused."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.stack import Stack

EXIF_ORIENTATION = 0x0112


def encode(image: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    """A file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def rotated() -> bytes:
    """A phone's portrait photo: stored lying, with a note to turn it."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    return encode(Image.linear_gradient("L").resize((640, 480)).convert("RGB"), exif=exif)


GRADIENT = Image.linear_gradient("L")
PHOTOS = {
    "1280x720": encode(GRADIENT.resize((1280, 720)).convert("RGB")),
    "1920x1080": encode(GRADIENT.resize((1920, 1080)).convert("RGB")),
    "640x480": encode(GRADIENT.resize((640, 480)).convert("RGB")),
    "4032x3024": encode(GRADIENT.resize((4032, 3024)).convert("RGB")),
    "300x300": encode(GRADIENT.resize((300, 300)).convert("RGB")),
    "RGBA": encode(GRADIENT.resize((320, 200)).convert("RGBA"), "PNG"),
    "grey": encode(GRADIENT.resize((200, 320)), "PNG"),
    "CMYK": encode(GRADIENT.resize((320, 240)).convert("CMYK")),
    "EXIF-rotated": rotated(),
    "palette": encode(GRADIENT.resize((200, 200)).convert("P"), "PNG"),
    "WebP": encode(GRADIENT.resize((333, 222)).convert("RGB"), "WEBP"),
}


def post(stack: Stack, photo: bytes, **request: Any) -> httpx.Response:
    """A multipart request with one photo."""
    body = {"prompt": "the same at night", "size": "64x64", "steps": 1, **request}
    return stack.client.post("/v1/jobs", files=[("request", (None, json.dumps(body), "application/json")), ("image", ("a.jpg", photo))])


@pytest.mark.parametrize("name", PHOTOS)
def test_photo_goes_through(stack: Stack, name: str) -> None:
    """The reference pipeline crashes on most of these."""
    answer = post(stack, PHOTOS[name])
    assert answer.status_code == 202, answer.text
    job = stack.wait(answer.json())
    assert job["status"] == "succeeded", job["error"]
    assert Image.open(io.BytesIO(stack.result(job))).size == (64, 64)


def test_same_photo_is_one_file(stack: Stack) -> None:
    """The same picture sent twice is stored once, and can be named by its id."""
    first, second = (post(stack, PHOTOS["300x300"], seed=7).json() for _ in range(2))
    assert first["params"]["images"] == second["params"]["images"]
    by_id = stack.submit(prompt="the same at night", size="64x64", steps=1, seed=7, images=first["params"]["images"])
    assert stack.wait(by_id)["outputs"][0]["sha256"] == stack.wait(first)["outputs"][0]["sha256"]


def test_earlier_result_is_a_source(stack: Stack) -> None:
    """An image of an earlier job is named by job and index."""
    earlier = stack.wait(stack.submit(prompt="a hill", size="96x64", steps=1))
    later = stack.wait(stack.submit(prompt="at night", size="64x64", steps=1, images=[{"job_id": earlier["id"], "index": 0}]))
    assert later["status"] == "succeeded"


@pytest.fixture(scope="module")
def photo_server() -> Iterator[str]:
    """A web server on loopback, which the stack's operator allows."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metadata":
                self.send_response(302)
                self.send_header("Location", "http://169.254.169.254/latest/meta-data")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PHOTOS["640x480"] if self.path == "/photo.jpg" else b"<html>")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_url_is_fetched(stack: Stack, photo_server: str) -> None:
    """A URL within the operator's allow-list is fetched once and stored."""
    job = stack.wait(stack.submit(prompt="at night", size="64x64", steps=1, images=[{"url": f"{photo_server}/photo.jpg"}]))
    assert job["status"] == "succeeded"


@pytest.mark.parametrize(
    "url",
    [
        "{server}/metadata",
        "{server}/page.html",
        "http://169.254.169.254/latest",
        "http://10.0.0.1/a.png",
        "http://[::1]/a.png",
        "file:///etc/passwd",
    ],
)
def test_other_urls_are_refused(stack: Stack, photo_server: str, url: str) -> None:
    """Private and metadata addresses, redirects into them, and what is no picture: a 4xx that names the field."""
    answer = stack.client.post(
        "/v1/jobs", json={"prompt": "at night", "size": "64x64", "images": [{"url": url.format(server=photo_server)}]}
    )
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["param"].startswith("images.0")
