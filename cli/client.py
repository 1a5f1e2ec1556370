"""glmq's HTTP API as the command line uses it: submit, look, cancel, download. Knows no stack and no data folder."""

from __future__ import annotations

import json
import mimetypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

Job = dict[str, Any]
"""A job as `/openapi.json` of the service describes it."""

TERMINAL = frozenset({"succeeded", "failed", "canceled", "expired"})

_TIMEOUT_S = 30.0
_POLL_S = 0.05
"""A person watches: phases of a small model last a tenth of a second."""
_PATIENCE_S = 60.0
"""A service that does not answer for so long is taken for gone; a restart takes less."""


class ApiError(Exception):
    """The service refused or failed; the message is what it said, in words for a person."""


class Client:
    """One service and one key."""

    def __init__(self, url: str, api_key: str) -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S, trust_env=_may_use_proxy(url))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def submit(self, request: dict[str, Any], images: Sequence[Path] = ()) -> Job:
        """
        Ask for images.

        Args:
            request: body of `POST /v1/jobs`.
            images: source files, sent along.
        Raises:
            ApiError: refused, or not reachable.
        """
        if not images:
            return self._json(self._send("POST", "/v1/jobs", json=request))
        body = ("request", ("", json.dumps(request).encode(), "application/json"))
        files = [("image", (image.name, image.read_bytes(), _media_type(image))) for image in images]
        return self._json(self._send("POST", "/v1/jobs", files=[body, *files]))

    def job(self, job_id: str) -> Job:
        return self._json(self._send("GET", f"/v1/jobs/{job_id}"))

    def cancel(self, job_id: str) -> None:
        self._send("POST", f"/v1/jobs/{job_id}/cancel")

    def wait(self, job: Job, on_change: Callable[[Job], None]) -> Job:
        """Look at a job until it is over; a service that restarts meanwhile is waited for."""
        deadline = time.monotonic() + _PATIENCE_S
        while job["status"] not in TERMINAL:
            time.sleep(_POLL_S)
            try:
                job = self.job(job["id"])
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                continue
            deadline = time.monotonic() + _PATIENCE_S
            on_change(job)
        return job

    def download(self, output: dict[str, Any]) -> bytes:
        """The bytes of one of a job's `outputs`."""
        try:
            # Not by our own connection: the files lie in another service, which must not see the key.
            answer = httpx.get(output["url"], timeout=_TIMEOUT_S, follow_redirects=True, trust_env=_may_use_proxy(output["url"]))
        except httpx.HTTPError as error:
            raise ApiError(f"the image cannot be fetched: {error}") from None
        if answer.status_code != httpx.codes.OK:
            raise ApiError(f"the image cannot be fetched: HTTP {answer.status_code}")
        return answer.content

    def model(self) -> dict[str, Any]:
        """The loaded model: its name, limits and defaults."""
        return dict(self._json(self._send("GET", "/v1/models"))["data"][0])

    def webhook_secret(self) -> str:
        """The secret that signs webhooks of jobs which name only a URL."""
        return str(self._json(self._send("GET", "/v1/webhooks/default/secret"))["key"])

    def get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        return self._json(self._send("GET", path, params=query))

    def post(self, path: str, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
        """`key`: an Idempotency-Key."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return self._json(self._send("POST", path, json=body, headers=headers))

    def save(self, path: str, file: Path) -> None:
        """
        Get something that may be large into a file, which is whole or not there.

        Raises:
            ApiError: refused, broken off, or not reachable.
        """
        part = file.with_name(f"{file.name}.part")
        try:
            with self._http.stream("GET", path) as answer, part.open("wb") as opened:
                if answer.is_error:
                    answer.read()
                    raise ApiError(_problem(answer))
                for piece in answer.iter_raw():
                    opened.write(piece)
        except httpx.HTTPError as error:
            raise Unreachable(f"{self._http.base_url} does not answer: {error}") from None
        part.replace(file)

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._json(self._send("PATCH", path, json=body))

    def delete(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        return self._json(self._send("DELETE", path, params=query))

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **content)
        except httpx.HTTPError as error:
            raise Unreachable(f"{self._http.base_url} does not answer: {error}") from None
        if answer.is_error:
            raise ApiError(_problem(answer))
        return answer

    @staticmethod
    def _json(answer: httpx.Response) -> dict[str, Any]:
        told: dict[str, Any] = answer.json()
        return told


class Unreachable(ApiError):  # noqa: N818 - reads as the state it is
    """Nobody answers, or the connection broke."""


def failure(job: Job) -> str:
    """Why a job did not succeed, in words for a person."""
    error = job.get("error") or {}
    why = error.get("message") or error.get("detail") or error.get("code") or "no reason was given"
    return f"job {job['id']} {job['status']}: {why}"


def _media_type(file: Path) -> str:
    return mimetypes.guess_type(file.name)[0] or "application/octet-stream"


def _may_use_proxy(url: str) -> bool:
    """A proxy named in the environment is for other machines; it cannot reach this one's loopback."""
    return urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1")


def _problem(answer: httpx.Response) -> str:
    """An RFC 9457 problem as one line; other bodies as the status alone, since they may be long pages."""
    try:
        told = answer.json()
    except ValueError:
        return f"HTTP {answer.status_code} {answer.reason_phrase}"
    if not isinstance(told, dict):
        return f"HTTP {answer.status_code} {answer.reason_phrase}"
    where = f" ({told['param']})" if told.get("param") else ""
    return f"{told.get('detail') or told.get('title') or answer.reason_phrase}{where}"
