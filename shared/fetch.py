"""
Fetch a small file from a customer's URL, without going where customers must not send us and without waiting for ever.

Knows HTTP and sockets; what may be reached is `egress.py`'s to say. Every hop is resolved once, checked, and connected by number.
One deadline covers names, TLS, headers, redirects and body: timeouts per socket operation would let a server that sends a byte a
second hold a thread for days. Environment proxies are ignored, since they would look the name up again.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from urllib.parse import urljoin

from shared.addresses import Address
from shared.egress import EgressPolicy, ParsedUrl
from shared.errors import RequestError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONNECT_TIMEOUT_S = 5.0
"""For one address of several; a host with a dead IPv6 address still answers in time."""


_USER_AGENT = "glmq"


class _Deadline:
    def __init__(self, timeout_s: float) -> None:
        self._at = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        """Raises TimeoutError when nothing remains."""
        remaining = self._at - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining


class _TimedReader(io.RawIOBase):
    """Reads a socket; each read may take what is left of the deadline."""

    def __init__(self, connection: socket.socket, deadline: _Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._connection.settimeout(self._deadline.remaining_s())
        return self._connection.recv_into(buffer)


class _TimedSocket:
    """As much of a socket as `http.client.HTTPResponse` asks for."""

    def __init__(self, connection: socket.socket, deadline: _Deadline) -> None:
        self._reader = _TimedReader(connection, deadline)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._reader)


def fetch(url: str, policy: EgressPolicy, max_bytes: int, timeout_s: float, param: str, tls: ssl.SSLContext | None = None) -> bytes:
    """
    GET a URL and return the body.

    Args:
        timeout_s: for everything together.
        param: the field that holds the URL, for the error.
        tls: what certificates to trust; None is the system's list.
    Raises:
        RequestError: `invalid_request` (not a plain URL), `payload_too_large`, or `input_fetch_failed` for all that goes wrong on
            the way; its text names hosts, never paths or queries, which may hold secrets.
        ForbiddenAddressError: the URL, or one that it redirects to, leads where it must not.
    """
    deadline = _Deadline(timeout_s)
    for _ in range(_MAX_REDIRECTS + 1):
        parsed = policy.check_url(url, param)
        try:
            addresses = policy.resolve_aside(parsed.host, parsed.port, param).result(deadline.remaining_s())
            answer = _get(parsed, addresses, deadline, max_bytes, tls or _system_tls())
        except TimeoutError:
            raise _failed(param, f"{parsed.netloc} did not answer within {timeout_s:g} s.") from None
        except ssl.SSLCertVerificationError as error:
            raise _failed(param, f"{parsed.netloc} has no valid certificate ({error.verify_message}).") from error
        except (OSError, http.client.HTTPException) as error:
            raise _failed(param, f"{parsed.netloc} cannot be reached, or broke off.") from error
        if answer.status in _REDIRECTS and answer.location:
            url = _next_url(parsed, answer.location, param)
        elif answer.status != http.HTTPStatus.OK:
            raise _failed(param, f"{parsed.netloc} answered with status {answer.status}.")
        elif len(answer.body) > max_bytes:
            raise RequestError("payload_too_large", f"{param}: the file has more than {max_bytes} bytes.", param)
        else:
            return answer.body
    raise _failed(param, f"more than {_MAX_REDIRECTS} redirects.")


@dataclass(frozen=True)
class _Answer:
    status: int
    location: str | None
    body: bytes
    """At most one byte more than was allowed; empty unless the status is 200."""


def _failed(param: str, what: str) -> RequestError:
    return RequestError("input_fetch_failed", f"{param}: {what}", param)


def _next_url(parsed: ParsedUrl, location: str, param: str) -> str:
    try:
        return urljoin(str(parsed), location)
    except ValueError:
        raise _failed(param, f"{parsed.netloc} redirects to what is not a URL.") from None


def _get(parsed: ParsedUrl, addresses: list[Address], deadline: _Deadline, max_bytes: int, tls: ssl.SSLContext) -> _Answer:
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(_connect(addresses, parsed.port, deadline))
        connection.settimeout(deadline.remaining_s())
        if parsed.scheme == "https":
            connection = stack.enter_context(tls.wrap_socket(connection, server_hostname=parsed.host))
        # identity: a compressed answer could be small on the wire and huge in memory.
        request = (
            f"GET {parsed.target} HTTP/1.1\r\nHost: {parsed.netloc}\r\nUser-Agent: {_USER_AGENT}\r\n"
            "Accept: image/png, image/jpeg, image/webp\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
        )
        connection.sendall(request.encode("ascii"))
        response = http.client.HTTPResponse(cast(socket.socket, _TimedSocket(connection, deadline)), method="GET")
        stack.callback(response.close)
        response.begin()
        if response.status != http.HTTPStatus.OK:
            return _Answer(response.status, response.getheader("Location"), b"")
        body = response.read(max_bytes + 1)
        if response.length and len(body) <= max_bytes:
            raise http.client.IncompleteRead(body, response.length)
        return _Answer(response.status, None, body)


def _connect(addresses: list[Address], port: int, deadline: _Deadline) -> socket.socket:
    """Try the addresses in turn."""
    last: OSError | None = None
    for address in addresses:
        limit_s = min(_CONNECT_TIMEOUT_S, deadline.remaining_s())
        try:
            return socket.create_connection((str(address), port), limit_s)
        except OSError as error:
            last = error
    raise ConnectionError("no address can be connected") from last


@functools.lru_cache(maxsize=1)
def _system_tls() -> ssl.SSLContext:
    # Kept: reading the certificates takes 20 ms.
    return ssl.create_default_context()
