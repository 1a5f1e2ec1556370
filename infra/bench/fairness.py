"""
Who goes first: how long jobs are in the system in the dispatcher's order against first come, first served, and what a decision costs.

The times are simulated and the decisions are not: `services/dispatcher/policy.py` chooses what is released, from what
`shared/lifecycle/candidates.py` would show it, `services/decoder_worker/policy.py` which of the held pictures takes the next step, and a
picture takes the seconds that it was predicted to take. One decoder worker, its slots, the dispatcher's window; no batching, no overhead.
First come, first served is the same worker and the same window, each picture to its end. The decisions that are timed are those of
`release_decisions.py`, on a million rows in a real Postgres.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from infra.bench import release_decisions
from infra.bench.figures import Figure, each_alone, show
from services.decoder_worker import policy as engine_policy
from services.decoder_worker.engine import OVERDUE_SHARE
from services.decoder_worker.settings import DecoderWorkerSettings
from services.dispatcher.policy import Candidate, Rules, Turns
from services.dispatcher.settings import DispatcherSettings
from shared.states import Priority

_MIX = ((1.0, 0.35), (4.4, 0.45), (25.0, 0.2))
"""Seconds and shares of pictures: 512, 1024 and 2048 pixels square by what they cost; as in the plan the target is from."""

_LOAD = 0.9
_STEPS = 20
_TENANTS = 5
_PICTURES = 3000
_TRACES = 9

_SLOTS = int(DecoderWorkerSettings.model_fields["decoder_slots"].default)
_WINDOW = _SLOTS * int(DispatcherSettings.model_fields["window_per_slot"].default)
_STANDARD, _BULK = (list(Priority).index(priority) for priority in (Priority.STANDARD, Priority.BULK))

_FLOOD = 10_000
_FLOOD_S = 4.4


@dataclass
class Picture:
    """A picture that is asked for; times in seconds of the simulation."""

    number: int
    came_at: float
    cost_s: float
    tenant: str
    lane: int = _STANDARD
    left_s: float = 0.0
    moved_at: float = 0.0
    """Work that the engine had done when this picture last moved, or came."""
    ended_at: float = math.nan

    @property
    def stay_s(self) -> float:
        return self.ended_at - self.came_at


Release = Callable[[Sequence[Picture], int, float], Sequence[Picture]]
"""What waits, how much of it may be released, what time it is -> what is released, in this order."""


def measure() -> Iterator[Figure]:
    """Mixed sizes at load 0.9; one job beside ten thousand; a decision with a million units ready."""
    yield from each_alone((partial(simulated, _TRACES, _PICTURES), release_decisions.figures))


def simulated(num_traces: int, num_pictures: int) -> list[Figure]:
    """Mixed sizes against first come, first served, and one job beside ten thousand."""
    rates: dict[str, list[float]] = {"both": [], "release": [], "largest": []}
    for seed in range(num_traces):
        trace = _trace(random.Random(seed), num_pictures)  # noqa: S311 - arrivals, no secrets
        fifo = _Worker(_first_come, is_stepping=False).run(trace)
        both = _Worker(_in_turn(), is_stepping=True).run(trace)
        rates["both"].append(_mean_stay(both) / _mean_stay(fifo))
        rates["release"].append(_mean_stay(_Worker(_in_turn(), is_stepping=False).run(trace)) / _mean_stay(fifo))
        rates["largest"].append(_late_stay(both) / _late_stay(fifo))
    note = (
        f"simulated over the real policies: {num_traces} Poisson traces of {num_pictures} pictures of {_TENANTS} tenants, "
        f"{'/'.join(f'{cost_s:g}' for cost_s, _ in _MIX)} s ({'/'.join(f'{share:.0%}' for _, share in _MIX)}), one decoder worker, "
        f"{_SLOTS} slots, window {_WINDOW}"
    )
    return [
        Figure(f"mean time in system, mixed sizes, load {_LOAD}, against FIFO", rates["both"], 0.55, at_least=False, note=note),
        Figure("… by the order of release alone", rates["release"], note="the worker draws each picture to its end"),
        Figure("… p99 of the largest size", rates["largest"], 1.6, at_least=False, note="what the others' gain costs the longest"),
        Figure(
            f"a bulk job beside {_FLOOD:,} of another tenant: wait",
            [_single_delay(_in_turn())],
            unit="s",
            note=f"each takes {_FLOOD_S} s; what is in the window goes first; FIFO: {_FLOOD * _FLOOD_S:,.0f} s",
        ),
    ]


def _trace(rng: random.Random, num_pictures: int) -> list[Picture]:
    costs, shares = zip(*_MIX, strict=True)
    mean_s = sum(cost_s * share for cost_s, share in _MIX)
    came_at, trace = 0.0, []
    for number in range(num_pictures):
        came_at += rng.expovariate(_LOAD / mean_s)
        trace.append(Picture(number, came_at, rng.choices(costs, shares)[0], f"tenant {rng.randrange(_TENANTS)}"))
    return trace


def _mean_stay(pictures: Sequence[Picture]) -> float:
    return statistics.fmean(picture.stay_s for picture in pictures)


def _late_stay(pictures: Sequence[Picture]) -> float:
    """p99 of the largest size."""
    largest = max(cost_s for cost_s, _ in _MIX)
    return statistics.quantiles([picture.stay_s for picture in pictures if picture.cost_s == largest], n=100)[-1]


def _first_come(waiting: Sequence[Picture], room: int, _: float) -> Sequence[Picture]:
    return waiting[:room]


def _in_turn() -> Release:
    turns = Turns(Rules())

    def release(waiting: Sequence[Picture], room: int, now: float) -> Sequence[Picture]:
        if len(waiting) <= room:
            turns.forget()
            return waiting
        seen: dict[tuple[int, str, int], list[Picture]] = {}
        for picture in waiting:
            # As the index groups them: by tenant, lane and class of cost, the oldest of each.
            group = seen.setdefault((picture.lane, picture.tenant, math.floor(math.log2(picture.cost_s))), [])
            if len(group) < room:
                group.append(picture)
        shown = {str(picture.number): picture for group in seen.values() for picture in group}
        candidates = [
            Candidate(name, picture.lane, picture.tenant, picture.cost_s, now - picture.came_at) for name, picture in shown.items()
        ]
        return [shown[chosen.id] for chosen in turns.choose(candidates, room)]

    return release


class _Worker:
    """One decoder worker and the dispatcher before it."""

    def __init__(self, release: Release, *, is_stepping: bool) -> None:
        """
        Args:
            is_stepping: its engine moves the held pictures step by step, as ours does, and not one after the other to its end.
        """
        self._release = release
        self._is_stepping = is_stepping
        self._waiting: list[Picture] = []
        self._released: list[Picture] = []
        self._held: list[Picture] = []
        self._now = self._work_done = self._favoured_at = 0.0

    def run(self, trace: Sequence[Picture], until: int | None = None) -> list[Picture]:
        """
        The pictures that have ended, with the times of their ends.

        Args:
            until: the picture with this number has; None: all have.
        """
        ended: list[Picture] = []
        coming = [Picture(picture.number, picture.came_at, picture.cost_s, picture.tenant, picture.lane) for picture in reversed(trace)]
        while len(ended) < len(trace) and (until is None or not ended or ended[-1].number != until):
            while coming and coming[-1].came_at <= self._now:
                self._waiting.append(coming.pop())
            self._fill()
            if not self._held:
                self._now = coming[-1].came_at
                continue
            picture = self._held[self._next()]
            step_s = picture.cost_s / _STEPS if self._is_stepping else picture.cost_s
            self._now += step_s
            self._work_done += step_s
            picture.left_s -= step_s
            picture.moved_at = self._work_done
            if picture.left_s < step_s / 2:
                picture.ended_at = self._now
                self._held.remove(picture)
                ended.append(picture)
        return ended

    def _fill(self) -> None:
        room = _WINDOW - len(self._released) - len(self._held)
        if room > 0 and self._waiting:
            chosen = self._release(self._waiting, room, self._now)
            gone = {picture.number for picture in chosen}
            self._released += chosen
            self._waiting = [picture for picture in self._waiting if picture.number not in gone]
        while self._released and len(self._held) < _SLOTS:
            picture = self._released.pop(0)
            picture.left_s, picture.moved_at = picture.cost_s, self._work_done
            self._held.append(picture)

    def _next(self) -> int:
        if not self._is_stepping:
            return 0
        held = [
            # Patches as large as the budget: each goes alone.
            engine_policy.Candidate(picture.cost_s, 1, picture.left_s, picture.cost_s / _STEPS, self._work_done - picture.moved_at)
            for picture in self._held
        ]
        choice = engine_policy.choose(held, 1, OVERDUE_SHARE, self._work_done - self._favoured_at)
        if choice.is_favour:
            self._favoured_at = self._work_done
        return choice.members[0]


def _single_delay(release: Release) -> float:
    """Seconds that a bulk job waits for its start which comes while another tenant's ten thousand are being drawn."""
    flood = [Picture(number, 0.0, _FLOOD_S, "flood", _BULK) for number in range(_FLOOD)]
    single = Picture(_FLOOD, 100.0, _FLOOD_S, "small", _BULK)
    ended = _Worker(release, is_stepping=False).run([*flood, single], until=_FLOOD)[-1]
    return ended.stay_s - ended.cost_s


if __name__ == "__main__":
    show(measure())
