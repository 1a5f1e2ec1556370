"""Whose turn it is: nobody starves, and seconds are shared as they should be."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count

from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.dispatcher.policy import OLDEST_OF, Candidate, Rules, Turns
from shared.states import Priority

RULES = Rules()
INTERACTIVE, STANDARD, BULK = range(len(Priority))

costs = st.floats(0.05, 60.0)


def unit(
    name: str, *, lane: int = STANDARD, tenant: str = "a", cost_s: float | None = 1.0, waited_s: float = 10.0, **more: float
) -> Candidate:
    return Candidate(name, lane, tenant, cost_s, waited_s, **more)


def order(*candidates: Candidate, rules: Rules = RULES, **more: Mapping[str, int]) -> list[str]:
    return [chosen.id for chosen in Turns(rules).choose(candidates, len(candidates), **more)]


class Backlog:
    """Queues of equal units that never end, each seen by its first two: who gets how many seconds when one unit goes at a time."""

    def __init__(self, costs_s: Mapping[tuple[int, str], float], rules: Rules = RULES) -> None:
        self._costs_s = costs_s
        self._numbers: Iterator[int] = count()
        self._turns = Turns(rules)

    def seconds(self, num_units: int) -> Counter[tuple[int, str]]:
        spent: Counter[tuple[int, str]] = Counter()
        for _ in range(num_units):
            waiting = [
                unit(str(next(self._numbers)), lane=lane, tenant=tenant, cost_s=cost_s, waited_s=age)
                for (lane, tenant), cost_s in self._costs_s.items()
                for age in (1.0, 2.0)
            ]
            (chosen,) = self._turns.choose(waiting, 1)
            spent[chosen.lane, chosen.tenant] += self._costs_s[chosen.lane, chosen.tenant]
        return spent


def test_shorter_ones_pass_until_a_longer_one_has_waited_in_proportion() -> None:
    """The highest response ratio goes first: of equal waits the cheaper, of equal costs the older."""
    assert order(unit("long", cost_s=20), unit("short", cost_s=2)) == ["short", "long"]
    assert order(unit("short", cost_s=2, waited_s=9), unit("long", cost_s=20, waited_s=91)) == ["long", "short"]
    assert order(unit("young", waited_s=1), unit("old", waited_s=2)) == ["old", "young"]


def test_near_deadlines_go_first_if_they_can_be_met() -> None:
    """The earliest deadline first; one that is far off, or lost already, gives no precedence."""
    old = unit("old", waited_s=500)
    assert order(old, unit("later", left_s=300), unit("soon", left_s=30)) == ["soon", "later", "old"]
    assert order(old, unit("far", left_s=RULES.deadline_near_s + 1)) == ["old", "far"]
    assert order(old, unit("lost", cost_s=20, left_s=19)) == ["old", "lost"]
    assert order(old, unit("of another", tenant="b", lane=BULK, left_s=30)) == ["old", "of another"], "only within its tenant and lane"


def test_urgent_lanes_go_first() -> None:
    """Whatever the others have waited."""
    waiting = [unit("bulk", lane=BULK, waited_s=9e4), unit("standard", waited_s=900), unit("interactive", lane=INTERACTIVE, waited_s=0)]
    assert order(*waiting) == ["interactive", "standard", "bulk"]


def test_lanes_share_by_weight() -> None:
    """With work in all of them they get 16, 4 and 1 parts of the seconds, whatever their units cost."""
    spent = Backlog({(INTERACTIVE, "a"): 3.0, (STANDARD, "a"): 0.7, (BULK, "a"): 11.0}).seconds(4000)
    shares = [spent[lane, "a"] / spent.total() * 21 for lane in range(3)]
    assert [round(share, 1) for share in shares] == [16.0, 4.0, 1.0]


def test_bulk_ages() -> None:
    """When its oldest unit has waited for three times `bulk_ages_s`, bulk weighs four times as much, which is as much as it may."""
    rules = dataclasses.replace(RULES, bulk_ages_s=2 / 3)
    spent = Backlog({(STANDARD, "a"): 1.0, (BULK, "a"): 1.0}, rules).seconds(2000)
    assert 0.45 < spent[BULK, "a"] / spent.total() < 0.55
    spent = Backlog({(STANDARD, "a"): 1.0, (BULK, "a"): 1.0}, dataclasses.replace(rules, bulk_ages_s=2 / 100)).seconds(2000)
    assert 0.45 < spent[BULK, "a"] / spent.total() < 0.55


def test_an_idle_lane_saves_nothing_and_one_that_was_ahead_still_owes() -> None:
    """Interactive work that comes one at a time gets its lane's share and no more; after a pause it has one round's."""
    turns = Turns(RULES)
    got = Counter[int]()
    for number in range(2100):
        # Between two decisions the lane is empty, and each time it looks new.
        (chosen,) = turns.choose([unit(f"i{number}", lane=INTERACTIVE), unit(f"b{number}", lane=BULK)], 1)
        got[chosen.lane] += 1
    assert abs(got[BULK] - 2100 / 17) < 10


@settings(max_examples=30, deadline=None)
@given(mine=costs, theirs=costs, quantum_s=st.floats(0.5, 30.0))
@example(mine=60.0, theirs=0.05, quantum_s=0.5)
def test_ten_thousand_bulk_units_delay_another_tenant_by_about_a_quantum(mine: float, theirs: float, quantum_s: float) -> None:
    """The single unit goes once the other tenant has had as many seconds as it costs itself, and a quantum and a unit more."""
    turns = Turns(dataclasses.replace(RULES, quantum_s=quantum_s))
    numbers = count()

    def flood() -> list[Candidate]:
        return [unit(f"flood {next(numbers)}", lane=BULK, tenant="flood", cost_s=theirs, waited_s=1e4) for _ in range(2)]

    for _ in range(37):
        turns.choose(flood(), 1)
    delay_s = 0.0
    while (chosen := turns.choose([*flood(), unit("single", lane=BULK, tenant="small", cost_s=mine)], 1)[0]).id != "single":
        delay_s += theirs
    assert chosen.tenant == "small"
    assert delay_s <= mine + 2 * quantum_s + theirs


@settings(max_examples=15, deadline=None)
@given(unit_costs=st.lists(st.floats(0.5, 30.0), min_size=2, max_size=4))
def test_tenants_share_by_seconds(unit_costs: list[float]) -> None:
    """However cheap or dear their units, tenants with enough to do get equal seconds, but for a quantum and a unit."""
    queues = {(STANDARD, f"tenant {number}"): cost_s for number, cost_s in enumerate(unit_costs)}
    backlog = Backlog(queues)
    spent: Counter[tuple[int, str]] = Counter()
    while len(spent) < len(queues) or min(spent.values()) < 10 * max(*unit_costs, RULES.quantum_s):
        spent += backlog.seconds(50)
    assert max(spent.values()) - min(spent.values()) <= 2 * (RULES.quantum_s + max(unit_costs))


def test_tenants_share_by_weight() -> None:
    """Seconds, not units: three times the weight is three times the seconds, with units of any cost."""
    rules = dataclasses.replace(RULES, tenant_weights={"b": 3.0})
    spent = Backlog({(STANDARD, "a"): 1.0, (STANDARD, "b"): 7.0}, rules).seconds(3000)
    assert 2.9 < spent[STANDARD, "b"] / spent[STANDARD, "a"] < 3.1


waiting_units = st.lists(
    st.builds(
        unit,
        st.just(""),
        lane=st.integers(0, 2),
        tenant=st.sampled_from("abc"),
        cost_s=st.one_of(st.none(), costs),
        waited_s=st.floats(0, 1e5),
        left_s=st.one_of(st.none(), st.floats(-10, 1e4)),
    ),
    max_size=12,
).map(lambda units: [one._replace(id=str(number)) for number, one in enumerate(units)])


@settings(max_examples=40, deadline=None)
@given(waiting=waiting_units, room=st.integers(0, 15), room_of=st.dictionaries(st.sampled_from("abc"), st.integers(0, 4)))
def test_a_decision_fills_the_room_and_keeps_the_limits(waiting: list[Candidate], room: int, room_of: dict[str, int]) -> None:
    """Everyone at most once, no tenant more than it may, and none is left out while there is room for it."""
    chosen = Turns(RULES).choose(waiting, room, room_of)
    assert len({one.id for one in chosen}) == len(chosen)
    wanted = Counter(one.tenant for one in waiting)
    may = sum(min(number, room_of.get(tenant, number)) for tenant, number in wanted.items())
    assert len(chosen) == min(room, may)
    for tenant, number in Counter(one.tenant for one in chosen).items():
        assert number <= room_of.get(tenant, number)


@settings(max_examples=15, deadline=None)
@given(waiting=waiting_units, are_all=st.booleans(), by_deadline=st.booleans())
def test_everyone_goes_in_the_end(waiting: list[Candidate], are_all: bool, by_deadline: bool) -> None:
    """Though no end of others comes, in all lanes and of all tenants, which are always cheaper or have near deadlines."""
    turns = Turns(dataclasses.replace(RULES, bulk_ages_s=1e9))
    left = {one.id: one for one in waiting}
    numbers = count()
    for _ in range(20_000):
        if not left:
            return
        stream = [
            unit(f"s{next(numbers)}", lane=lane, tenant=tenant, cost_s=4.0, waited_s=0.0, **({"left_s": 5.0} if by_deadline else {}))
            for lane in range(3)
            for tenant in "abc"
        ]
        for chosen in turns.choose([*left.values(), *stream], 2, are_all=are_all):
            left.pop(chosen.id, None)
    raise AssertionError(f"{len(left)} of {len(waiting)} still wait")


def test_the_oldest_has_its_share() -> None:
    """One of sixteen units of a tenant is its oldest, though others have deadlines or better ratios."""
    turns = Turns(RULES)
    old = unit("old", cost_s=60, waited_s=100)
    picked = [turns.choose([old, unit(str(number), cost_s=1, waited_s=50, left_s=30)], 1)[0].id for number in range(OLDEST_OF)]
    assert picked.index("old") == OLDEST_OF - 1


def test_what_comes_back_unclaimed_is_paid_for() -> None:
    """A unit that no worker had a slot for costs its tenant once; one that a worker had tried costs again."""

    def next_after(came_back: Candidate) -> str:
        turns = Turns(RULES)
        turns.choose([unit("first", cost_s=50, waited_s=1e6), unit("of b", tenant="b", cost_s=50)], 1)
        return turns.choose([came_back, unit("of b", tenant="b", cost_s=50)], 1)[0].id

    again = unit("first", cost_s=50, waited_s=1e6)
    assert next_after(again) == "first"
    assert next_after(again._replace(attempt=1)) == "of b"


def test_a_fresh_start_loses_nothing_but_memory() -> None:
    """Another dispatcher that knows nothing is fair from then on; so is one that met a moment in which nobody waited."""
    waiting = [unit("1", tenant="a", cost_s=5), unit("2", tenant="a", cost_s=5), unit("3", tenant="b", cost_s=5)]
    assert order(*waiting) == ["1", "3", "2"]
    turns = Turns(RULES)
    turns.choose([unit("0", tenant="a", cost_s=5), *waiting[1:]], 1)
    turns.forget()
    assert [one.id for one in turns.choose(waiting, 3)] == ["1", "3", "2"]


def test_what_is_not_known_counts_as_a_quantum() -> None:
    """Before any worker has told its speed, tenants take turns by units."""
    assert order(
        *(unit(f"{tenant}{number}", tenant=tenant, cost_s=None, waited_s=9 - number) for tenant in "ab" for number in range(3))
    ) == [
        "a0",
        "b0",
        "a1",
        "b1",
        "a2",
        "b2",
    ]
