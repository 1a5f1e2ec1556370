"""
Which addresses glmq may talk to when a customer names the URL. Knows names, numbers and ports; opens no connection.

Used for source images (`fetch.py`) and webhooks (`services/webhook_sender`). A customer's URL is an order to our machine, which
stands inside networks the customer does not. So every address that a host name leads to is checked, and the caller must connect
to an address it got from `EgressPolicy.resolve`, never to the name: a second look-up may answer something else.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import quote, urlsplit

import idna

from shared.addresses import Address, embedded_ipv4, is_metadata, is_public
from shared.errors import ForbiddenAddressError, RequestError, StartupError

Resolver = Callable[[str, int], Iterable[str]]
"""Host and port -> addresses as text; raises OSError when there is none."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_PUBLIC_PORTS = frozenset({80, 443, 8443})
_MAX_URL_CHARS = 4096

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True)
class ParsedUrl:
    """A checked URL in one spelling: ASCII, lower-case host, numeric hosts in canonical form, no user, no fragment."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query, as they go into the request line."""

    @property
    def netloc(self) -> str:
        """Host and port as in a Host header. Safe to log; the rest of a URL may hold secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.target}"


def system_resolver(host: str, port: int) -> Iterable[str]:
    """Ask the operating system: /etc/hosts, then DNS."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class EgressPolicy:
    """
    What may be reached: the public internet on ports 80, 443 and 8443, and what the operator adds.

    Args:
        allow: comma-separated addresses and CIDR ranges (`GLMQ_EGRESS_ALLOW`) that may be reached, on any port, though not public.
    Raises:
        StartupError: `allow` is not such a list.
    """

    def __init__(self, allow: str = "", resolver: Resolver = system_resolver) -> None:
        self._allowed = tuple(_network(text.strip()) for text in allow.split(",") if text.strip())
        self._resolver = resolver

    def check_url(self, url: str, param: str) -> ParsedUrl:
        """
        Read a URL, and refuse what can be refused without asking DNS.

        Args:
            param: the field that holds it, for the error.
        Raises:
            RequestError: `invalid_request`, it is not a plain http or https URL.
            ForbiddenAddressError: its host is the number of an address that is not allowed.
        """
        try:
            parsed = _parse(url)
        except ValueError as error:
            raise RequestError("invalid_request", f"{param}: {error}", param) from None
        address = _literal(parsed.host)
        if address is not None:
            self._check(address, parsed.host, parsed.port, param)
        elif parsed.port not in _PUBLIC_PORTS and not self._allowed:
            raise _forbidden_port(parsed.host, parsed.port, param)
        return parsed

    def resolve(self, host: str, port: int, param: str) -> list[Address]:
        """
        The addresses of `host`, every one of them allowed; connect to one of these and to nothing else.

        Blocks as long as the resolver does.

        Raises:
            RequestError: `input_fetch_failed`, the name has no address.
            ForbiddenAddressError: at least one address is not allowed, even if others are.
        """
        literal = _literal(host)
        try:
            found = [literal] if literal is not None else [ipaddress.ip_address(text) for text in self._resolver(host, port)]
        except (OSError, ValueError):
            found = []
        if not found:
            raise RequestError("input_fetch_failed", f"{param}: the host {host} was not found.", param)
        for address in found:
            self._check(address, host, port, param)
        return list(dict.fromkeys(found))

    def resolve_aside(self, host: str, port: int, param: str) -> Future[list[Address]]:
        """
        `resolve` in a thread of its own, for callers with a time limit: the operating system's look-up knows none.

        The thread is a daemon, so that a dead name server does not hold up the end of the process either.
        """
        found: Future[list[Address]] = Future()
        # Running, it cannot be canceled, so the late result of a caller who gave up has a place to go.
        found.set_running_or_notify_cancel()

        def look_up() -> None:
            try:
                found.set_result(self.resolve(host, port, param))
            except BaseException as error:
                found.set_exception(error)

        threading.Thread(target=look_up, name=f"resolve {host}", daemon=True).start()
        return found

    def _check(self, address: Address, host: str, port: int, param: str) -> None:
        # The text names the host, not the address it leads to: inside names are none of the customer's business.
        if is_metadata(address):
            raise ForbiddenAddressError("forbidden_address", f"{param}: {host} is a cloud metadata address, which is never allowed.", param)
        if self._is_allowed(address):
            return
        if not is_public(address):
            raise ForbiddenAddressError(
                "forbidden_address",
                f"{param}: {host} leads to an address that is not public. An operator can allow it.",
                param,
            )
        if port not in _PUBLIC_PORTS:
            raise _forbidden_port(host, port, param)

    def _is_allowed(self, address: Address) -> bool:
        inner = embedded_ipv4(address)
        if not any(address in network for network in self._allowed):
            return False
        # Who allows a NAT64 prefix does not thereby allow the private IPv4 network behind it.
        return inner is None or is_public(inner) or self._is_allowed(inner)


def _forbidden_port(host: str, port: int, param: str) -> ForbiddenAddressError:
    return ForbiddenAddressError(
        "forbidden_address",
        f"{param}: port {port} of {host} is not allowed; public addresses are reached on ports 80, 443 and 8443 only.",
        param,
    )


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise StartupError(
            f"GLMQ_EGRESS_ALLOW: {error}; it takes comma-separated addresses or CIDR ranges such as 10.1.0.0/16,192.168.7.9"
        ) from None


def _literal(host: str) -> Address | None:
    """The address that a host of a `ParsedUrl` is, or None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


@functools.lru_cache(maxsize=1024)  # a receiver's URL is read anew for every delivery
def _parse(url: str) -> ParsedUrl:
    """Raises ValueError with a text for the customer."""
    if len(url) > _MAX_URL_CHARS:
        raise ValueError(f"a URL may have at most {_MAX_URL_CHARS} characters.")
    # Before urlsplit, which drops tabs and newlines in silence; and clients disagree about backslashes.
    if re.search(r"[\x00-\x20\x7f\\\ud800-\udfff]", url):
        raise ValueError("a URL may not contain spaces, control characters or backslashes.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("this is not a valid URL.") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise ValueError("a URL must begin with http:// or https://.")
    if "@" in parts.netloc:
        raise ValueError("a URL may not contain a user name or password.")
    if port == 0:
        raise ValueError("port 0 does not exist.")
    host = _host(parts.hostname or "", is_bracketed="[" in parts.netloc)
    path = quote(parts.path or "/", safe="/%:=&~+!$,;'@()*[]|")
    query = quote(parts.query, safe="/%:=&?~+!$,;'@()*[]|")
    return ParsedUrl(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if port is None else port, f"{path}?{query}" if query else path)


def _host(host: str, is_bracketed: bool) -> str:
    """One spelling of a host: as name in ASCII, or as address in canonical form. Raises ValueError."""
    problem = "the host of the URL is not valid."
    if is_bracketed:
        if "%" in host:
            raise ValueError("the host of a URL may not name a network interface.")
        try:
            return str(IPv6Address(host))
        except ValueError:
            raise ValueError(problem) from None
    try:
        # Also turns full-width digits and dots into plain ones, so the number check comes after.
        ascii_host = host if host.isascii() else idna.encode(host, uts46=True).decode()
    except (idna.IDNAError, UnicodeError):
        raise ValueError(problem) from None
    labels = ascii_host.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            # 2130706433, 0x7f.1 and 0177.0.0.1 are all 127.0.0.1: read as getaddrinfo would read them.
            return str(IPv4Address(socket.inet_aton(".".join(labels))))
        except OSError:
            raise ValueError(problem) from None
    if len(ascii_host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(problem)
    return ".".join(labels)
