"""
One attempt at one delivery: resolve, refuse inside addresses, sign, post, read the answer.

Knows HTTP and the egress policy; knows no database and no schedule. Redirects are not followed, proxies of the environment are not
used, and the first 2 KiB of the answer are all that is ever read.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from types import TracebackType
from typing import Self

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from services.webhook_sender.schedule import Answer
from shared.egress import EgressPolicy
from shared.errors import RequestError
from shared.trace import TraceContext
from shared.webhooks import sign

_MAX_REPLY_BYTES = 2048
_REPLY_S = 1.0
"""The status decides. Its text is for a person who looks for a fault, and a receiver that drips it is not waited for."""

_KEEP_ALIVE_S = 1.5
"""Less than common servers keep an idle connection (gunicorn 2 s, Node 5 s): a post on one just closed fails and waits 5 s."""

_MAY_ASK_TO_WAIT = frozenset({429, 503})
_PARAM = "webhook"


class Deliverer:
    """
    Posts to receivers over shared connections; an async context manager.

    Args:
        timeout_s: for name, connection, TLS, posting and the answer's head together.
        connect_s: for name, connection and TLS.
        tls: what certificates to trust; None is the system's list.
    """

    def __init__(self, policy: EgressPolicy, timeout_s: float = 15, connect_s: float = 5, tls: ssl.SSLContext | None = None) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._connect_s = connect_s
        self._tls = tls
        self._user_agent = f"glmq/{version('glmq')}"
        # A URL is judged by itself and the policy, which stays as it is; what is refused is not kept.
        self._target = functools.lru_cache(maxsize=1024)(lambda url: yarl.URL(str(policy.check_url(url, _PARAM)), encoded=True))

    async def __aenter__(self) -> Self:
        # Made here: aiohttp's objects belong to a running loop.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_CheckedResolver(self._policy),
                # Every new connection asks and checks again; an open one stays with the address that was checked.
                use_dns_cache=False,
                # The sender bounds what is in flight.
                limit=0,
                keepalive_timeout=_KEEP_ALIVE_S,
                ssl=self._tls or True,
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=_MAX_REPLY_BYTES,
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._session.close()

    async def deliver(
        self, url: str, event_id: str, body: bytes, secrets: Sequence[str], timestamp: int, attempt: int, trace: TraceContext | None = None
    ) -> Answer:
        """
        Post once. Whatever the receiver does comes back as an answer; nothing is raised for it.

        Args:
            timestamp: of this attempt, in seconds by the database's clock.
            attempt: 1 at the first try.
            trace: what the event belongs to.
        """
        headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": self._user_agent,
            "webhook-id": event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secrets, event_id, timestamp, body),
            "X-Attempt": str(attempt),
            **({} if trace is None else trace.headers()),
        }
        started = time.monotonic()
        answer = await self._post(url, headers, body)
        answer.latency_ms = round((time.monotonic() - started) * 1000)
        # Whoever reads the log must not be able to repeat the post.
        answer.headers = {**headers, "webhook-signature": " ".join(["v1,…"] * len(secrets))}
        return answer

    async def _post(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        # Texts of our own: aiohttp's name addresses, which are none of the customer's business when they are inside.
        try:
            # aiohttp asks no resolver about a host that is a number, so numbers are checked here.
            target = self._target(url)
            async with asyncio.timeout(self._timeout_s):
                response = await self._session.post(target, data=body, headers=headers, allow_redirects=False)
        except RequestError as error:
            return Answer(error=error.detail)
        except aiohttp.ConnectionTimeoutError:
            return Answer(error=f"no connection within {self._connect_s:g} s")
        except TimeoutError:
            return Answer(error=f"no answer within {self._timeout_s:g} s")
        except aiohttp.ClientSSLError:
            return Answer(error="the TLS connection failed; is the certificate valid for this host?")
        except aiohttp.ClientConnectorError:
            return Answer(error="the connection was refused or failed")
        except (aiohttp.ClientError, OSError):
            return Answer(error="the connection ended before an answer, or the answer was not HTTP")
        async with response:
            return Answer(response.status, await _read_reply(response), retry_after_s=_retry_after_s(response))


class _CheckedResolver(AbstractResolver):
    """Gives aiohttp the addresses that the policy has checked, as numbers, so that nothing looks the name up again."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        addresses = await asyncio.wrap_future(self._policy.resolve_aside(host, port, _PARAM))
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is held."""


async def _read_reply(response: aiohttp.ClientResponse) -> bytes:
    if response.content.at_eof():
        return b""
    received = bytearray()
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_REPLY_S):
            while len(received) < _MAX_REPLY_BYTES:
                chunk = await response.content.read(_MAX_REPLY_BYTES - len(received))
                if not chunk:
                    break
                received += chunk
    if not response.content.at_eof():
        # Or aiohttp keeps the connection and reads the rest.
        response.close()
    return bytes(received)


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """Seconds that an overloaded receiver asks for, given as a number or as a date; None if it asks for nothing readable."""
    text = response.headers.get("Retry-After", "").strip()
    if response.status not in _MAY_ASK_TO_WAIT or not text:
        return None
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    # A date without a zone is in UTC, as HTTP's are.
    return (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
