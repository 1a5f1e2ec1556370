"""
Release: keep a small window of work in Celery, chosen at the last moment. While all that is ready fits, there is nothing to choose; when it
does not, `policy.py` says who goes first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from services.dispatcher.policy import Candidate, Rules, Turns
from services.dispatcher.publisher import Publisher
from services.dispatcher.settings import DispatcherSettings
from shared.db import Database
from shared.lifecycle import work, workers
from shared.lifecycle.at_once import RING_UP_TO_SLOTS
from shared.lifecycle.candidates import Order, Seen
from shared.lifecycle.quotas import is_running_limited
from shared.progress import LiveState
from shared.states import Stage
from shared.wakeup import RELEASED

_SLOTS_FOR_S = 1.0
"""How long a count of slots is believed. Workers come and go in seconds."""


class FairOrder(Order):
    """The policy's turns in one stage, kept by the one dispatcher that is active. Another one begins anew, and loses nothing but them."""

    def __init__(self, rules: Rules) -> None:
        self.near_s = rules.deadline_near_s
        self._turns = Turns(rules)

    def choose(self, seen: Seen, room: int) -> list[str]:
        chosen = self._turns.choose([Candidate(*unit) for unit in seen.waiting], room, seen.room_of, are_all=seen.are_all)
        return [candidate.id for candidate in chosen]

    def forget(self) -> None:
        self._turns.forget()


def rules_of(settings: DispatcherSettings) -> Rules:
    """What the operator decided."""
    return Rules(
        lane_weights=(settings.lane_weight_interactive, settings.lane_weight_standard, settings.lane_weight_bulk),
        quantum_s=settings.quantum_s,
        bulk_ages_s=settings.bulk_ages_s,
        deadline_near_s=settings.deadline_near_s,
        tenant_weights=settings.tenant_weights,
    )


class Releaser:
    """Releases both stages: all at a tick, one when it is rung for."""

    def __init__(self, db: Database, live: LiveState, publisher: Publisher, settings: DispatcherSettings) -> None:
        self._db = db
        self._live = live
        self._publisher = publisher
        self._window_per_slot = settings.window_per_slot
        self._max_running = settings.quota_max_running or None
        self._is_any_limited = False
        self._orders = {stage: FairOrder(rules_of(settings)) for stage in Stage}
        self._slots: dict[Stage, int] = {}
        self._counted_at = float("-inf")

    def tick(self) -> None:
        """
        Release what fits into the window of each stage, by a fresh count of slots.

        Raises:
            DatabaseDownError
        """
        if time.monotonic() - self._counted_at > _SLOTS_FOR_S:
            self._slots = {stage: workers.count_slots(self._db, stage) for stage in Stage}
            self._is_any_limited = is_running_limited(self._db)
            self._counted_at = time.monotonic()
        self.release(self._slots)

    def release(self, stages: Iterable[Stage]) -> None:
        """
        Release what fits into the window of these stages.

        Raises:
            DatabaseDownError
        """
        for stage in sorted(stages, key=list(Stage).index):
            slots = self._slots.get(stage, 0)
            if not slots:
                continue
            window, order = slots * self._window_per_slot, self._orders[stage]
            ids = work.release(self._db, stage, window, self._max_running, is_any_limited=self._is_any_limited, order=order)
            if ids:
                # After commit, or a worker may look for the row before it is visible.
                if slots <= RING_UP_TO_SLOTS:
                    self._live.ring(RELEASED[stage])
                self._publisher.send(stage, ids)
