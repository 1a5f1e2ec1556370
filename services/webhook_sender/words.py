"""
What there is to say of jobs' progress, and to whom: the few calls of the ledger and of Redis that `ProgressTeller` needs, made for it.

Every word is in Redis, where workers write it; so are the turns, by which several senders tell of a job no more often than one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.db import Database
from shared.dialects import dialect_of
from shared.ids import new_id
from shared.job_document import Progress, progress_document
from shared.lifecycle.events import JOB_PROGRESS
from shared.lifecycle.letters import Letter
from shared.lifecycle.watchers import Moment, WatchedJob, Watcher, find_watched, read_moments
from shared.progress import LiveState

_FIND_S = 0.5
"""Between two looks for who watches what, while somebody does."""

_MOST = 256
"""Watchers found at once."""


@dataclass(frozen=True)
class News:
    """A job that has moved, and those who want to hear of it."""

    job_id: str
    word: str
    """How far everything is that is drawn for it; equal only if nothing has moved."""
    progress: dict[str, Progress]
    """The same, by work id."""
    tenant_id: str
    watchers: tuple[Watcher, ...]


@dataclass(frozen=True)
class Word:
    """A word of a job's progress for one receiver. `body` None: it could not be made."""

    job_id: str
    lane: str
    letter: Letter
    body: bytes | None


class Words(Protocol):
    """Blocking calls, made one at a time."""

    def news(self) -> list[News] | None:
        """The jobs that have moved since they were last told of, and may be told of now; None: nobody watches any."""

    def words(self, news: Sequence[News]) -> list[Word]:
        """Take the turns of these jobs; what to post of those for which no other sender has."""

    def told(self, job_id: str) -> None:
        """A post about a job is over."""


class LiveWords:
    """The words of Postgres and Redis."""

    def __init__(self, db: Database, live: LiveState, write: Callable[[Letter], bytes | None]) -> None:
        self._db = db
        self._live = live
        self._write = write
        self._watched: list[WatchedJob] = []
        self._found_at = float("-inf")

    def news(self) -> list[News] | None:
        if not self._watched or time.monotonic() - self._found_at >= _FIND_S:
            self._watched = find_watched(self._db, _MOST)
            self._found_at = time.monotonic()
        if not self._watched:
            return None
        said = self._live.read_progress(sorted({work_id for job in self._watched for work_id in job.work_ids}))
        news = [_news(job, {work_id: said[work_id] for work_id in job.work_ids if work_id in said}) for job in self._watched]
        untold = self._live.untold({item.job_id: item.word for item in news if item.progress})
        return [item for item in news if item.job_id in untold]

    def words(self, news: Sequence[News]) -> list[Word]:
        won = self._live.take_turns({item.job_id: item.word for item in news})
        mine = {item.job_id: item for item in news if item.job_id in won}
        if not mine:
            return []
        progress = {work_id: said for item in mine.values() for work_id, said in item.progress.items()}
        return [word for moment in read_moments(self._db, mine, progress) for word in self._of_moment(mine[moment.job_id], moment)]

    def told(self, job_id: str) -> None:
        self._live.lengthen_turn(job_id)

    def _of_moment(self, item: News, moment: Moment) -> list[Word]:
        event_id = new_id("evt")
        letters = [(watcher.lane, _letter(item, watcher, moment, event_id)) for watcher in item.watchers]
        return [Word(item.job_id, lane, letter, self._write(letter)) for lane, letter in letters]


def _news(job: WatchedJob, progress: dict[str, Progress]) -> News:
    # A hash, for it stays in Redis for a while after the job, and tells nothing.
    word = hashlib.sha256(json.dumps(progress, sort_keys=True).encode()).hexdigest()[:16]
    return News(job.id, word, progress, job.tenant_id, job.watchers)


def _letter(item: News, watcher: Watcher, moment: Moment, event_id: str) -> Letter:
    dialect = moment.dialect if watcher.endpoint_id is None else None
    # Other interfaces say it in words of their own, for which they need the whole job.
    is_whole = dialect_of(dialect).webhook_body is not None
    return Letter(
        tenant_id=item.tenant_id,
        endpoint_id=watcher.endpoint_id,
        url=watcher.url,
        sealed_secrets=watcher.sealed_secrets,
        is_thin=watcher.is_thin,
        event_id=event_id,
        event_type=JOB_PROGRESS,
        event_seq=None,
        event_data=moment.document if is_whole else progress_document(moment.document),
        event_created_at=moment.at,
        now=moment.at,
        dialect=dialect,
        trace=moment.trace,
    )
