"""Wake-ups through a real Redis: heard at once, missed without harm, and never waited for."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import redis

from infra.embedded.find import redis_program
from infra.embedded.memory import Memory
from infra.embedded.ports import free_port
from infra.embedded.redis import RedisServer
from shared.progress import LiveState
from shared.wakeup import Bell, Topic, publish_command
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


class Heard:
    """Who listens to a topic, and who rings for it by a bell of which it is known what its thread said."""

    def __init__(self, redis_url: str) -> None:
        self.client = redis.Redis.from_url(redis_url)
        self.by_thread: list[dict[Topic, set[str]]] = []
        self.bell = Bell(self._publish, self.client.connection_pool)
        self.ids: list[frozenset[str]] = []
        self.listener = LiveState(redis_url).hear_changes(lambda ids: self.ids.append(ids) if ids is not None else None)
        wait_until(lambda: self.listener.is_hearing, 30)

    def _publish(self, rung: Mapping[Topic, set[str]]) -> bool:
        self.by_thread.append(dict(rung))
        try:
            for topic, ids in rung.items():
                self.client.execute_command(*publish_command(topic, ids))
        except redis.RedisError:
            return False
        return True

    def ring(self, *ids: str) -> None:
        """Ring, and wait until it is heard."""
        self.bell.ring(Topic.CHANGES, ids=ids)
        wait_until(lambda: any(set(ids) <= heard for heard in self.ids), 30)
        time.sleep(0.1)


@pytest.fixture
def heard(own_redis: RedisServer) -> Iterator[Heard]:
    """A bell and a listener on a Redis that may be stopped."""
    found = Heard(own_redis.url())
    yield found
    found.listener.close()


def test_a_ring_needs_no_thread(heard: Heard) -> None:
    """But the first, which opens the line; all are heard with their ids."""
    for number in range(20):
        heard.ring(f"job_{number}")
    assert heard.by_thread == [{Topic.CHANGES: {"job_0"}}]
    assert [set(ids) for ids in heard.ids] == [{f"job_{number}"} for number in range(20)]


def test_what_is_much_goes_by_the_thread(heard: Heard) -> None:
    """Many ids, for which there might be no room at once; and rings of one topic that come too fast, which are said together."""
    heard.ring("job_a")
    many = [f"job_{number}" for number in range(1000)]
    heard.ring(*many)
    assert len(heard.by_thread) == 2
    for job_id in many:
        heard.bell.ring(Topic.CHANGES, ids=[job_id])
    wait_until(lambda: set().union(*heard.ids[2:]) == set(many), 30)
    assert len(heard.ids) < 500


def test_a_line_that_died_is_replaced(heard: Heard, own_redis: RedisServer) -> None:
    """A ring while Redis is away costs nothing; once it is back the thread says the next one, and the one after goes on a new line."""
    heard.ring("job_a")
    heard.ring("job_b")
    own_redis.stop()
    started = time.monotonic()
    heard.bell.ring(Topic.CHANGES, ids=["job_lost"])
    assert time.monotonic() - started < 1
    wait_until(lambda: not heard.listener.is_hearing, 30)
    own_redis.start()
    wait_until(lambda: heard.listener.is_hearing, 30)
    heard.ring("job_c")
    heard.ring("job_d")
    told = set().union(*(ids for rung in heard.by_thread for ids in rung.values()))
    assert told >= {"job_a", "job_c"}
    assert not told & {"job_b", "job_d"}


def test_lines_are_given_back(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that was silent for long is replaced at the next ring, by the same few connections however often."""
    monkeypatch.setattr("shared.wakeup._TRUSTED_S", 0)
    for number in range(10):
        heard.ring(f"job_{number}")
    assert len(heard.by_thread) == 10
    assert len(heard.client.client_list()) <= 5
    assert heard.client.connection_pool._created_connections <= 3


def test_a_line_that_gets_no_answer_is_given_up(heard: Heard) -> None:
    """Redis stands still, as on a host that hangs: rings cost nothing, go by the thread after a few, and are heard when it goes on."""
    heard.ring("job_a")
    pid = heard.client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        for number in range(30):
            heard.bell.ring(Topic.CHANGES, ids=[f"job_{number}"])
            time.sleep(0.005)
        assert len(heard.by_thread) > 1
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: {f"job_{number}" for number in range(30)} <= set().union(*heard.ids), 30)


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
