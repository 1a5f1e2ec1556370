"""Stand-ins with the real interface, for what a test must steer or watch. Everything else in the tests is the real thing."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable


class FakeResolver:
    """
    Answers host names from a table. A name with several answers gives them in turn, the last one for ever.

    That is how a hostile DNS server flips: a public address for the check, an inside one for the connection.
    """

    def __init__(self, **answers: list[list[str]]) -> None:
        self._answers = {name.replace("_", "."): list(turns) for name, turns in answers.items()}
        self.num_questions = 0

    def __call__(self, host: str, port: int) -> list[str]:
        self.num_questions += 1
        if host not in self._answers:
            raise OSError("name or service not known")
        turns = self._answers[host]
        return turns.pop(0) if len(turns) > 1 else turns[0]


Script = Callable[[socket.socket, str], None]
"""What a server does with one connection, given the request line."""


class ScriptedServer:
    """A server on loopback that answers each connection by a script, in a thread of its own."""

    def __init__(self, script: Script, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[str] = []
        self._script = script
        self._tls = tls
        self._listener = socket.create_server((host, 0))
        self.host, self.port = self._listener.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def close(self) -> None:
        # shutdown wakes the accept; close alone would leave it waiting.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            if self._tls:
                connection = stack.enter_context(self._tls.wrap_socket(connection, server_side=True))
            request = b""
            while b"\r\n\r\n" not in request:
                received = connection.recv(4096)
                if not received:
                    return
                request += received
            self.requests.append(request.decode())
            self._script(connection, request.split(b"\r\n")[0].decode())
