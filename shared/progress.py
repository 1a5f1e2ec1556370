"""
What lives in Redis and may vanish at any moment: progress, stop flags, hot token grids, checkpoints of running work, wake-ups.

Every call survives a dead Redis: it answers "nothing", and for a second after a failure it does not even ask. Whoever
needs the truth reads Postgres or S3.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeVar

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.wakeup import Bell, Listener, Topic, channel, publish_command

Result = TypeVar("Result")

_PROGRESS_S = 600
_TURN_MS = 500
"""Between two webhooks that tell how far a job is."""
_STOP_S = 600
_HOT_GRID_S = 900
"""A decoder normally reads a grid within seconds; after this it costs a read from S3."""
_CHECKPOINT_S = 3600
"""Longer than any wait between a worker's death and its successor's claim."""
MAX_CHECKPOINT_BYTES = 64 << 20
"""Latents of 2048x2048 pixels are 4 MiB; what is larger is not kept, and the work begins anew."""
_PAUSE_S = 1.0

log = structlog.get_logger()


class LiveState:
    """One Redis. Thread-safe."""

    def __init__(self, redis_url: str) -> None:
        self._redis: Any = redis.Redis.from_url(
            redis_url,
            socket_timeout=2,
            socket_connect_timeout=2,
            health_check_interval=10,
            # One retry at once, for a connection that Redis closed meanwhile. The default waits for seconds.
            retry=Retry(NoBackoff(), 1),
        )
        self._down_until = 0.0
        self._bell = Bell(self._publish, self._redis.connection_pool)

    def ring(self, *topics: Topic) -> None:
        """Wake whoever listens for these, soon. Never waits; call it after the commit that makes the work visible."""
        self._bell.ring(*topics)

    def listen(self, wake: Mapping[Topic, Callable[[], object]]) -> Listener:
        """Have these called, on a thread of the listener's, whenever their topic is rung."""
        return Listener(self._redis, {topic: partial(_without_ids, call) for topic, call in wake.items()})

    def tell_changes(self, ids: Collection[str], has_deliveries: bool) -> None:
        """Wake whoever waits for these jobs or tenants, or delivers webhooks, soon. Never waits; call it after the commit."""
        if has_deliveries:
            # First: somebody waits for it, as for nothing else here.
            self._bell.ring(Topic.DELIVERIES_DUE)
        self._bell.ring(Topic.CHANGES, ids=ids)

    def hear_changes(self, call: Callable[[frozenset[str] | None], object]) -> Listener:
        """Have this called, on a thread of the listener's, with the ids of jobs and tenants that changed; None: it may be any."""
        return Listener(self._redis, {Topic.CHANGES: call})

    def write_progress(self, progress: Mapping[str, tuple[str, int, int]]) -> None:
        """Publish phase, done and total by work id."""

        def work() -> None:
            pipe = self._redis.pipeline(transaction=False)
            for work_id, state in progress.items():
                pipe.set(f"glmq:progress:{work_id}", json.dumps(state), ex=_PROGRESS_S)
            pipe.execute()

        self._try(work, None)

    def read_progress(self, work_ids: list[str]) -> dict[str, tuple[str, int, int]]:
        """What was last published; ids without anything are left out."""
        values: list[bytes | None] = self._try(lambda: self._redis.mget([f"glmq:progress:{work_id}" for work_id in work_ids]), [])
        return {work_id: tuple(json.loads(value)) for work_id, value in zip(work_ids, values, strict=False) if value}

    def untold(self, words: Mapping[str, str]) -> set[str]:
        """
        Which of these jobs may be told of now, and have not been told of in these words last. Without Redis there are none.

        Args:
            words: how far it is, by job id; any text.
        """

        def work() -> set[str]:
            jobs = list(words)
            told, turns = ([f"glmq:progress-{kind}:{job_id}" for job_id in jobs] for kind in ("told", "turn"))
            found = self._redis.mget(told + turns)
            state = zip(jobs, found[: len(jobs)], found[len(jobs) :], strict=True)
            return {job_id for job_id, last, turn in state if turn is None and last != words[job_id].encode()}

        return self._try(work, set()) if words else set()

    def take_turns(self, words: Mapping[str, str]) -> set[str]:
        """Which of these jobs the caller may tell of now, in these words; for half a second nobody else may."""

        def work() -> set[str]:
            pipe = self._redis.pipeline(transaction=False)
            for job_id in words:
                pipe.set(f"glmq:progress-turn:{job_id}", "1", nx=True, px=_TURN_MS)
            won = {job_id for job_id, is_won in zip(words, pipe.execute(), strict=True) if is_won}
            for job_id in won:
                pipe.set(f"glmq:progress-told:{job_id}", words[job_id], ex=_PROGRESS_S)
            pipe.execute()
            return won

        return self._try(work, set()) if words else set()

    def lengthen_turn(self, job_id: str) -> None:
        """It was told of only now: nobody may tell of it for half a second from here."""
        self._try(lambda: self._redis.set(f"glmq:progress-turn:{job_id}", "1", px=_TURN_MS), None)

    def flag_stop(self, work_ids: Collection[str]) -> None:
        """Tell workers to drop this work soon; without Redis they hear of it at their next heartbeat."""
        if not work_ids:
            return

        def work() -> None:
            pipe = self._redis.pipeline(transaction=False)
            for work_id in work_ids:
                pipe.set(f"glmq:stop:{work_id}", "1", ex=_STOP_S)
            pipe.publish(channel(Topic.STOPS), "")
            pipe.execute()

        self._try(work, None)

    def read_stops(self, work_ids: list[str]) -> set[str]:
        """Which of this work is flagged to stop."""
        if not work_ids:
            return set()
        values: list[bytes | None] = self._try(lambda: self._redis.mget([f"glmq:stop:{work_id}" for work_id in work_ids]), [])
        return {work_id for work_id, value in zip(work_ids, values, strict=False) if value}

    def clear_stops(self, work_ids: Collection[str]) -> None:
        """Take flags back: this work is wanted again."""
        if work_ids:
            self._try(lambda: self._redis.delete(*(f"glmq:stop:{work_id}" for work_id in work_ids)), None)

    def forget(self, work_ids: Collection[str], grid_hashes: Collection[str]) -> None:
        """Drop what is kept of work that was erased."""
        keys = [f"glmq:{kind}:{work_id}" for work_id in work_ids for kind in ("progress", "checkpoint")]
        keys += [f"glmq:grid:{sha256}" for sha256 in grid_hashes]
        if keys:
            self._try(lambda: self._redis.delete(*keys), None)

    def put_grid(self, sha256: str, data: bytes) -> None:
        """Keep a token grid at hand, under the hash of its bytes."""
        self._try(lambda: self._redis.set(f"glmq:grid:{sha256}", data, ex=_HOT_GRID_S), None)

    def get_grid(self, sha256: str) -> bytes | None:
        """A token grid that is still hot."""
        found: bytes | None = self._try(lambda: self._redis.get(f"glmq:grid:{sha256}"), None)
        return found

    def put_checkpoint(self, work_id: str, data: bytes) -> None:
        """Keep how far running work has come, over what was kept before; what is larger than `MAX_CHECKPOINT_BYTES` is not kept."""
        if len(data) > MAX_CHECKPOINT_BYTES:
            log.warning("checkpoint_too_large", work_id=work_id, size_bytes=len(data))
            return
        self._try(lambda: self._redis.set(f"glmq:checkpoint:{work_id}", data, ex=_CHECKPOINT_S), None)

    def get_checkpoint(self, work_id: str) -> bytes | None:
        """How far an earlier attempt had come, if that is still known. Whoever reads it checks it: it may be any attempt's."""
        found: bytes | None = self._try(lambda: self._redis.get(f"glmq:checkpoint:{work_id}"), None)
        return found

    def drop_checkpoint(self, work_id: str) -> None:
        """Forget it: the work is done."""
        self._try(lambda: self._redis.delete(f"glmq:checkpoint:{work_id}"), None)

    def is_up(self) -> bool:
        """Does Redis answer?"""
        return bool(self._try(lambda: self._redis.ping(), False))

    def _publish(self, rung: Mapping[Topic, set[str]]) -> bool:
        def work() -> bool:
            pipe = self._redis.pipeline(transaction=False)
            for topic, ids in rung.items():
                pipe.execute_command(*publish_command(topic, ids))
            pipe.execute()
            return True

        return self._try(work, False)

    def _try(self, work: Callable[[], Result], otherwise: Result) -> Result:
        if time.monotonic() < self._down_until:
            return otherwise
        try:
            return work()
        except redis.RedisError as error:
            self._down_until = time.monotonic() + _PAUSE_S
            log.warning("redis_away", error=type(error).__name__)
            return otherwise


def _without_ids(call: Callable[[], object], _ids: frozenset[str] | None) -> None:
    call()
