"""Stand-ins with the real interface, for what a test must steer or watch. Everything else in the tests is the real thing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from services.webhook_sender.schedule import Answer
from shared.errors import StartupError
from shared.lifecycle.deliveries import Delivery, Kind, Outcome, Room
from shared.lifecycle.letters import Letter
from shared.trace import TraceContext


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
        self.num_connections = 0
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
                self.num_connections += 1
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


class FakeOutbox:
    """
    Deliveries in memory, claimed by the ledger's rules: in order, as far as there is room in their queues.

    Args:
        broken: how many of the next calls fail, as they do while the database restarts.
    """

    def __init__(self, due: list[Delivery], broken: int = 0) -> None:
        self.due = list(due)
        self.outcomes: list[tuple[str, int, Outcome]] = []
        self.released: list[str] = []
        self.most_held: Counter[str] = Counter()
        self.broken = broken
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()

    def claim(self, room: Room) -> list[Delivery]:
        with self._lock:
            self._fail_if_broken()
            taken: Counter[str] = Counter()
            claimed: list[Delivery] = []
            for delivery in list(self.due):
                queue, tenant = delivery.queue, delivery.tenant_id
                in_queue = room.queues.get(queue, room.queue if delivery.kind == "live" else 1)
                in_tenant = room.tenants.get(tenant, room.tenant)
                if len(claimed) < room.total and taken[queue] < in_queue and taken[tenant] < in_tenant:
                    taken.update([queue, tenant])
                    self._held[queue] += 1
                    self.most_held[queue] = max(self.most_held[queue], self._held[queue])
                    self.due.remove(delivery)
                    body = delivery.body or delivery.event_id.encode()
                    claimed.append(replace(delivery, attempt=delivery.attempt + 1, tries=delivery.tries + 1, body=body))
            return claimed

    def finish(self, results: Sequence[tuple[Delivery, Outcome]]) -> set[str]:
        with self._lock:
            self._fail_if_broken()
            for delivery, outcome in results:
                self._held[delivery.queue] -= 1
                self.outcomes.append((delivery.id, delivery.attempt, outcome))
            return {delivery.id for delivery, _ in results}

    def release(self, deliveries: Sequence[Delivery]) -> None:
        with self._lock:
            for delivery in deliveries:
                self._held[delivery.queue] -= 1
                self.released.append(delivery.id)
                self.due.append(replace(delivery, attempt=delivery.attempt - 1, tries=delivery.tries - 1))

    def close_disabled(self) -> bool:
        return False

    def _fail_if_broken(self) -> None:
        if self.broken:
            self.broken -= 1
            raise OSError("the database restarts")


class FakeWriter:
    """Knows the secret; broken, it cannot open it."""

    def __init__(self, is_broken: bool = False) -> None:
        self._is_broken = is_broken

    def secrets(self, letter: Letter) -> tuple[str, ...]:
        if self._is_broken:
            raise StartupError("sealed under another key")
        return ("whsec_AAAA",)


class FakePoster:
    """Answers by host after a wait; remembers who was posted to, and how many at once."""

    def __init__(self, answers: Mapping[str, tuple[float, Answer]]) -> None:
        self.posted: list[str] = []
        self.most_at_once: Counter[str] = Counter()
        self._answers = answers
        self._at_once: Counter[str] = Counter()

    async def deliver(
        self, url: str, event_id: str, body: bytes, secrets: tuple[str, ...], timestamp: int, attempt: int, trace: TraceContext | None
    ) -> Answer:
        host = urlsplit(url).netloc
        wait_s, answer = self._answers[host]
        self._at_once[host] += 1
        self.most_at_once[host] = max(self.most_at_once[host], self._at_once[host])
        try:
            await asyncio.sleep(wait_s)
        finally:
            self._at_once[host] -= 1
        self.posted.append(event_id)
        return answer


def make_delivery(
    number: int, lane: str, url: str, attempt: int = 0, tenant_id: str = "ten_1", kind: Kind = "live", **changes: Any
) -> Delivery:
    """A delivery of event `evt_<number>`, as the ledger hands it out."""
    now = datetime.now(UTC)
    made = Delivery(
        id=f"whd_{number}",
        tenant_id=tenant_id,
        lane=lane,
        kind=kind,
        attempt=attempt,
        tries=attempt,
        endpoint_id=None,
        is_probe=False,
        url=url,
        sealed_secrets=(b"",),
        is_thin=False,
        event_id=f"evt_{number}",
        event_type="job.succeeded",
        event_seq=number,
        event_data={},
        event_created_at=now,
        now=now,
        dialect=None,
        trace=None,
        body=None,
    )
    return replace(made, **changes)
