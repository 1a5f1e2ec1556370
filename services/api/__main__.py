"""`python -m services.api`: gunicorn with threads around `create_app`. Knows sockets and signals; knows no route."""

from __future__ import annotations

import logging
import signal
import socket
import struct
from types import FrameType
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from services.api.app import create_app
from services.api.http_worker import MAX_HEADER, MAX_HEADERS, MAX_REQUEST_LINE, ProblemWorker
from services.api.settings import ApiSettings
from shared.errors import StartupError
from shared.interpreter import begin_to_serve
from shared.logs import configure_logs
from shared.settings import read_settings

_IDLE_CONNECTIONS = 1000
_KEEP_ALIVE_S = 20
_STOP_S = 6
"""Requests get this long to end after SIGTERM; the process is gone within 8 s."""


class _StructuredLog(Logger):
    """gunicorn's messages go where all other lines go. Its access log is off: `envelope.py` writes one line per request."""

    def setup(self, cfg: Any) -> None:
        self.error_log.setLevel(logging.INFO)
        self.error_log.handlers = []
        self.error_log.propagate = True

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        pass


class _Server(BaseApplication):
    """gunicorn, configured by our settings and by nothing else."""

    def __init__(self, settings: ApiSettings) -> None:
        self.settings = settings
        super().__init__()

    def load_config(self) -> None:
        num_threads = self.settings.api_threads + self.settings.api_max_waiting
        options = {
            "bind": f"{self.settings.api_host}:{self.settings.api_port}",
            "worker_class": ProblemWorker,
            "limit_request_line": MAX_REQUEST_LINE,
            "limit_request_fields": MAX_HEADERS,
            "limit_request_field_size": MAX_HEADER,
            "workers": self.settings.api_workers,
            # Who waits for a job holds a thread and nothing else. The threads are started when they are needed.
            "threads": num_threads,
            # Of those beyond the threads, connections that are only kept alive.
            "worker_connections": num_threads + _IDLE_CONNECTIONS,
            # Longer than clients keep an idle connection (httpx and Node 5 s): a request on one that was just closed fails.
            "keepalive": _KEEP_ALIVE_S,
            "graceful_timeout": _STOP_S,
            "logger_class": _StructuredLog,
            "proc_name": "glmq-api",
            # It would lie in the home folder, where two stacks of one user would share it.
            "control_socket_disable": True,
            "when_ready": lambda arbiter: _limit_silence(arbiter.LISTENERS, self.settings.api_read_timeout_s),
            "post_worker_init": _after_load,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        # After the fork: connection pools and threads do not survive one.
        return create_app(self.settings)


def _limit_silence(listeners: list[Any], seconds: int) -> None:
    """
    Close connections that go silent in the middle of a request, or read nothing of their answer.

    gunicorn reads and writes with blocking sockets and no timeout, so a few clients that send half a header would hold every
    thread for ever. Accepted sockets inherit the listener's kernel timeouts.
    """
    for listener in listeners:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            listener.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))


def _after_load(worker: Any) -> None:
    _end_waits_at_stop(worker.wsgi)
    begin_to_serve()


def _end_waits_at_stop(app: Any) -> None:
    """At SIGTERM, answer long polls with what there is and end event streams: their clients come back, to another process."""
    stop = signal.getsignal(signal.SIGTERM)

    def end_waits(number: int, frame: FrameType | None) -> None:
        app.extensions["glmq"].waiting.close()
        if callable(stop):
            stop(number, frame)

    signal.signal(signal.SIGTERM, end_waits)


def main() -> None:
    """Serve until SIGTERM."""
    try:
        settings = read_settings(ApiSettings)
    except StartupError as error:
        raise SystemExit(f"glmq api: {error}") from None
    configure_logs(settings, "api")
    _Server(settings).run()


if __name__ == "__main__":
    main()
