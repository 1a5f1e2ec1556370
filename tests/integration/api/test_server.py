"""The API as a process: gunicorn's threads, hostile connections, lost stores, SIGTERM, and what the log may know."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from infra.embedded.ports import free_port
from services.api.settings import ApiSettings
from shared.checkpoint import ModelInfo
from tests.integration.api.conftest import Account, png
from tests.nursery import Nursery
from tests.stack import wait_until

SECRET_WORDS = "ZEBRA-PROMPT"


class Server:
    """`python -m services.api` on a free port."""

    def __init__(self, nursery: Nursery, settings: ApiSettings, log: Path, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        values = {
            "DATABASE_URL": settings.database_url.get_secret_value(),
            "REDIS_URL": settings.redis_url.get_secret_value(),
            "S3_ENDPOINT": settings.s3_endpoint,
            "S3_ACCESS_KEY": settings.s3_access_key,
            "S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
            "S3_BUCKET": settings.s3_bucket,
            "SECRET_KEY": settings.secret_key.get_secret_value(),
            "API_PORT": str(self.port),
            "API_READ_TIMEOUT_S": "1",
            "MAX_BODY_BYTES": str(1 << 20),
            **environment,
        }
        self.process = nursery.start("services.api", {**os.environ, **{f"GLMQ_{name}": value for name, value in values.items()}}, log)
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def log(self) -> str:
        return self._log.read_text()

    def send(self, data: bytes, timeout_s: float = 5) -> bytes:
        """Send bytes as they are; what comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout_s) as connection:
            connection.sendall(data)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            return answer

    def stop(self) -> float:
        """SIGTERM; seconds until every process of it is gone."""
        started = time.monotonic()
        self.process.terminate()
        self.process.wait(30)
        return time.monotonic() - started


@pytest.fixture
def server(nursery: Nursery, settings: ApiSettings, account: Account, model: ModelInfo, tmp_path: Path) -> Iterator[Server]:
    server = Server(nursery, settings, tmp_path / "api.log")
    yield server
    if server.process.poll() is None:
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()


def test_a_job_over_a_socket(server: Server, account: Account) -> None:
    """Submit and read over real HTTP; the log has one JSON line per request and neither prompts nor keys nor queries."""
    headers = {"Authorization": f"Bearer {account.keys['submit']}", "X-Request-Id": "my-id.1"}
    request = {"prompt": SECRET_WORDS, "metadata": {"k": SECRET_WORDS}, "webhook": f"https://hooks.example/{SECRET_WORDS}"}
    job = httpx.post(f"{server.url}/v1/jobs", json=request, headers=headers)
    assert job.status_code == 202, job.text
    assert job.headers["X-Request-Id"] == "my-id.1"
    assert httpx.get(server.url + job.headers["Location"], headers=headers).json()["id"] == job.json()["id"]
    httpx.get(f"{server.url}/v1/jobs?custom_id={SECRET_WORDS}", headers=headers)
    httpx.post(f"{server.url}/v1/jobs", json={**request, "steps": SECRET_WORDS}, headers=headers)

    log = server.log()
    lines = [json.loads(line) for line in log.splitlines()]
    [submitted] = [line for line in lines if line.get("method") == "POST" and line["status"] == 202]
    assert submitted["route"] == "/v1/jobs"
    assert submitted["request_id"] == "my-id.1"
    assert submitted["tenant_id"] == account.tenant_id
    assert submitted["service"] == "api"
    assert isinstance(submitted["ms"], float)
    for secret in (SECRET_WORDS, account.keys["submit"], account.keys["submit"][18:]):
        assert secret not in log


def test_lying_bodies(server: Server, account: Account) -> None:
    """Chunks without end are cut at the limit, a body shorter than announced is 400, and half a header is hung up on."""
    key = account.keys["submit"]
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"

    def status(rest: bytes) -> int:
        return int(server.send(head.encode() + rest).split()[1])

    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert status(b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 4 + b'10\r\n{"prompt":"fox"}\r\n0\r\n\r\n') == 202
    assert status(b'Transfer-Encoding: chunked\r\n\r\nf\r\n{"prompt":"fox"}\r\n0\r\n\r\n') == 400
    assert status(b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 20 + b"0\r\n\r\n") == 413
    # Complete before the limit, blanks beyond it: nothing may be cut off in silence.
    whole = b'10\r\n{"prompt":"fox"}\r\n' + chunk * 20 + b"0\r\n\r\n"
    assert status(b"Transfer-Encoding: chunked\r\n\r\n" + whole) == 413
    assert status(b"Content-Length: 9999999999\r\n\r\n{}") == 413
    assert status(b'Content-Length: 100\r\n\r\n{"prompt"') == 400
    assert server.send(b"GET /healthz HTTP/1.1\r\nHost:") == b""


def test_what_is_no_http_is_a_problem_too(server: Server) -> None:
    """What gunicorn refuses by itself has the form and the codes of all other refusals, is one answer, and is not quoted in the log."""

    def refused(data: bytes) -> tuple[int, str, str]:
        head, _, rest = server.send(data).partition(b"\r\n\r\n")
        names = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        body = json.loads(rest)
        assert names["Content-Type"] == "application/problem+json"
        assert int(names["Content-Length"]) == len(rest)
        assert names["X-Request-Id"] == body["request_id"] == body["instance"].rpartition("#")[2]
        assert body["type"].endswith(f"/problems/{body['code'].replace('_', '-')}")
        assert body["error"] == {"message": body["detail"], "type": "invalid_request_error", "param": None, "code": body["code"]}
        assert body["status"] == int(head.split()[1])
        assert SECRET_WORDS not in rest.decode()
        return body["status"], body["code"], body["detail"]

    get = b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n"
    long = SECRET_WORDS.encode() * 1000
    assert refused(b"GET /v1/jobs?custom_id=" + long + b" HTTP/1.1\r\nHost: x\r\n\r\n")[:2] == (414, "uri_too_long")
    assert refused(get + b"X-Long: " + long + b"\r\n\r\n")[:2] == (431, "headers_too_large")
    assert refused(get + b"X-Many: 1\r\n" * 200 + b"\r\n")[:2] == (431, "headers_too_large")
    for header, told in (
        (b"Content-Length: -1", "Content-Length"),
        (b"Content-Length: 1\r\nContent-Length: 2", "Content-Length"),
        (b"Transfer-Encoding: gzip", "Transfer-Encoding"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3", "Content-Length"),
        (b"Expect: " + SECRET_WORDS.encode(), "Expect"),
        (b"Authorization : " + SECRET_WORDS.encode(), "header"),
        (SECRET_WORDS.encode(), "header"),
    ):
        status, code, detail = refused(get + header + b"\r\n\r\n")
        assert (status, code) == (400, "invalid_request"), header
        assert told in detail, header
    for line in (b"\x16\x03\x01\x02\x00\x01", b"GET /v1/jobs HTTP/9.9", b"GET", b"G?T / HTTP/1.1"):
        assert refused(line + b"\r\n\r\n")[:2] == (400, "invalid_request")
    # Answered before its body was looked at: broken chunks get no second answer, which would be taken for that of the next request.
    answers = server.send(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n\r\n")
    assert answers.count(b"HTTP/1.1 ") == answers.count(b"HTTP/1.1 401 ") == 1
    assert SECRET_WORDS not in server.log()


def test_silent_clients_do_not_hold_every_thread(server: Server) -> None:
    """Twice as many half-sent requests as threads delay the others by the silence limit, not for ever."""
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(32)]
    try:
        for connection in connections:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert httpx.get(f"{server.url}/healthz", timeout=10).status_code == 200
    finally:
        for connection in connections:
            connection.close()


def test_sigterm_ends_within_8_s(server: Server) -> None:
    """SIGTERM ends the process soon and with status 0, a kept-alive connection or not."""
    with httpx.Client() as client:
        client.get(f"{server.url}/healthz")
        assert server.stop() < 8
    assert server.process.returncode == 0


def test_long_polls_hold_up_nobody(nursery: Nursery, settings: ApiSettings, account: Account, model: ModelInfo, tmp_path: Path) -> None:
    """With ten times as many long polls as requests are worked on at once, others are answered as ever; SIGTERM answers them all."""
    server = Server(nursery, settings, tmp_path / "api.log", API_THREADS="2", API_MAX_WAITING="40")
    headers = {"Authorization": f"Bearer {account.keys['submit']}"}
    job_id = httpx.post(f"{server.url}/v1/jobs", json={"prompt": "a fox"}, headers=headers).json()["id"]
    with ThreadPoolExecutor(20) as clients:

        def poll() -> tuple[int, str]:
            answer = httpx.get(f"{server.url}/v1/jobs/{job_id}?wait=50", headers=headers, timeout=60)
            return answer.status_code, answer.json()["status"]

        polls = [clients.submit(poll) for _ in range(20)]
        time.sleep(1)
        started = time.monotonic()
        for _ in range(10):
            assert httpx.get(f"{server.url}/v1/jobs/{job_id}", headers=headers).status_code == 200
        assert time.monotonic() - started < 20
        assert not any(poll.done() for poll in polls)
        assert server.stop() < 30
        assert [poll.result() for poll in polls] == [(200, "queued")] * 20


def test_database_away_is_503_in_time(nursery: Nursery, settings: ApiSettings, account: Account, tmp_path: Path) -> None:
    """Without a database: 503 within 6 s, with Retry-After, whether it refuses or is silent; the process lives on."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, port in (("refusing", free_port()), ("silent", silent.getsockname()[1])):
            server = Server(nursery, settings, tmp_path / f"{name}.log", DATABASE_URL=f"postgresql://u:p@127.0.0.1:{port}/x")
            try:
                started = time.monotonic()
                headers = {"Authorization": f"Bearer {account.keys['submit']}"}
                answer = httpx.post(f"{server.url}/v1/jobs", json={"prompt": "a fox"}, headers=headers, timeout=20)
                assert time.monotonic() - started < 12
                assert (answer.status_code, answer.json()["code"]) == (503, "engine_unavailable")
                assert int(answer.headers["Retry-After"]) > 0
                assert "u:p@" not in server.log()
            finally:
                server.stop()


def test_stores_away(nursery: Nursery, settings: ApiSettings, account: Account, model: ModelInfo, tmp_path: Path) -> None:
    """Without Redis jobs are still accepted and canceled; without S3 only those with images are refused."""
    dead = f"127.0.0.1:{free_port()}"
    server = Server(nursery, settings, tmp_path / "api.log", REDIS_URL=f"redis://{dead}/0", S3_ENDPOINT=f"http://{dead}", API_THREADS="4")
    try:
        client = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {account.keys['submit']}"}, timeout=30)
        with client:
            job = client.post("/v1/jobs", json={"prompt": "a fox"})
            assert job.status_code == 202
            assert client.post(f"/v1/jobs/{job.json()['id']}/cancel").status_code == 200
            refused = client.post("/v1/jobs", files={"request": (None, '{"prompt": "a fox"}'), "image": ("a.png", png())})
            assert (refused.status_code, refused.json()["code"]) == (503, "engine_unavailable")
            checks = client.get("/readyz").json()["checks"]
            assert (checks["database"], checks["redis"], checks["s3"]) == ("ok", "down", "down")
    finally:
        server.stop()


def test_wrong_settings_are_refused_by_name() -> None:
    """A missing or wrong setting ends the start with its name, without a traceback and without its value."""
    environment = {**os.environ, "GLMQ_API_PORT": "hunter2"}
    run = subprocess.run([sys.executable, "-m", "services.api"], env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert run.returncode != 0
    assert "GLMQ_API_PORT" in run.stderr
    assert "GLMQ_DATABASE_URL" in run.stderr
    assert "Traceback" not in run.stderr
    assert "hunter2" not in run.stderr
