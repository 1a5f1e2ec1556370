"""
What is released next: whose lane, whose tenant, which of its units. Plain numbers in, an order out. Pure.

Knows no rows and no clock. Three choices, one inside the other, all in predicted seconds of a worker (`cost_s`):

- *Lanes* share by weight. In a round each may spend its weight in quanta, and the most urgent one that has some left goes first, so an
  interactive unit waits for nobody while its lane is within its share, and bulk gets its own share whatever comes. What waits in bulk makes
  bulk weigh more as it ages, at most as much as standard.
- *Tenants* of a lane: weighted deficit round robin (Shreedhar and Varghese, 1995). Each visit is worth a quantum times the tenant's weight;
  a unit goes when its tenant has saved up for it. Whoever has ten thousand units waiting holds up another one by about a quantum.
- *Units* of a tenant: first those whose deadline is near and can be met, the earliest first; then the highest response ratio,
  `(waited + cost) / cost`: short ones pass long ones until those have waited in proportion. One of sixteen is the oldest, so that
  nothing waits for ever, whatever comes behind it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shared.states import Priority

_STANDARD, _BULK = (list(Priority).index(priority) for priority in (Priority.STANDARD, Priority.BULK))

OLDEST_OF = 16
"""Of so many units of a tenant and lane, one is the oldest: the share that the decoder's engine gives to those that were passed over."""

_REMEMBERED = 4096
"""Units that are known to be paid for; many times the window of a large fleet."""

_LEAST_S = 1e-3
"""A unit that costs nothing could be released for ever."""


class Candidate(NamedTuple):
    """
    A unit of work that could be released.

    Attributes:
        lane: index of its priority in `Priority`.
        cost_s: predicted seconds of a worker; None: not known, so it counts as a quantum.
        waited_s: since it was asked for.
        left_s: until its deadline; None: it has none.
        attempt: how often a worker has claimed it.
    """

    id: str
    lane: int
    tenant: str
    cost_s: float | None
    waited_s: float
    left_s: float | None = None
    attempt: int = 0


@dataclass(frozen=True)
class Rules:
    """
    What an operator decides.

    Attributes:
        lane_weights: shares of the lanes while all of them have work, in the order of `Priority`.
        quantum_s: seconds of a worker that one unit of weight is worth in a round, of a lane or of a tenant.
        tenant_weights: shares of tenants; 1 of those that are not named.
        bulk_ages_s: after so long a wait of its oldest unit bulk weighs twice as much, after twice as long three times, and so on.
        deadline_near_s: before its deadline, a unit goes before others of its tenant.
    """

    lane_weights: tuple[float, ...] = (16.0, 4.0, 1.0)
    quantum_s: float = 5.0
    bulk_ages_s: float = 3600.0
    deadline_near_s: float = 600.0
    tenant_weights: Mapping[str, float] = field(default_factory=dict)

    def tenant_quantum_s(self, tenant: str) -> float:
        """What a visit to a tenant is worth."""
        return self.quantum_s * self.tenant_weights.get(tenant, 1.0)


class _Line:
    """What one tenant has waiting in one lane."""

    def __init__(self, candidates: Iterable[Candidate], rules: Rules, num_passed: int, paid: Mapping[str, int]) -> None:
        self._waiting = {candidate.id: candidate for candidate in candidates}
        self._rules = rules
        self._paid = paid
        self.num_passed = num_passed
        """Units that went since the oldest one did."""
        self.head = self._next()

    def price_s(self) -> float:
        """What the head costs its tenant: nothing if it was released before, and came back because all workers were busy."""
        return 0.0 if self._paid.get(self.head.id) == self.head.attempt else self._cost_s(self.head)

    def pop(self) -> bool:
        """Take the head out. False: nothing is left."""
        self.num_passed = 0 if self.head is self._oldest() else self.num_passed + 1
        del self._waiting[self.head.id]
        if self._waiting:
            self.head = self._next()
        return bool(self._waiting)

    def _oldest(self) -> Candidate:
        return max(self._waiting.values(), key=lambda one: one.waited_s)

    def _next(self) -> Candidate:
        if self.num_passed >= OLDEST_OF - 1:
            return self._oldest()
        return min(self._waiting.values(), key=self._rank)

    def _cost_s(self, candidate: Candidate) -> float:
        return max(_LEAST_S, self._rules.quantum_s if candidate.cost_s is None else candidate.cost_s)

    def _rank(self, candidate: Candidate) -> tuple[float, float]:
        cost_s = self._cost_s(candidate)
        # One that would be late anyway goes by its age, as all others do: it must not make those late that are not.
        if candidate.left_s is not None and cost_s <= candidate.left_s <= self._rules.deadline_near_s:
            return candidate.left_s, 0.0
        return math.inf, -candidate.waited_s / cost_s


@dataclass
class _Ring:
    """The tenants of one lane, in the order of their ids."""

    turn: str = ""
    """Who was visited last; it goes on while it has enough."""
    deficits: dict[str, float] = field(default_factory=dict)
    """Seconds that tenants with waiting work have saved up."""
    num_passed: dict[str, int] = field(default_factory=dict)

    def visit(self, lines: Mapping[str, _Line], rules: Rules) -> str:
        """Go round until a tenant has enough for its head, and give it the turn. Rounds in which nobody has are not walked but counted."""
        needed = {tenant: line.price_s() - self.deficits.get(tenant, 0.0) for tenant, line in lines.items()}
        if needed.get(self.turn, 1.0) <= 0:
            return self.turn
        tenants = sorted(lines)
        start = bisect_right(tenants, self.turn)
        order = tenants[start:] + tenants[:start]
        worth = {tenant: rules.tenant_quantum_s(tenant) for tenant in order}
        rounds, place = min((max(0, math.ceil(needed[tenant] / worth[tenant]) - 1), place) for place, tenant in enumerate(order))
        for index, tenant in enumerate(order):
            num_visits = rounds + (index <= place)
            self.deficits[tenant] = self.deficits.get(tenant, 0.0) + num_visits * worth[tenant]
        self.turn = order[place]
        return self.turn

    def leave(self, tenant: str) -> None:
        """It has nothing waiting here that may be released: what it saved is lost, or it could be saved up while nobody needs it."""
        self.deficits.pop(tenant, None)
        self.num_passed.pop(tenant, None)


class Turns:
    """
    Whose turn it is in one stage, from one decision to the next.

    All it remembers is who has had how much lately. A dispatcher that begins with none of it is fair from then on.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._paid: dict[str, int] = {}
        self.forget()

    def forget(self) -> None:
        """Nobody waits, so nobody is owed anything."""
        self._rings = [_Ring() for _ in Priority]
        self._credits = [weight * self._rules.quantum_s for weight in self._rules.lane_weights]

    def choose(
        self, candidates: Sequence[Candidate], room: int, room_of: Mapping[str, int] | None = None, *, are_all: bool = True
    ) -> list[Candidate]:
        """
        Choose what is released now, in the order of release.

        Args:
            candidates: of each tenant and lane enough that it is not used up before `room` is, whatever the order.
            room_of: how many units of a tenant may go, for those that have a bound.
            are_all: every tenant that has something waiting is among them; those that are not are forgotten.
        """
        lanes = self._lines(candidates, are_all)
        left_of = dict(room_of or {})
        self._drop(lanes, [tenant for tenant, left in left_of.items() if left <= 0])
        weights = self._weights(candidates)
        chosen: list[Candidate] = []
        while len(chosen) < room and any(lanes):
            lane = self._lane([index for index, lines in enumerate(lanes) if lines], weights)
            ring, lines = self._rings[lane], lanes[lane]
            tenant = ring.visit(lines, self._rules)
            line = lines[tenant]
            price_s = line.price_s()
            chosen.append(line.head)
            self._remember(line.head)
            ring.deficits[tenant] = ring.deficits.get(tenant, 0.0) - price_s
            self._credits[lane] -= price_s
            if line.pop():
                ring.num_passed[tenant] = line.num_passed
            else:
                del lines[tenant]
                ring.leave(tenant)
            if tenant in left_of:
                left_of[tenant] -= 1
                if left_of[tenant] <= 0:
                    self._drop(lanes, [tenant])
        return chosen

    def _remember(self, released: Candidate) -> None:
        self._paid[released.id] = released.attempt
        if len(self._paid) > _REMEMBERED:
            del self._paid[next(iter(self._paid))]

    def _lines(self, candidates: Sequence[Candidate], are_all: bool) -> list[dict[str, _Line]]:
        grouped: list[dict[str, list[Candidate]]] = [{} for _ in Priority]
        for candidate in candidates:
            grouped[candidate.lane].setdefault(candidate.tenant, []).append(candidate)
        for ring, tenants in zip(self._rings, grouped, strict=True):
            for gone in [tenant for tenant in ring.deficits if are_all and tenant not in tenants]:
                ring.leave(gone)
        return [
            {tenant: _Line(waiting, self._rules, ring.num_passed.get(tenant, 0), self._paid) for tenant, waiting in tenants.items()}
            for ring, tenants in zip(self._rings, grouped, strict=True)
        ]

    def _drop(self, lanes: Sequence[dict[str, _Line]], tenants: Iterable[str]) -> None:
        for tenant in tenants:
            for ring, lines in zip(self._rings, lanes, strict=True):
                lines.pop(tenant, None)
                ring.leave(tenant)

    def _weights(self, candidates: Sequence[Candidate]) -> list[float]:
        weights = list(self._rules.lane_weights)
        oldest_s = max((candidate.waited_s for candidate in candidates if candidate.lane == _BULK), default=0.0)
        aged = weights[_BULK] * (1 + oldest_s / self._rules.bulk_ages_s)
        weights[_BULK] = max(weights[_BULK], min(aged, weights[_STANDARD]))
        return weights

    def _lane(self, lanes: Sequence[int], weights: Sequence[float]) -> int:
        """The most urgent of these lanes that has something left of its share; when none has, the next round begins."""
        quanta = [weight * self._rules.quantum_s for weight in weights]
        while not (solvent := [lane for lane in lanes if self._credits[lane] > 0]):
            rounds = min(math.floor(-self._credits[lane] / quanta[lane]) + 1 for lane in lanes)
            # No more than one round's share: a lane that was idle has not saved up, and one that spent too much still owes it.
            self._credits = [min(quantum, credit + rounds * quantum) for credit, quantum in zip(self._credits, quanta, strict=True)]
        return solvent[0]
