"""A webhook receiver as a customer would write it: a small HTTP server that believes only what is signed."""

from __future__ import annotations

import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from standardwebhooks import Webhook, WebhookVerificationError

_MAX_BODY_BYTES = 64 << 10
"""Three times what a webhook may weigh."""

_POLL_S = 0.05


class WebhookReceiver:
    """Listens on a free port of loopback and keeps the events whose signature is right."""

    def __init__(self, secret: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.num_refused = 0
        self._webhook = Webhook(secret)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": _POLL_S}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/webhook"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, body: bytes, headers: dict[str, str]) -> bool:
        """Keep an event if it is signed by the secret; False if it is not."""
        try:
            event = self._webhook.verify(body, headers)
        except (WebhookVerificationError, ValueError):
            # ValueError: headers so malformed that the library does not get as far as refusing them.
            self.num_refused += 1
            return False
        self.events.append(event)
        return True

    def await_event(self, job_id: str, event_type: str, timeout_s: float) -> dict[str, Any] | None:
        """The event of this type about this job, once it came; None if it did not in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for event in list(self.events):
                if event["type"] == event_type and event["data"]["id"] == job_id:
                    return event
            time.sleep(_POLL_S)
        return None


def _handler(receiver: WebhookReceiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if length > _MAX_BODY_BYTES:
                self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                return
            taken = receiver.take(self.rfile.read(length), dict(self.headers.items()))
            self._answer(HTTPStatus.NO_CONTENT if taken else HTTPStatus.UNAUTHORIZED)

        def _answer(self, status: HTTPStatus) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    return Handler
