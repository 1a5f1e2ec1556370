"""
What one sender holds, by whom it is for: how much more to claim of each, and whose turn it is to be posted. Pure; time is given to it.

A queue is what waits behind one another: the deliveries to one endpoint, or of one tenant to one host; replays and tests have queues
of their own. Few of a queue are posted at once. Many may be *claimed* at once from a queue that answers quickly, because claiming one
by one costs more than posting; a queue that hangs is never claimed further than it is posted.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from shared.lifecycle.deliveries import Delivery, Room, queue_name

_AHEAD = 256
"""Held of a queue that answers quickly. It never runs dry then while more is claimed and what went is written down; of 128 it did."""

QUICK_MS = 500
"""An answer that comes sooner is a quick one."""

_MAX_REMEMBERED = 256
"""Queues that answered quickly: those that were so last. Every claim names them."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _LONGEST_ASKED_S = 1.0, 60.0, 3600.0
"""A receiver that asks for a day's rest gets it for that delivery; for all others of the host an hour is enough to look again."""

_SIDE = 1
"""Replays and tests of one endpoint posted at once, beside what is new."""


@dataclass(frozen=True)
class Bounds:
    """
    How much is posted at once.

    Attributes:
        total: held all together, posted or not.
        queue: to one endpoint, or of one tenant to one host.
        host: to one host and port, whoever's they are.
    """

    total: int
    queue: int
    host: int


@dataclass
class _Pause:
    """A tenant leaves a host in peace."""

    until: float
    length_s: float
    lanes: set[str] = field(default_factory=set)
    """Known to lead there."""


class Queues:
    """The deliveries that a sender has claimed and not yet written down."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._waiting: dict[str, deque[tuple[float, Delivery]]] = {}
        self._held: Counter[str] = Counter()
        self._held_tenants: Counter[str] = Counter()
        self._posting: Counter[str] = Counter()
        self._posting_hosts: Counter[str] = Counter()
        self._quick: dict[str, None] = {}
        self._pauses: dict[tuple[str, str], _Pause] = {}
        """By tenant and host."""

    @property
    def num_held(self) -> int:
        return self._held.total()

    def room(self, now: float) -> Room:
        """What may be claimed beside what is held."""
        queues = {name: max(0, self._window(name) - self._held[name]) for name in {*self._held, *self._quick}}
        self._pauses = {key: pause for key, pause in self._pauses.items() if pause.until + _LONGEST_PAUSE_S > now}
        for pause in self._pauses.values():
            if pause.until > now:
                queues |= {queue_name(lane, kind): 0 for lane in pause.lanes for kind in ("live", "replay")}
        # Half of the sender for one tenant: one whose receivers all hang leaves room for everybody else.
        most = max(1, self._bounds.total // 2)
        tenants = {tenant: max(0, most - held) for tenant, held in self._held_tenants.items()}
        return Room(self._bounds.total - self.num_held, self._bounds.queue, most, queues, tenants)

    def add(self, delivery: Delivery, now: float) -> None:
        """A delivery was claimed and waits for its turn."""
        self._waiting.setdefault(delivery.queue, deque()).append((now, delivery))
        self._held[delivery.queue] += 1
        self._held_tenants[delivery.tenant_id] += 1
        if pause := self._pauses.get((delivery.tenant_id, delivery.host)):
            pause.lanes.add(delivery.lane)

    def start(self, now: float) -> list[tuple[float, Delivery]]:
        """Whoever's turn it is now, and since when each has waited; each is posted until `posted`."""
        started = []
        for name in list(self._waiting):
            waiting = self._waiting[name]
            while waiting and self._has_turn(waiting[0][1], now):
                since, delivery = waiting.popleft()
                self._posting[name] += 1
                self._posting_hosts[delivery.host] += 1
                started.append((since, delivery))
            if not waiting:
                del self._waiting[name]
        return started

    def posted(self, delivery: Delivery, is_quick: bool) -> None:
        """Its post is over, and it is held until `forget`."""
        _take_one(self._posting, delivery.queue)
        _take_one(self._posting_hosts, delivery.host)
        self._quick.pop(delivery.queue, None)
        if is_quick:
            self._quick[delivery.queue] = None
            if len(self._quick) > _MAX_REMEMBERED:
                del self._quick[next(iter(self._quick))]

    def forget(self, delivery: Delivery) -> bool:
        """It is written down or given back. Is there now room that is worth a claim, where there was none?"""
        # Of a quick queue half of what is held: to claim one at a time would cost what claiming ahead saves.
        level = _AHEAD // 2 if delivery.queue in self._quick else self._window(delivery.queue)
        has_room = self._held[delivery.queue] == level or self.num_held == self._bounds.total
        has_room = has_room or self._held_tenants[delivery.tenant_id] == self._bounds.total // 2
        _take_one(self._held, delivery.queue)
        _take_one(self._held_tenants, delivery.tenant_id)
        return has_room

    def overdue(self, since: float) -> list[Delivery]:
        """Take out what has waited since before then: its queue has become slow, and its lease goes on."""
        late = []
        for name in list(self._waiting):
            waiting = self._waiting[name]
            while waiting and waiting[0][0] < since:
                late.append(waiting.popleft()[1])
            if not waiting:
                del self._waiting[name]
        return late

    def take_waiting(self) -> list[Delivery]:
        """Take out all that wait."""
        return self.overdue(float("inf"))

    def pause(self, delivery: Delivery, now: float, asked_s: float | None) -> None:
        """The receiver is overloaded: its tenant sends nothing to this host for as long as it asks, or for longer each time."""
        key = (delivery.tenant_id, delivery.host)
        last = self._pauses.get(key)
        if last is not None and last.until > now:
            # It was in flight when the first of them was refused.
            return
        doubled_s = min(2 * last.length_s, _LONGEST_PAUSE_S) if last is not None else _FIRST_PAUSE_S
        pause_s = doubled_s if asked_s is None else min(max(asked_s, _FIRST_PAUSE_S), _LONGEST_ASKED_S)
        self._pauses[key] = _Pause(now + pause_s, min(pause_s, _LONGEST_PAUSE_S), {delivery.lane})

    def resume(self, delivery: Delivery) -> None:
        """The receiver took one."""
        self._pauses.pop((delivery.tenant_id, delivery.host), None)

    def _window(self, name: str) -> int:
        if name in self._quick:
            return max(_AHEAD, self._bounds.queue)
        return self._bounds.queue if name.endswith(" live") else _SIDE

    def _has_turn(self, delivery: Delivery, now: float) -> bool:
        pause = self._pauses.get((delivery.tenant_id, delivery.host))
        return (
            self._posting[delivery.queue] < (self._bounds.queue if delivery.kind == "live" else _SIDE)
            and self._posting_hosts[delivery.host] < self._bounds.host
            and (pause is None or pause.until <= now or delivery.kind == "test")
        )


def _take_one(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        # A Counter keeps zeros, and hosts are many.
        del counter[key]
