"""Progress is told to those for whom there is room, once, and holds up nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from services.webhook_sender.progress import Places, ProgressTeller
from services.webhook_sender.schedule import Answer
from services.webhook_sender.words import News, Word
from shared.lifecycle.letters import Letter
from shared.lifecycle.watchers import Watcher
from tests.fakes import FakePoster, FakeWriter

OK = Answer(200)


def watcher(host: str) -> Watcher:
    return Watcher(None, f"https://{host}/hook", f"ten_1/{host}", False, (b"",))


class FakeWords:
    """Every job moves at every look; each has a word for each of its watchers, unless another sender has its turn."""

    def __init__(self, hosts: dict[str, Sequence[str]], lost: Sequence[str] = (), fails: int = 0) -> None:
        self.asked: list[list[tuple[str, str]]] = []
        self.over: list[str] = []
        self.num_looks = 0
        self._hosts = hosts
        self._lost = lost
        self._fails = fails

    def news(self) -> list[News] | None:
        self.num_looks += 1
        if self.num_looks <= self._fails:
            raise OSError("the database restarts")
        return [News(job_id, "word", {}, "ten_1", tuple(map(watcher, hosts))) for job_id, hosts in self._hosts.items()] or None

    def words(self, news: Sequence[News]) -> list[Word]:
        self.asked.append(sorted((item.job_id, w.lane) for item in news for w in item.watchers))
        return [
            Word(item.job_id, w.lane, letter(f"evt_{item.job_id}_{self.num_looks}", w), b"{}")
            for item in news
            for w in item.watchers
            if item.job_id not in self._lost
        ]

    def told(self, job_id: str) -> None:
        self.over.append(job_id)


def letter(event_id: str, to: Watcher) -> Letter:
    now = datetime.now(UTC)
    made: dict[str, Any] = {"tenant_id": "ten_1", "event_type": "job.progress", "event_data": {}, "event_seq": None, "is_thin": False}
    times = {"event_created_at": now, "now": now}
    return Letter(**made, **times, event_id=event_id, endpoint_id=None, url=to.url, sealed_secrets=(b"",), dialect=None, trace=None)


async def tell_until(is_so: Callable[[], Any], words: FakeWords, poster: FakePoster, at_once: int = 16) -> None:
    telling = asyncio.create_task(ProgressTeller(words, FakeWriter(), poster, at_once).run())
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.005)
    telling.cancel()
    await asyncio.wait([telling])


def test_a_hanging_receiver_is_told_of_nothing_more() -> None:
    """One post of a job hangs at a time, and four at one receiver; others hear all the while."""
    hosts = {f"job_{n}": ["dead.example"] for n in range(9)} | {"job_9": ["dead.example", "a.example"]}
    words, poster = FakeWords(hosts), FakePoster({"dead.example": (60, OK), "a.example": (0, OK)})
    asyncio.run(tell_until(lambda: len(poster.posted) >= 4, words, poster))
    assert poster.most_at_once == {"dead.example": 4, "a.example": 1}
    first, *later = words.asked
    assert len(first) == 5
    assert all(asked == [("job_9", "ten_1/a.example")] for asked in later)
    assert words.over[:3] == ["job_9"] * 3


def test_no_more_than_the_limit_are_in_flight() -> None:
    """What finds no room is dropped; whose turn another sender has takes none."""
    hosts = {f"job_{n}": [f"{n}.example"] for n in range(10)}
    words = FakeWords(hosts, lost=["job_0", "job_1"])
    poster = FakePoster({f"{n}.example": (60, OK) for n in range(10)})
    asyncio.run(tell_until(lambda: words.num_looks > 40 or poster.most_at_once.total() == 3, words, poster, at_once=3))
    assert poster.most_at_once.total() == 3
    assert all(len(asked) <= 3 for asked in words.asked)
    assert not {"0.example", "1.example"} & set(poster.most_at_once)


def test_a_failing_receiver_rests() -> None:
    """What failed is not posted again, and for a second nothing else is; a crash of the poster is no end."""
    words = FakeWords({"job_1": ["bad.example"], "job_2": ["unknown.example"], "job_3": ["a.example"]}, fails=1)
    poster = FakePoster({"bad.example": (0, Answer(500)), "a.example": (0, OK)})
    asyncio.run(tell_until(lambda: sum("job_3" in event_id for event_id in poster.posted) >= 4, words, poster))
    assert sum("job_1" in event_id for event_id in poster.posted) == 1
    assert len(set(poster.posted)) == len(poster.posted)


def test_nobody_to_tell_costs_a_look_a_second() -> None:
    """While nobody watches there is one look, and then a pause."""

    async def wait() -> None:
        telling = asyncio.create_task(ProgressTeller(words, FakeWriter(), FakePoster({}), 16).run())
        await asyncio.sleep(0.3)
        telling.cancel()
        await asyncio.wait([telling])

    words = FakeWords({})
    asyncio.run(wait())
    assert words.num_looks == 1
    assert not words.asked


@pytest.mark.parametrize(
    ("answers", "rests_s"),
    [
        ([OK], 0),
        ([Answer(500)], 1),
        ([Answer(error="no connection")] * 3, 4),
        ([Answer(500)] * 20, 60),
        ([Answer(500), Answer(500), OK], 0),
        ([Answer(429, retry_after_s=30)], 30),
        ([Answer(503, retry_after_s=86_400)], 3600),
        ([Answer(503, retry_after_s=-5)], 1),
    ],
)
def test_rests(answers: list[Answer], rests_s: float) -> None:
    """One that fails rests for twice as long each time, or as it asks; one success ends it."""
    places = Places(16)
    now = 100.0
    for number, answer in enumerate(answers):
        # Each comes as soon as the longest rest is over.
        now = 100.0 + 60 * number
        places.judge("lane", answer, now)
    if rests_s:
        # One that was on its way meanwhile makes it no longer.
        places.judge("lane", Answer(500), now + 0.5)
        assert not places.take("job_1", "lane", now + rests_s - 0.01)
    assert places.take("job_1", "other", now)
    assert places.take("job_1", "lane", now + rests_s)
    assert not places.take("job_1", "lane", now + rests_s)
    places.leave("job_1", "lane")
    assert places.take("job_1", "lane", now + rests_s)
