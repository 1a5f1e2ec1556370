"""One delivery at a time over real sockets: what a receiver gets, and that nothing it does hurts the sender."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook

from services.webhook_sender.deliver import Deliverer
from services.webhook_sender.schedule import Answer
from shared.egress import EgressPolicy
from shared.trace import TraceContext
from shared.webhooks import new_secret
from tests.fakes import FakeResolver, Script, ScriptedServer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SECRET = new_secret()
LOOPBACK = EgressPolicy("127.0.0.0/8")
BODY = '{"id":"evt_1","data":{"prompt":"画"}}'.encode()


@contextlib.asynccontextmanager
async def receiving(handler: Handler) -> AsyncIterator[str]:
    """A receiver on loopback; its URL."""
    application = web.Application(client_max_size=1 << 20)
    application.router.add_route("*", "/{path:.*}", handler)
    # handler_cancellation: a receiver that waits for ever must not hold up the end of the test.
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook?token=secret"
    finally:
        await runner.cleanup()


TRACE = TraceContext("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=1")


async def post(url: str, policy: EgressPolicy = LOOPBACK, attempt: int = 1, timeout_s: float = 5) -> Answer:
    async with Deliverer(policy, timeout_s=timeout_s, connect_s=1) as deliverer:
        return await deliverer.deliver(url, "evt_1", BODY, [SECRET], int(time.time()), attempt, TRACE)


def answer_of(handler: Handler, **options: Any) -> Answer:
    async def story() -> Answer:
        async with receiving(handler) as url:
            return await post(url, **options)

    return asyncio.run(story())


def raw_answer_of(script: Script, **options: Any) -> Answer:
    """The answer when the receiver does with the bare connection what no HTTP server would."""
    with contextlib.closing(ScriptedServer(script)) as server:
        return asyncio.run(post(server.url, **options))


def test_a_receiver_can_verify_what_it_gets() -> None:
    """The exact bytes arrive, with headers the public library verifies, and 2xx is success."""
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request)
        Webhook(SECRET).verify(await request.read(), dict(request.headers))
        return web.Response(status=202, text="thanks")

    answer = answer_of(handler, attempt=3)
    assert (answer.status, answer.reply, answer.error) == (202, b"thanks", None)
    headers = seen[0].headers
    assert headers["webhook-id"] == "evt_1"
    assert headers["X-Attempt"] == "3"
    assert headers["Content-Type"] == "application/json"
    assert headers["User-Agent"].startswith("glmq/")
    assert (headers["traceparent"], headers["tracestate"]) == (TRACE.traceparent, TRACE.tracestate)
    assert seen[0].path_qs == "/hook?token=secret"


def test_a_retry_repeats_id_and_bytes() -> None:
    """500, then 200: the second attempt has the same id and body, and its own number."""
    seen: list[tuple[str, str, bytes]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.headers["webhook-id"], request.headers["X-Attempt"], await request.read()))
        return web.Response(status=500 if len(seen) == 1 else 200)

    async def story() -> list[int | None]:
        async with receiving(handler) as url:
            return [(await post(url, attempt=attempt)).status for attempt in (1, 2)]

    assert asyncio.run(story()) == [500, 200]
    assert seen == [("evt_1", "1", BODY), ("evt_1", "2", BODY)]


def test_redirects_are_not_followed() -> None:
    """A 302 to loopback is an answer like any other; its target hears nothing."""
    paths: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        paths.append(request.path)
        raise web.HTTPFound(f"http://127.0.0.1:{request.url.port}/inside")

    assert answer_of(handler).status == 302
    assert paths == ["/hook"]


def test_a_silent_receiver_is_cut_at_the_time_limit() -> None:
    """No answer within the limit is an error, at the limit."""

    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    started = time.monotonic()
    answer = answer_of(handler, timeout_s=0.5)
    assert time.monotonic() - started < 20
    assert (answer.status, answer.error) == (None, "no answer within 0.5 s")
    assert 400 < answer.latency_ms < 20_000


def test_dripping_headers_do_not_extend_the_limit() -> None:
    """A byte now and then is not an answer."""

    def drip(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            connection.sendall(b"a")
            time.sleep(0.05)

    started = time.monotonic()
    assert raw_answer_of(drip, timeout_s=0.5).error == "no answer within 0.5 s"
    assert time.monotonic() - started < 20


def test_a_dripping_body_does_not_spoil_success() -> None:
    """The status was said; what drips after it is read for a second at most."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(600):
                await response.write(b"a")
                await asyncio.sleep(0.1)
        return response

    started = time.monotonic()
    answer = answer_of(handler)
    assert time.monotonic() - started < 30
    assert answer.status == 200
    assert answer.reply is not None
    assert 1 <= len(answer.reply) < 300


def test_a_huge_answer_is_not_read() -> None:
    """Of 10 MB the first 2 KiB are kept, and the connection is closed before the receiver has sent much."""
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(160):
                await response.write(b"x" * 65536)
                sent += 65536
        return response

    assert answer_of(handler).reply == b"x" * 2048
    assert sent < 8 << 20


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000], ids=["close", "cut", "ssh", "long"]
)
def test_an_early_close_or_nonsense_is_an_error(said: bytes) -> None:
    """What is not an HTTP answer is told as such."""

    answer = raw_answer_of(lambda connection, _: connection.sendall(said))
    assert answer.status is None
    assert answer.error == "the connection ended before an answer, or the answer was not HTTP"


def test_nobody_there_is_an_error() -> None:
    """A refused connection, a host without TLS and an unknown name each say so, and no address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert asyncio.run(post(f"http://127.0.0.1:{port}/")).error == "the connection was refused or failed"
    unknown = asyncio.run(post("http://nobody.example/", EgressPolicy(resolver=FakeResolver())))
    assert unknown.error == "webhook: the host nobody.example was not found."

    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    async def story() -> Answer:
        async with receiving(handler) as url:
            return await post(url.replace("http:", "https:"))

    assert "TLS" in (asyncio.run(story()).error or "")


def test_inside_addresses_are_refused_at_each_attempt() -> None:
    """By number or by name, what is not allow-listed gets no connection."""
    names = FakeResolver(inside_example=[["127.0.0.1"]], mixed_example=[["93.184.216.34", "127.0.0.1"]])
    with contextlib.closing(ScriptedServer(lambda connection, _: None)) as server:
        for policy in (EgressPolicy(resolver=names), EgressPolicy("127.0.0.99", names)):
            for host in ("127.0.0.1", "127.1", "[::ffff:127.0.0.1]", "inside.example", "mixed.example", "169.254.169.254"):
                for target in (f"http://{host}:{server.port}/", f"http://{host}/"):
                    error = asyncio.run(post(target, policy)).error
                    assert error is not None
                    assert error.startswith("webhook: ")
        assert server.num_connections == 0


def test_the_checked_address_is_the_one_connected() -> None:
    """DNS is asked once for a connection; what it would answer next does not matter, and the next connection is checked anew."""
    hosts: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        hosts.append(request.headers["Host"])
        return web.Response(headers={"Connection": "close"})

    async def story() -> None:
        resolver = FakeResolver(flip_example=[["127.0.0.1"], ["10.0.0.1"]])
        async with receiving(handler) as url, Deliverer(EgressPolicy("127.0.0.1", resolver)) as deliverer:
            port = url.split(":")[2].split("/")[0]
            for status in (200, None):
                answer = await deliverer.deliver(f"http://flip.example:{port}/", "evt_1", BODY, [SECRET], 1, 1)
                assert answer.status == status
            assert resolver.num_questions == 2
            assert hosts == [f"flip.example:{port}"]

    asyncio.run(story())


def test_a_name_server_that_hangs_costs_the_connect_time_only() -> None:
    """The look-up is left behind after the connect limit, without a trace of its late answer."""

    release = threading.Event()

    def hang(host: str, port: int) -> list[str]:
        release.wait(30)
        return ["127.0.0.1"]

    started = time.monotonic()
    answer = asyncio.run(post("http://slow.example/", EgressPolicy("127.0.0.1", hang)))
    assert time.monotonic() - started < 20
    assert answer.error == "no connection within 1 s"
    release.set()
    time.sleep(0.5)
    gc.collect()


_FAR = "Mon, 01 Jan 2030 00:00:00 +99999999999999999999"


@pytest.mark.parametrize(
    ("status", "value", "expected_s"),
    [(503, "120", 120), (429, "7", 7), (500, "120", None), *((503, text, None) for text in ("soon", "-1", "9" * 30, _FAR))],
)
def test_retry_after_is_read(status: int, value: str, expected_s: float | None) -> None:
    """Seconds on 429 and 503; nonsense is as if it were not there."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Retry-After": value})

    assert answer_of(handler).retry_after_s == expected_s


def test_retry_after_may_be_a_date() -> None:
    """The other form HTTP allows."""

    async def handler(request: web.Request) -> web.Response:
        at = datetime.now(UTC) + timedelta(seconds=90)
        return web.Response(status=503, headers={"Retry-After": format_datetime(at, usegmt=True)})

    wait_s = answer_of(handler).retry_after_s
    assert wait_s is not None
    assert 80 < wait_s <= 90
