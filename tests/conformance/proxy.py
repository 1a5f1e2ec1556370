"""
A TCP proxy between a client and the service. It loses answers: what the client sent has arrived, and it hears nothing of it. Or it
overhears them: clients do not tell of the comments in a stream.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def overhearing(port: int, heard: bytearray) -> Iterator[str]:
    """Serve a URL in front of `port`; all that the service sends is appended to `heard`."""
    with _serving(port, 0, lambda: None, heard) as url:
        yield url


@contextmanager
def losing_answers(port: int, count: int, has_arrived: Callable[[], object]) -> Iterator[str]:
    """
    Serve a URL in front of `port` that cuts its first `count` connections once `has_arrived`; later ones are let through.

    Args:
        has_arrived: blocks until the service has taken the request.
    """
    with _serving(port, count, has_arrived, bytearray()) as url:
        yield url


@contextmanager
def _serving(port: int, count: int, has_arrived: Callable[[], object], heard: bytearray) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    left = count

    def serve() -> None:
        nonlocal left
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            is_cut, left = left > 0, left - 1
            threading.Thread(target=_connect, args=(client, port, has_arrived if is_cut else None, heard), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def _connect(client: socket.socket, port: int, has_arrived: Callable[[], object] | None, heard: bytearray) -> None:
    with client, socket.create_connection(("127.0.0.1", port)) as server:
        threading.Thread(target=_pump, args=(client, server, bytearray()), daemon=True).start()
        if has_arrived is not None:
            has_arrived()
            # The client's end first, and at once: it must not think that there will be an answer.
            client.shutdown(socket.SHUT_RDWR)
            return
        _pump(server, client, heard)


def _pump(source: socket.socket, target: socket.socket, heard: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            heard += data
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
