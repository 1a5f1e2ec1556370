"""
The loop: claim what is due, post it, write down how it went, and stop in time.

Knows neither HTTP nor SQL; the outbox blocks and is called in threads. A lost process loses nothing: what it had claimed is due
again when the lease ends. So a receiver may get a delivery twice, and sees that by its `webhook-id`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import Protocol

import structlog

from services.webhook_sender.letter import Letter
from services.webhook_sender.outbox import Outbox
from services.webhook_sender.schedule import MAX_ATTEMPTS, Answer, outcome_of
from services.webhook_sender.settings import WebhookSenderSettings
from shared.lifecycle.deliveries import Delivery, Outcome

_FINISH_WAITS_S = (0.1, 0.5, 2.0)
"""Between tries to write down an outcome; within the lease's margin."""

_LEDGER_DOWN_S = 1.0
_RELEASE_S = 1.5
"""Of the time for stopping, what is kept for giving back deliveries."""


class Writer(Protocol):
    """Makes what is posted; `LetterWriter`."""

    def write(self, delivery: Delivery) -> Letter:
        """Called in a thread."""


class Poster(Protocol):
    """Posts; `Deliverer`."""

    async def deliver(self, url: str, event_id: str, body: bytes, secrets: tuple[str, ...], timestamp: int, attempt: int) -> Answer:
        """Never raises for what the receiver does."""


class Sender:
    """One process's share of the deliveries."""

    def __init__(
        self, outbox: Outbox, writer: Writer, poster: Poster, settings: WebhookSenderSettings, rng: random.Random | None = None
    ) -> None:
        self._outbox = outbox
        self._writer = writer
        self._poster = poster
        self._settings = settings
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._log = structlog.get_logger()
        self._in_flight: dict[asyncio.Task[None], Delivery] = {}
        self._recording: set[str] = set()
        """Ids of deliveries that are posted and only have to be written down."""
        self._wake = asyncio.Event()
        self._is_stopping = False

    def stop(self) -> None:
        """Claim nothing more; `run` returns when what is in flight is finished or given back."""
        self._is_stopping = True
        self._wake.set()

    def wake(self) -> None:
        """Look for due deliveries now, and not at the next poll. Called on the loop's thread."""
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`."""
        while not self._is_stopping:
            self._wake.clear()
            wait_s = self._settings.webhook_poll_s
            try:
                await self._claim()
            except Exception as error:
                # Whatever the database's trouble is, it is gone or still there in a second.
                self._log.warning("claim_failed", error=type(error).__name__)
                wait_s = max(wait_s, _LEDGER_DOWN_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
        await self._stop_work()

    async def _claim(self) -> None:
        room = self._settings.webhook_concurrency - len(self._in_flight)
        if room <= 0:
            return
        by_host = Counter(delivery.host for delivery in self._in_flight.values())
        claimed = await asyncio.to_thread(self._outbox.claim, room, by_host)
        for delivery in claimed:
            task = asyncio.create_task(self._send(delivery))
            self._in_flight[task] = delivery
            task.add_done_callback(self._retire)

    def _retire(self, task: asyncio.Task[None]) -> None:
        delivery = self._in_flight.pop(task)
        others = sum(other.host == delivery.host for other in self._in_flight.values())
        if others + 1 >= self._settings.webhook_per_host or len(self._in_flight) + 1 >= self._settings.webhook_concurrency:
            # It made room where there was none.
            self._wake.set()

    async def _send(self, delivery: Delivery) -> None:
        try:
            outcome = await self._attempt(delivery)
        except asyncio.CancelledError:
            # Only `_stop_work` cancels, and it waits for this.
            await asyncio.to_thread(self._outbox.release, delivery)
            return
        self._recording.add(delivery.id)
        try:
            await self._finish(delivery, outcome)
        finally:
            self._recording.discard(delivery.id)

    async def _attempt(self, delivery: Delivery) -> Outcome:
        if delivery.attempt > MAX_ATTEMPTS:
            return Outcome("exhausted", error="the sender ended in the middle of every attempt")
        try:
            letter = await asyncio.to_thread(self._writer.write, delivery)
        except Exception as error:
            self._log.error("letter_failed", delivery_id=delivery.id, event_id=delivery.event_id, error=repr(error))
            return outcome_of(Answer(error="the webhook could not be prepared"), delivery.attempt, self._rng)
        timestamp = int(delivery.now.timestamp())
        answer = await self._poster.deliver(delivery.url, delivery.event_id, letter.body, letter.secrets, timestamp, delivery.attempt)
        return outcome_of(answer, delivery.attempt, self._rng)

    async def _finish(self, delivery: Delivery, outcome: Outcome) -> None:
        # The host only: paths and queries of webhook URLs are often secrets.
        log = self._log.bind(delivery_id=delivery.id, event_id=delivery.event_id, host=delivery.host, attempt=delivery.attempt)
        for wait_s in (*_FINISH_WAITS_S, None):
            try:
                is_mine = await asyncio.to_thread(self._outbox.finish, delivery, outcome)
            except Exception as error:
                log.warning("finish_failed", error=type(error).__name__)
                if wait_s is not None:
                    await asyncio.sleep(wait_s)
                continue
            log.info(
                "attempt_finished" if is_mine else "attempt_overtaken",
                state=outcome.state,
                status=outcome.status,
                error=outcome.error,
                latency_ms=outcome.latency_ms,
            )
            return

    async def _stop_work(self) -> None:
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=max(0.0, self._settings.shutdown_s - 2 * _RELEASE_S))
        for task, delivery in self._in_flight.items():
            if delivery.id not in self._recording:
                task.cancel()
        if self._in_flight:
            _, left = await asyncio.wait(self._in_flight, timeout=_RELEASE_S)
            if left:
                self._log.warning("stopped_with_work", num_deliveries=len(left))
