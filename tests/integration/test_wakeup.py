"""Wake-ups through a real Redis: heard at once, missed without harm, and never waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from infra.embedded.find import redis_program
from infra.embedded.memory import Memory
from infra.embedded.ports import free_port
from infra.embedded.redis import RedisServer
from shared.progress import LiveState
from shared.wakeup import Topic
from tests.stack import wait_until


@pytest.fixture
def live(redis_url: str) -> LiveState:
    """Redis."""
    return LiveState(redis_url)


def test_a_ring_is_heard_at_once(live: LiveState) -> None:
    """Who listens to a topic is called when it is rung, and not when another one is."""
    heard = threading.Event()
    listener = live.listen({Topic.GRIDS_READY: heard.set})
    wait_until(lambda: listener.is_hearing, 30)
    heard.clear()
    live.ring(Topic.IMAGES_READY)
    assert not heard.wait(0.3)
    live.ring(Topic.GRIDS_READY)
    assert heard.wait(30)
    listener.close()


def test_who_begins_to_listen_is_woken(live: LiveState) -> None:
    """What was rung before anybody listened may be waiting: the listener says so as soon as it hears."""
    woken = threading.Event()
    listener = live.listen({Topic.DELIVERIES_DUE: woken.set})
    assert woken.wait(30)
    listener.close()


def test_many_rings_are_few_messages(live: LiveState) -> None:
    """A thousand rings in a row do not become a thousand messages, and the last one is heard."""
    times: list[float] = []
    listener = live.listen({Topic.GRIDS_READY: lambda: times.append(time.monotonic())})
    wait_until(lambda: listener.is_hearing, 30)
    for _ in range(1000):
        live.ring(Topic.GRIDS_READY)
    rung_at = time.monotonic()
    wait_until(lambda: times[-1] > rung_at - 0.01, 30)
    time.sleep(0.2)
    assert len(times) < 500
    listener.close()


def test_a_stop_flag_rings(live: LiveState) -> None:
    """Workers hear of a stop with its flag."""
    heard = threading.Event()
    listener = live.listen({Topic.STOPS: heard.set})
    wait_until(lambda: listener.is_hearing, 30)
    heard.clear()
    live.flag_stop(["img_x"])
    assert heard.wait(30)
    listener.close()


def test_without_redis_nobody_waits() -> None:
    """Ringing costs nothing while Redis is away, and a listener only hears nothing."""
    live = LiveState(f"redis://127.0.0.1:{free_port()}/0")
    listener = live.listen({Topic.GRIDS_READY: lambda: None})
    started = time.monotonic()
    for _ in range(100):
        live.ring(Topic.GRIDS_READY, Topic.IMAGES_READY)
    assert time.monotonic() - started < 5
    assert not listener.is_hearing
    listener.close()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that may be stopped."""
    server = RedisServer(tmp_path / "redis", Memory(tmp_path / "redis.json"), tmp_path / "redis.log", redis_program(), durable=False)
    server.start()
    yield server
    server.stop()


def test_a_listener_comes_back_with_redis(own_redis: RedisServer) -> None:
    """While Redis is away a listener says that it hears nothing; when it is back, it is heard again."""
    live = LiveState(own_redis.url())
    heard = threading.Event()
    listener = live.listen({Topic.GRIDS_READY: heard.set})
    wait_until(lambda: listener.is_hearing, 30)
    own_redis.stop()
    wait_until(lambda: not listener.is_hearing, 30)
    heard.clear()
    own_redis.start()
    wait_until(lambda: listener.is_hearing, 30)
    # Woken by coming back alone: what was rung meanwhile was heard by nobody.
    assert heard.is_set()
    listener.close()


def test_a_listener_survives_a_flush(live: LiveState, redis_url: str) -> None:
    """FLUSHALL takes values, not listeners."""
    heard = threading.Event()
    listener = live.listen({Topic.GRIDS_READY: heard.set})
    wait_until(lambda: listener.is_hearing, 30)
    heard.clear()
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    live.ring(Topic.GRIDS_READY)
    assert heard.wait(30)
    listener.close()
