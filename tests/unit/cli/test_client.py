"""The HTTP client, against a small server that answers what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cli.client import ApiError, Client, failure


@dataclass
class Service:
    """Answers in turn, and what was asked."""

    answers: list[tuple[int, bytes]] = field(default_factory=list)
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    def answer(self, body: Any, status: int = 200) -> None:
        self.answers.append((status, body if isinstance(body, bytes) else json.dumps(body).encode()))


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            service.asked.append((self.command, self.path, dict(self.headers), body))
            status, answer = service.answers.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815 - the name is http.server's

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield service
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_job_is_followed_to_its_end(service: Service) -> None:
    """Every change is told, and the final job is returned."""
    running = {"id": "job_1", "status": "running", "progress": {"phase": "grid", "done": 3, "total": 9}}
    service.answer(running)
    service.answer({"id": "job_1", "status": "succeeded"})
    told: list[Any] = []

    with Client(service.url, "key") as client:
        job = client.wait({"id": "job_1", "status": "queued"}, told.append)

    assert job["status"] == "succeeded"
    assert told == [running, job]
    assert service.asked[0][2]["Authorization"] == "Bearer key"


def test_source_files_are_sent_along(service: Service, tmp_path: Path) -> None:
    """With source images the request is multipart: the JSON and each file as a part."""
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"not really a picture")
    service.answer({"id": "job_1", "status": "queued"}, 202)

    with Client(service.url, "key") as client:
        client.submit({"prompt": "a cat"}, [picture])

    _, path, headers, body = service.asked[0]
    assert path == "/v1/jobs"
    assert headers["Content-Type"].startswith("multipart/form-data")
    assert b'name="request"' in body
    assert b'{"prompt": "a cat"}' in body
    assert b'name="image"; filename="cat.png"\r\nContent-Type: image/png\r\n\r\nnot really a picture' in body


def test_a_problem_is_told_in_its_own_words(service: Service) -> None:
    """The detail of an RFC 9457 problem and the field at fault reach the person."""
    service.answer({"title": "Invalid size", "detail": "10 is too small", "param": "size", "status": 400}, 400)

    with Client(service.url, "key") as client, pytest.raises(ApiError, match=r"^10 is too small \(size\)$"):
        client.submit({})


@pytest.mark.parametrize("page", [b"<html>" + b"x" * 10_000, b"[1]", b""])
def test_another_answer_is_told_by_its_status(service: Service, page: bytes) -> None:
    """A proxy's error page is not poured over the terminal."""
    service.answer(page, 502)

    with Client(service.url, "key") as client, pytest.raises(ApiError, match=r"^HTTP 502 Bad Gateway$"):
        client.job("job_1")


def test_a_service_that_is_not_there_is_told_by_its_address() -> None:
    """Nobody at the address: the message names it."""
    with Client("http://127.0.0.1:1", "key") as client, pytest.raises(ApiError, match=r"http://127\.0\.0\.1:1/? does not answer"):
        client.job("job_1")


def test_the_key_is_not_sent_to_the_file_store(service: Service) -> None:
    """Downloads go to a presigned URL of another service; the API key stays here."""
    service.answer(b"image")

    with Client("http://127.0.0.1:1", "key") as client:
        assert client.download({"url": f"{service.url}/image.png?signature=x"}) == b"image"

    assert "Authorization" not in service.asked[0][2]


def test_a_failed_job_says_why() -> None:
    """The reason of a job that did not succeed is in the message."""
    assert failure({"id": "job_1", "status": "failed", "error": {"code": "decoder_oom", "message": "out of memory"}}) == (
        "job job_1 failed: out of memory"
    )
    assert failure({"id": "job_1", "status": "canceled", "error": None}) == "job job_1 canceled: no reason was given"
