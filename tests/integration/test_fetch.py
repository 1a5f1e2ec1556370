"""A fetch over real sockets: what comes back, what is refused on the way, and that nothing takes longer than its deadline."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.egress import EgressPolicy
from shared.errors import ForbiddenAddressError, RequestError
from shared.fetch import fetch
from tests.fakes import FakeResolver, Script, ScriptedServer

LOOPBACK = EgressPolicy("127.0.0.0/8")


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    """Start scripted servers; all are closed afterwards."""
    with contextlib.ExitStack() as stack:

        def start(script: Script, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> ScriptedServer:
            server = ScriptedServer(script, host, tls)
            stack.callback(server.close)
            return server

        yield start


def reply(status: str, body: bytes = b"", **headers: str) -> Script:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
    return lambda connection, _: connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)


def get(url: str, policy: EgressPolicy = LOOPBACK, max_bytes: int = 1000, timeout_s: float = 5) -> bytes:
    return fetch(url, policy, max_bytes, timeout_s, "images.0.url")


def refusal(url: str, policy: EgressPolicy = LOOPBACK, timeout_s: float = 5) -> RequestError:
    with pytest.raises(RequestError) as caught:
        get(url, policy, timeout_s=timeout_s)
    assert caught.value.param == "images.0.url"
    assert "secret" not in caught.value.detail
    return caught.value


def test_the_body_comes_back(serve: Callable[..., ScriptedServer]) -> None:
    """One request with the host's name, without compression, and the bytes as they were sent."""
    server = serve(reply("200 OK", b"pixels"))
    policy = EgressPolicy("127.0.0.1", FakeResolver(images_example=[["127.0.0.1"]]))
    assert get(f"http://images.example:{server.port}/a?b=c#d", policy) == b"pixels"
    assert server.requests[0].startswith(f"GET /a?b=c HTTP/1.1\r\nHost: images.example:{server.port}\r\n")
    assert "Accept-Encoding: identity" in server.requests[0]


def test_chunks_are_joined(serve: Callable[..., ScriptedServer]) -> None:
    """An answer without a length is read to its end."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\npix\r\n3\r\nels\r\n0\r\n\r\n"
    assert get(serve(lambda connection, _: connection.sendall(chunked)).url) == b"pixels"
    unframed = b"HTTP/1.0 200 OK\r\n\r\npixels"
    assert get(serve(lambda connection, _: connection.sendall(unframed)).url) == b"pixels"


def test_the_checked_address_is_the_one_connected(serve: Callable[..., ScriptedServer]) -> None:
    """The name is looked up once a hop: an answer that flips to the inside after the check is never asked for."""
    server = serve(reply("200 OK", b"pixels"))
    resolver = FakeResolver(flip_example=[["127.0.0.1"], ["10.0.0.1"]])
    assert get(f"http://flip.example:{server.port}/", EgressPolicy("127.0.0.1", resolver)) == b"pixels"
    assert resolver.num_questions == 1


def test_a_dead_address_of_several_is_passed_over(serve: Callable[..., ScriptedServer]) -> None:
    """A host with one address that refuses connections is still reached."""
    server = serve(reply("200 OK", b"pixels"))
    resolver = FakeResolver(two_example=[["127.0.0.77", "127.0.0.1"]])
    assert get(f"http://two.example:{server.port}/", EgressPolicy("127.0.0.0/8", resolver)) == b"pixels"


def test_redirects_are_followed_within_reason(serve: Callable[..., ScriptedServer]) -> None:
    """Three hops, relative ones too; a fourth, or one to nowhere, is an error."""

    def count_down(connection: socket.socket, request_line: str) -> None:
        left = int(request_line.split()[1].strip("/"))
        reply("302 Found", Location=f"../{left - 1}")(connection, "") if left else reply("200 OK", b"pixels")(connection, "")

    server = serve(count_down)
    assert get(f"{server.url}/3") == b"pixels"
    assert "redirects" in refusal(f"{server.url}/4").detail
    for location in ("ftp://example.com/", "http://[::1/", "//user@127.0.0.1/", "http://exa\u00e4mple:0/"):
        assert refusal(serve(reply("302 Found", Location=location)).url).code in ("invalid_request", "input_fetch_failed")
    assert "302" in refusal(serve(reply("302 Found")).url).detail


def test_redirects_into_the_inside_are_refused(serve: Callable[..., ScriptedServer]) -> None:
    """Each hop is checked like the first: loopback, metadata and names that lead inside are not connected."""
    inside = serve(reply("200 OK", b"credentials"))
    policy = EgressPolicy("127.0.0.2", FakeResolver(inside_example=[["127.0.0.1"]]))
    for location in (f"http://127.0.0.1:{inside.port}/", "http://169.254.169.254/latest/", f"http://inside.example:{inside.port}/"):
        outside = serve(reply("302 Found", Location=location), host="127.0.0.2")
        with pytest.raises(ForbiddenAddressError):
            get(outside.url, policy)
        assert len(outside.requests) == 1
    assert inside.num_connections == 0


def test_the_inside_is_not_connected_at_all(serve: Callable[..., ScriptedServer]) -> None:
    """Without an allow-list, a loopback URL is refused before any connection."""
    server = serve(reply("200 OK", b"credentials"))
    with pytest.raises(ForbiddenAddressError):
        get(server.url, EgressPolicy())
    assert server.num_connections == 0


def test_proxies_of_the_environment_are_ignored(serve: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would look the name up again, past the check."""
    proxy, server = serve(reply("200 OK", b"proxied")), serve(reply("200 OK", b"pixels"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    assert get(server.url) == b"pixels"
    assert proxy.requests == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (reply("404 Not Found", b"secret"), "404"),
        (reply("500 Oops"), "500"),
        (reply("206 Partial Content", b"x"), "206"),
        (lambda connection, _: None, "broke off"),
        (lambda connection, _: connection.sendall(b"SSH-2.0-OpenSSH\r\n"), "broke off"),
        (lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"), "broke off"),
        (lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "broke off"),
        (lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500), "broke off"),
    ],
    ids=["404", "500", "206", "close", "ssh", "short", "bad-chunk", "many-headers"],
)
def test_what_is_no_file_is_an_error(serve: Callable[..., ScriptedServer], script: Script, said: str) -> None:
    """Every other answer, and every kind of nonsense, is `input_fetch_failed` and names the host but not the path."""
    error = refusal(f"{serve(script).url}/secret?token=secret")
    assert error.code == "input_fetch_failed"
    assert said in error.detail


def test_nobody_there_is_an_error() -> None:
    """A closed port and an unknown name say so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert refusal(f"http://127.0.0.1:{port}/").code == "input_fetch_failed"
    assert "not found" in refusal("http://nobody.example/", EgressPolicy(resolver=FakeResolver())).detail


def test_a_large_answer_is_cut_off(serve: Callable[..., ScriptedServer]) -> None:
    """Announced or not, no more than one byte beyond the limit is kept."""

    def endless(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    for script in (endless, reply("200 OK", b"x" * 1001)):
        assert refusal(serve(script).url).code == "payload_too_large"
    assert len(get(serve(reply("200 OK", b"x" * 1000)).url)) == 1000


def drip(head: bytes) -> Script:
    def script(connection: socket.socket, _: str) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(b"a")
            time.sleep(0.05)

    return script


@pytest.mark.parametrize(
    "script",
    [
        drip(b"HTTP/1.1 200 OK\r\nX: "),
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"),
        lambda connection, _: time.sleep(5),
    ],
    ids=["headers", "body", "chunk", "silence"],
)
def test_a_slow_server_is_cut_at_the_deadline(serve: Callable[..., ScriptedServer], script: Script) -> None:
    """A byte now and then does not extend the time, wherever in the answer it comes."""
    started = time.monotonic()
    error = refusal(serve(script).url, timeout_s=0.6)
    assert 0.5 < time.monotonic() - started < 4
    assert "0.6 s" in error.detail


def test_slow_names_and_slow_redirects_share_the_deadline(serve: Callable[..., ScriptedServer]) -> None:
    """A look-up that hangs is left behind, and each hop takes from the same time."""
    release = threading.Event()

    def hang(host: str, port: int) -> list[str]:
        release.wait(10)
        return ["127.0.0.1"]

    started = time.monotonic()
    assert "0.4 s" in refusal("http://slow.example/", EgressPolicy("127.0.0.1", hang), timeout_s=0.4).detail
    release.set()

    def slow_redirect(connection: socket.socket, _: str) -> None:
        time.sleep(0.3)
        reply("302 Found", Location="/")(connection, "")

    assert "0.5 s" in refusal(serve(slow_redirect).url, timeout_s=0.5).detail
    assert time.monotonic() - started < 8


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate for one host name, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / f"{name}.pem"
    path.write_bytes(built.public_bytes(serialization.Encoding.PEM) + private)
    return path


def test_certificates_are_checked_against_the_name(serve: Callable[..., ScriptedServer], tmp_path: Path) -> None:
    """Connected by number, the server must still prove the name of the URL."""
    pem = certificate(tmp_path, "images.example")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    server = serve(reply("200 OK", b"pixels"), tls=tls)
    policy = EgressPolicy("127.0.0.1", FakeResolver(images_example=[["127.0.0.1"]], other_example=[["127.0.0.1"]]))
    trusting = ssl.create_default_context(cafile=str(pem))
    assert fetch(f"https://images.example:{server.port}/", policy, 1000, 5, "images.0.url", trusting) == b"pixels"
    for name, trust in (("other", trusting), ("images", None)):
        with pytest.raises(RequestError, match="certificate"):
            fetch(f"https://{name}.example:{server.port}/", policy, 1000, 5, "images.0.url", trust)
