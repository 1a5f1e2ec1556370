"""
Tells how far jobs are, beside the deliveries: `job.progress`, to whoever asked for it by name.

It is worth nothing a moment later. So it is posted once and forgotten, whatever the receiver answers; what finds no room is dropped; and
it has room, a thread and a connection of its own, so that no delivery ever waits for it. Knows neither HTTP, SQL nor Redis.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import structlog

from services.webhook_sender.schedule import Answer
from services.webhook_sender.sender import Poster, Writer
from services.webhook_sender.words import News, Word, Words

Result = TypeVar("Result")

_LOOK_S = 0.1
_IDLE_S = 1.0
"""Between two looks while nobody watches. A job's first words may come so much late."""

_SHARE = 4
"""Of the room, the part that one receiver may take."""

_FIRST_REST_S, _LONGEST_REST_S, _LONGEST_ASKED_S = 1.0, 60.0, 3600.0


class Places:
    """Who is being told of what now, and who is left in peace. Pure; time is given to it."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._most_of_lane = max(1, total // _SHARE)
        self._taken: set[tuple[str, str]] = set()
        self._of_lane: Counter[str] = Counter()
        self._rests: dict[str, tuple[float, float]] = {}
        """Until when a lane rests, and how long that is."""

    def take(self, job_id: str, lane: str, now: float) -> bool:
        """Is there room to tell this receiver of this job? Then it is taken until `leave`."""
        has_room = len(self._taken) < self._total and self._of_lane[lane] < self._most_of_lane
        if not has_room or (job_id, lane) in self._taken or (lane in self._rests and self._rests[lane][0] > now):
            return False
        self._taken.add((job_id, lane))
        self._of_lane[lane] += 1
        return True

    def leave(self, job_id: str, lane: str) -> None:
        """It is over."""
        self._taken.remove((job_id, lane))
        self._of_lane -= Counter([lane])

    def judge(self, lane: str, answer: Answer, now: float) -> None:
        """A receiver that fails rests for as long as it asks, or for a second, and twice as long each time."""
        # What is long over is no sign any more, and lanes are many.
        self._rests = {name: rest for name, rest in self._rests.items() if rest[0] + _LONGEST_REST_S > now}
        last = self._rests.pop(lane, None)
        if answer.is_success:
            return
        if last is not None and last[0] > now:
            # It was in flight when the first of them failed.
            self._rests[lane] = last
            return
        doubled_s = _FIRST_REST_S if last is None else min(2 * last[1], _LONGEST_REST_S)
        rest_s = doubled_s if answer.retry_after_s is None else min(max(answer.retry_after_s, _FIRST_REST_S), _LONGEST_ASKED_S)
        self._rests[lane] = (now + rest_s, min(rest_s, _LONGEST_REST_S))


class ProgressTeller:
    """One process's share of it."""

    def __init__(self, words: Words, writer: Writer, poster: Poster, at_once: int, rng: random.Random | None = None) -> None:
        """
        Args:
            at_once: posts in flight.
        """
        self._words = words
        self._writer = writer
        self._poster = poster
        self._places = Places(at_once)
        self._rng = rng or random.Random()  # noqa: S311 - whose turn it is, not a secret
        self._log = structlog.get_logger()
        self._thread = ThreadPoolExecutor(1, "progress")
        self._posts: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Tell, until it is canceled; what is being posted then is dropped."""
        try:
            while True:
                await asyncio.sleep(await self._look())
        finally:
            for task in self._posts:
                task.cancel()
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _look(self) -> float:
        """Post what there is to tell. Returns the seconds until there may be more."""
        try:
            news = await self._aside(self._words.news)
            if news:
                await self._tell(news)
        except Exception as error:
            # Whatever the database's trouble is, it is gone or still there in a second.
            self._log.warning("progress_not_read", error=type(error).__name__)
            return _IDLE_S
        return _IDLE_S if news is None else _LOOK_S

    async def _tell(self, news: list[News]) -> None:
        # If there is not room for all, then not always for the same ones.
        self._rng.shuffle(news)
        now = time.monotonic()
        chosen = [replace(item, watchers=tuple(w for w in item.watchers if self._places.take(item.job_id, w.lane, now))) for item in news]
        chosen = [item for item in chosen if item.watchers]
        taken = {(item.job_id, watcher.lane) for item in chosen for watcher in item.watchers}
        try:
            words = await self._aside(self._words.words, chosen) if chosen else []
            for word in words:
                task = asyncio.create_task(self._post(word))
                taken.remove((word.job_id, word.lane))
                self._posts.add(task)
                task.add_done_callback(self._posts.discard)
        finally:
            # Another sender was quicker, or the job has ended.
            for job_id, lane in taken:
                self._places.leave(job_id, lane)

    async def _post(self, word: Word) -> None:
        letter = word.letter
        try:
            answer = await self._attempt(word)
            self._places.judge(word.lane, answer, time.monotonic())
            if not answer.is_success:
                # The host only: paths and queries of webhook URLs are often secrets.
                self._log.info("progress_not_told", event_id=letter.event_id, host=letter.host, status=answer.status, error=answer.error)
            # It arrived before its answer did, and the next one must not come sooner than half a second after it.
            await self._aside(self._words.told, word.job_id)
        finally:
            self._places.leave(word.job_id, word.lane)

    async def _attempt(self, word: Word) -> Answer:
        letter = word.letter
        if word.body is None:
            return Answer(error="the webhook could not be prepared")
        try:
            secrets, timestamp = self._writer.secrets(letter), int(letter.now.timestamp())
            return await self._poster.deliver(letter.url, letter.event_id, word.body, secrets, timestamp, 1, letter.trace)
        except Exception as error:  # whatever a receiver has come up with, and whatever our key opens
            return Answer(error=f"unexpected {type(error).__name__}")

    async def _aside(self, call: Callable[..., Result], *args: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)
