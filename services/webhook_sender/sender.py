"""
The loop: claim what is due, post it, write down how it went, and stop in time.

Knows neither HTTP nor SQL; the outbox blocks and is called in threads. A lost process loses nothing: what it had claimed is due
again when the lease ends. So a receiver may get a delivery twice, and sees that by its `webhook-id`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Protocol

import structlog

from services.webhook_sender.outbox import Outbox
from services.webhook_sender.queues import QUICK_MS, Bounds, Queues
from services.webhook_sender.schedule import MAX_ATTEMPTS, OVERLOADED, Answer, outcome_of
from services.webhook_sender.settings import WebhookSenderSettings
from shared.lifecycle.deliveries import Delivery, Outcome
from shared.lifecycle.letters import Letter
from shared.trace import TraceContext

_FINISH_WAITS_S = (0.1, 0.5, 2.0)
"""Between tries to write down outcomes; within the lease's margin."""

_GATHER_S = 0.01

_TURN_S = 2.0
"""A claimed delivery that has not had its turn by then is given back; within the lease's margin, too."""

_CLOSE_EVERY_S = 5.0
_LEDGER_DOWN_S = 1.0
_RELEASE_S = 1.5
"""Of the time for stopping, what is kept for giving back deliveries."""


class Writer(Protocol):
    """Knows the secrets; `LetterWriter`."""

    def secrets(self, letter: Letter) -> tuple[str, ...]:
        """What signs the letter now."""


class Poster(Protocol):
    """Posts; `Deliverer`."""

    async def deliver(
        self, url: str, event_id: str, body: bytes, secrets: tuple[str, ...], timestamp: int, attempt: int, trace: TraceContext | None
    ) -> Answer:
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
        self._queues = Queues(Bounds(settings.webhook_concurrency, settings.webhook_per_endpoint, settings.webhook_per_host))
        self._posts: dict[asyncio.Task[None], Delivery] = {}
        self._results: list[tuple[Delivery, Outcome]] = []
        """Posted, and still to be written down."""
        self._has_results = asyncio.Event()
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._close_at = 0.0

    def stop(self) -> None:
        """Claim nothing more; `run` returns when what is in flight is finished or given back."""
        self._is_stopping = True
        self._wake.set()

    def wake(self) -> None:
        """Look for due deliveries now, and not at the next poll. Called on the loop's thread."""
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`."""
        recorder = asyncio.create_task(self._record())
        while not self._is_stopping:
            self._wake.clear()
            wait_s = self._settings.webhook_poll_s
            try:
                await self._claim()
                await self._release(self._queues.overdue(time.monotonic() - _TURN_S))
                await self._close_disabled()
            except Exception as error:
                # Whatever the database's trouble is, it is gone or still there in a second.
                self._log.warning("claim_failed", error=type(error).__name__)
                wait_s = max(wait_s, _LEDGER_DOWN_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
        await self._stop_work(recorder)

    async def _claim(self) -> None:
        room = self._queues.room(time.monotonic())
        if room.total > 0:
            claimed = await asyncio.to_thread(self._outbox.claim, room)
            now = time.monotonic()
            for delivery in claimed:
                self._queues.add(delivery, now)
        self._start_posts()

    def _start_posts(self) -> None:
        if self._is_stopping:
            return
        for since, delivery in self._queues.start(time.monotonic()):
            task = asyncio.create_task(self._send(delivery, since))
            self._posts[task] = delivery
            task.add_done_callback(self._posts.pop)

    async def _release(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            for delivery in deliveries:
                self._queues.forget(delivery)
            await asyncio.to_thread(self._outbox.release, deliveries)

    async def _close_disabled(self) -> None:
        if time.monotonic() >= self._close_at:
            has_more = await asyncio.to_thread(self._outbox.close_disabled)
            self._close_at = time.monotonic() + (0 if has_more else _CLOSE_EVERY_S)

    async def _send(self, delivery: Delivery, claimed_at: float) -> None:
        try:
            answer = await self._attempt(delivery, claimed_at)
        except Exception as error:  # its place in the line must be given back, whatever a receiver has come up with
            self._log.error("attempt_crashed", delivery_id=delivery.id, event_id=delivery.event_id, error=type(error).__name__)
            answer = Answer(error="the answer could not be read")
        outcome = outcome_of(answer, delivery.tries, self._rng, 1 if delivery.kind == "test" else MAX_ATTEMPTS)
        now = time.monotonic()
        self._queues.posted(delivery, answer.is_success and answer.latency_ms < QUICK_MS)
        if answer.status in OVERLOADED:
            self._queues.pause(delivery, now, answer.retry_after_s)
        elif answer.is_success:
            self._queues.resume(delivery)
        self._results.append((delivery, outcome))
        self._has_results.set()
        self._start_posts()

    async def _attempt(self, delivery: Delivery, claimed_at: float) -> Answer:
        if delivery.tries > MAX_ATTEMPTS:
            return Answer(error="the sender ended in the middle of every attempt", is_own_fault=True)
        try:
            secrets = self._writer.secrets(delivery)
        except Exception as error:
            self._log.error("signing_failed", delivery_id=delivery.id, event_id=delivery.event_id, error=repr(error))
            secrets = ()
        if delivery.body is None or not secrets:
            return Answer(error="the webhook could not be prepared", is_own_fault=True)
        timestamp = int(delivery.now.timestamp() + time.monotonic() - claimed_at)
        return await self._poster.deliver(
            delivery.url, delivery.event_id, delivery.body, secrets, timestamp, delivery.attempt, delivery.trace
        )

    async def _record(self) -> None:
        """
        Write down what has been posted, all that there is at once: while one transaction is on its way to disk, the next one fills.

        Ends when the sender stops and nothing is left.
        """
        while self._results or self._posts or not self._is_stopping:
            await self._has_results.wait()
            self._has_results.clear()
            if self._results:
                results, self._results = self._results, []
                await self._finish(results)
                if len(results) > 1:
                    # There is much to do, and nobody waits for this but the disk: the next transaction takes more at once.
                    await asyncio.sleep(_GATHER_S)
                for delivery, _ in results:
                    if self._queues.forget(delivery):
                        # It made room where there was none.
                        self._wake.set()

    async def _finish(self, results: Sequence[tuple[Delivery, Outcome]]) -> None:
        for wait_s in (*_FINISH_WAITS_S, None):
            try:
                written = await asyncio.to_thread(self._outbox.finish, results)
            except Exception as error:
                self._log.warning("finish_failed", error=type(error).__name__, num_deliveries=len(results))
                if wait_s is not None:
                    await asyncio.sleep(wait_s)
                continue
            for delivery, outcome in results:
                self._tell(delivery, outcome, delivery.id in written)
            return

    def _tell(self, delivery: Delivery, outcome: Outcome, is_mine: bool) -> None:
        # Of what arrives the ledger tells; a line for each would cost half as much as its post.
        tell = self._log.debug if is_mine and outcome.state == "delivered" else self._log.info
        tell(
            "attempt_finished" if is_mine else "attempt_overtaken",
            delivery_id=delivery.id,
            event_id=delivery.event_id,
            # The host only: paths and queries of webhook URLs are often secrets.
            host=delivery.host,
            attempt=delivery.attempt,
            state=outcome.state,
            status=outcome.status,
            error=outcome.error,
            latency_ms=outcome.latency_ms,
        )

    async def _stop_work(self, recorder: asyncio.Task[None]) -> None:
        unposted = self._queues.take_waiting()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._release(unposted), _RELEASE_S)
        if self._posts:
            await asyncio.wait(self._posts, timeout=max(0.0, self._settings.shutdown_s - 2 * _RELEASE_S))
        hung = dict(self._posts)
        for task in hung:
            task.cancel()
        if hung:
            await asyncio.wait(hung)
        self._has_results.set()
        given_back = asyncio.create_task(self._release([delivery for task, delivery in hung.items() if task.cancelled()]))
        _, left = await asyncio.wait({recorder, given_back}, timeout=_RELEASE_S)
        if left:
            self._log.warning("stopped_with_work", num_deliveries=self._queues.num_held)
            for task in left:
                task.cancel()
