"""Events over HTTP, as lists and as streams, on real stores."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from services.api.answers import JobAnswer
from services.api.event_schemas import EventListAnswer
from services.api.parts import Parts
from services.api.settings import ApiSettings
from shared.db import Database
from shared.lifecycle import claims, jobs, work
from shared.lifecycle.feed import read_events
from shared.lifecycle.retention import prune_events
from shared.lifecycle.submit import submit
from shared.progress import LiveState
from shared.states import Stage
from shared.storage import Storage
from tests.integration.api.conftest import Account, assert_problem, client_of, finish_jobs, open_app, png
from tests.integration.conftest import plain_job
from tests.ledger import at_once, execute
from tests.stack import wait_until

STREAM = {"Accept": "text/event-stream"}


class Stream:
    """An event stream, block by block."""

    def __init__(self, client: FlaskClient, path: str, **headers: str) -> None:
        self.response = client.get(path, headers={**STREAM, **headers}, buffered=False)
        assert self.response.status_code == 200, self.response.get_data()
        self._bytes = iter(self.response.response)

    def block(self) -> dict[str, str]:
        """The next block as its fields; a heartbeat is `{"": "hb"}`."""
        # Each event is sent in one piece.
        lines = next(self._bytes).decode().split("\n")
        assert lines[-2:] == ["", ""]
        return dict(line.split(": ", 1) for line in lines[:-2])

    def event(self) -> tuple[str, str | None, dict[str, Any]]:
        """Type, id and data of the next event."""
        block = self.block()
        return block["event"], block.get("id"), json.loads(block["data"])

    def rest(self) -> list[tuple[str, str | None, dict[str, Any]]]:
        """Every event until the stream ends."""
        events = []
        while True:
            try:
                events.append(self.event())
            except StopIteration:
                return events

    def close(self) -> None:
        self.response.close()


@pytest.fixture
def app(settings: ApiSettings) -> Iterator[APIFlask]:
    """An application for each test: what it holds for others is counted."""
    with open_app(settings) as app:
        yield app


def new_job(client: FlaskClient, **request: Any) -> str:
    answer = client.post("/v1/jobs", json={"prompt": "a fox", **request})
    assert answer.status_code == 202, answer.get_json()
    return str(answer.get_json()["id"])


def places(app: APIFlask) -> int:
    parts: Parts = app.extensions["glmq"]
    return parts.waiting._places.total()


def test_list_events_of_a_job(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """A job's events in order, each with the job as it was and links that work now; `after` goes on from a number."""
    job_id = new_job(client)
    new_job(client, prompt="another")
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    body = client.get(f"/v1/jobs/{job_id}/events").get_json()
    EventListAnswer.model_validate(body, strict=True)
    assert [event["type"] for event in body["data"]] == ["job.queued", "job.started", "job.tokens_ready", "job.succeeded"]
    assert [event["data"]["status"] for event in body["data"]] == ["queued", "running", "running", "succeeded"]
    assert body["data"][-1]["data"]["outputs"][0]["url"].startswith(settings.s3_endpoint)
    for event in body["data"]:
        JobAnswer.model_validate(event["data"])
        assert "storage_key" not in json.dumps(event)
    seqs = [event["seq"] for event in body["data"]]
    assert seqs == sorted(seqs)
    later = client.get(f"/v1/jobs/{job_id}/events?after={seqs[1]}").get_json()
    assert [event["seq"] for event in later["data"]] == seqs[2:]
    ends = client.get(f"/v1/jobs/{job_id}/events?types=job.succeeded,job.failed").get_json()
    assert [event["type"] for event in ends["data"]] == ["job.succeeded"]


def test_when_events_are_not_kept_any_more(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """The stream of a job whose events have gone shows the job and ends; the feed answers 410 to whoever knows only what has gone."""
    job_id = new_job(client)
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    prune_events(db, -60, 3)
    assert_problem(client.get("/v1/events?after=1"), 410, "gone", "after")
    assert [event["seq"] for event in client.get("/v1/events").get_json()["data"]] == [4]
    assert Stream(client, "/v1/events", **{"Last-Event-ID": "1"}).event()[0] == "stream.reset"
    prune_events(db, -60, 3)
    [(kind, number, _)] = Stream(client, f"/v1/jobs/{job_id}/events").rest()
    assert kind == "job.snapshot"
    # Or an EventSource would come back for ever.
    assert client.get(f"/v1/jobs/{job_id}/events", headers={**STREAM, "Last-Event-ID": str(number)}).status_code == 204
    assert client.get(f"/v1/jobs/{job_id}/events").get_json()["data"] == []
    new_job(client, prompt="a cat")
    assert [event["seq"] for event in client.get("/v1/events").get_json()["data"]] == [5]


def test_pages_of_the_feed_leave_nothing_out(client: FlaskClient) -> None:
    """Following `next_after` or rel=next visits each event of the tenant once, with a filter too, and tells when there is no more."""
    made = [new_job(client, prompt=f"fox {number}") for number in range(7)]
    for job_id in made[::2]:
        client.post(f"/v1/jobs/{job_id}/cancel")
    url: str | None = "/v1/events?limit=3"
    seen = []
    while url:
        page = client.get(url)
        seen += [event["seq"] for event in page.get_json()["data"]]
        link = page.headers.get("Link", "")
        assert page.get_json()["has_more"] == bool(link)
        url = link.partition(">")[0].removeprefix("<http://localhost") or None
    assert seen == list(range(1, 12))

    canceled, after = [], 0
    for _ in range(10):
        page = client.get(f"/v1/events?limit=2&types=job.canceled&after={after}").get_json()
        canceled += [event["data"]["id"] for event in page["data"]]
        after = page["next_after"]
    assert canceled == made[::2]
    assert after == 11
    assert client.get("/v1/events?types=job.*&limit=100").get_json()["next_after"] == 11


def test_the_feed_has_no_gap_under_concurrent_writers(db: Database, ledger_url: str, account: Account) -> None:
    """While eight writers submit and cancel, readers who go on from the last number they saw never miss one."""
    readers = [Database(ledger_url, pool_size=1) for _ in range(2)]
    is_over = threading.Event()

    def write(writer: int) -> None:
        for turn in range(12):
            job = replace(plain_job(account.tenant_id), prompt=f"{writer} {turn}", webhook=None)
            job_id, _ = submit(db, job)
            if turn % 3 == 0:
                jobs.cancel(db, account.tenant_id, job_id)

    def read(reader: Database) -> list[int]:
        seen: list[int] = []
        cursor = 0
        while True:
            last_look = is_over.is_set()
            page = read_events(reader, account.tenant_id, cursor, 7)
            seen += [event.seq for event in page.events]
            cursor = page.looked_to
            if last_look and not page.has_more:
                return seen

    def write_all() -> None:
        for outcome in at_once([lambda writer=writer: write(writer) for writer in range(8)]):
            assert outcome is None, outcome
        is_over.set()

    calls: list[Callable[[], Any]] = [write_all, *((lambda reader=reader: read(reader)) for reader in readers)]
    _, *results = at_once(calls)
    for reader in readers:
        reader.close()
    assert results == [list(range(1, 8 * (12 + 4) + 1))] * 2


def test_cursors_that_cannot_be(client: FlaskClient, db: Database, account: Account) -> None:
    """A number that was never given is refused, one whose successors are not kept is gone, a malformed one is named."""
    new_job(client)
    new_job(client, prompt="another")
    assert_problem(client.get("/v1/events?after=3"), 400, "invalid_request", "after")
    for wrong in ("-1", "x", "1.0", "", "9" * 30):
        assert_problem(client.get("/v1/events", query_string={"after": wrong}), 400, "invalid_request", "after")
    assert_problem(client.get("/v1/events?types=job.fnished"), 400, "invalid_request", "types.0")
    assert_problem(client.get("/v1/events?limit=101"), 400, "invalid_request", "limit")
    # Kept for a time only: as if the first event had grown too old.
    execute(db, "ALTER TABLE event DISABLE TRIGGER USER")
    execute(db, "DELETE FROM event WHERE seq = 1 AND tenant_id = :tenant", tenant=account.tenant_id)
    execute(db, "ALTER TABLE event ENABLE TRIGGER USER")
    assert_problem(client.get("/v1/events?after=0"), 410, "gone", "after")
    assert [event["seq"] for event in client.get("/v1/events?after=1").get_json()["data"]] == [2]
    assert [event["seq"] for event in client.get("/v1/events").get_json()["data"]] == [2]
    reset = Stream(client, "/v1/events", **{"Last-Event-ID": "0"})
    kind, event_id, data = reset.event()
    assert (kind, event_id, data["data"]) == ("stream.reset", None, {"oldest_seq": 2, "newest_seq": 2})
    assert reset.event()[:2] == ("job.queued", "2")
    reset.close()


def test_a_stream_opens_with_the_job_and_ends_with_it(
    client: FlaskClient, app: APIFlask, telling_db: Database, settings: ApiSettings, account: Account
) -> None:
    """First the job as it is, then what happens, with ids only on what is kept; after the end it closes, and a reconnect is told 204."""
    job_id = new_job(client)
    stream = Stream(client, f"/v1/jobs/{job_id}/events")
    assert stream.response.headers["Content-Type"].startswith("text/event-stream")
    assert stream.response.headers["Cache-Control"] == "no-store"
    assert stream.response.headers["X-Accel-Buffering"] == "no"
    first = stream.block()
    assert list(first) == ["retry", "event", "data"]
    assert (first["retry"], first["event"]) == ("2000", "job.snapshot")
    assert json.loads(first["data"])["data"]["status"] == "queued"
    finish_jobs(telling_db, Storage(settings), account.tenant_id, png())
    rest = stream.rest()
    assert [kind for kind, _, _ in rest] == ["job.started", "job.tokens_ready", "job.succeeded"]
    listed = client.get(f"/v1/jobs/{job_id}/events").get_json()["data"]
    assert [event_id for _, event_id, _ in rest] == [str(event["seq"]) for event in listed[1:]]
    assert [data["id"] for _, _, data in rest] == [event["id"] for event in listed[1:]]
    assert rest[-1][2]["data"]["outputs"][0]["url"].startswith("http")
    stream.close()
    assert places(app) == 0

    done = client.get(f"/v1/jobs/{job_id}/events", headers={**STREAM, "Last-Event-ID": str(rest[-1][1])})
    assert (done.status_code, done.data) == (204, b"")
    # A URL with `after` is asked again as it is; the header is newer.
    assert client.get(f"/v1/jobs/{job_id}/events?after=0", headers={**STREAM, "Last-Event-ID": str(rest[-1][1])}).status_code == 204


def test_a_reconnect_misses_nothing(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """With Last-Event-ID, or `after`, everything since is told, after the snapshot."""
    job_id = new_job(client)
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    seqs = [event["seq"] for event in client.get(f"/v1/jobs/{job_id}/events").get_json()["data"]]
    for path, headers in (("", {"Last-Event-ID": str(seqs[1])}), (f"?after={seqs[1]}", {}), ("?after=0", {"Last-Event-ID": str(seqs[1])})):
        events = Stream(client, f"/v1/jobs/{job_id}/events{path}", **headers).rest()
        assert [kind for kind, _, _ in events] == ["job.snapshot", "job.tokens_ready", "job.succeeded"]
    everything = Stream(client, f"/v1/jobs/{job_id}/events?after=0").rest()
    assert [event_id for _, event_id, _ in everything] == [None, *map(str, seqs)]


def test_a_late_client_sees_the_end(client: FlaskClient) -> None:
    """Whoever opens the stream of a job that is over gets its end, with the id that keeps it from coming again."""
    job_id = new_job(client)
    client.post(f"/v1/jobs/{job_id}/cancel")
    events = Stream(client, f"/v1/jobs/{job_id}/events").rest()
    assert [(kind, event_id) for kind, event_id, _ in events] == [("job.snapshot", None), ("job.canceled", "2")]


@pytest.mark.parametrize("cursor", ["999", "x", "-1", "1.5", "9" * 40, "job_01"])
def test_an_unknown_cursor_resets_the_stream(client: FlaskClient, cursor: str) -> None:
    """A client whose last event we do not know is told to begin anew, with the whole job."""
    job_id = new_job(client)
    client.post(f"/v1/jobs/{job_id}/cancel")
    events = Stream(client, f"/v1/jobs/{job_id}/events", **{"Last-Event-ID": cursor}).rest()
    assert [kind for kind, _, _ in events] == ["stream.reset", "job.canceled"]
    assert events[0][2]["data"]["id"] == job_id


def test_progress_and_previews_are_told_live(client: FlaskClient, telling_db: Database, settings: ApiSettings, account: Account) -> None:
    """Progress comes without an id, as workers report it, to those who want it; equal progress is told once."""
    job_id = new_job(client)
    work.release(telling_db, Stage.AR, 10)
    grid = claims.claim_grid(telling_db, "w", 30)
    assert grid is not None
    live = LiveState(settings.redis_url.get_secret_value())
    stream = Stream(client, f"/v1/jobs/{job_id}/events?types=job.progress")
    assert stream.event()[0] == "job.snapshot"
    with ThreadPoolExecutor(1) as pool:
        ends = pool.submit(Stream(client, f"/v1/jobs/{job_id}/events?types=job.failed").rest)
        for done in (3, 9):
            live.write_progress({grid.id: ("grid", done, 16)})
            kind, event_id, data = stream.event()
            assert (kind, event_id, data["data"]["progress"]) == ("job.progress", None, {"phase": "grid", "done": done, "total": 16})
            assert (data["data"]["id"], data["data"]["status"], data["data"]["version"]) == (job_id, "running", 2)
        client.post(f"/v1/jobs/{job_id}/cancel")
        assert [kind for kind, _, _ in ends.result(30)] == ["job.snapshot", "job.canceled"]
    assert [kind for kind, _, _ in stream.rest()] == ["job.canceled"]
    # It is not kept, so a list of it would be all or nothing.
    assert_problem(client.get(f"/v1/jobs/{job_id}/events?types=job.progress"), 400, "invalid_request", "types")


def test_silence_is_broken_by_comments(settings: ApiSettings, account: Account, model: Any) -> None:
    """A stream on which nothing happens sends comments, none of them an event, and ends after its time."""
    with open_app(settings.model_copy(update={"stream_heartbeat_s": 0.1, "stream_s": 2.0})) as app:
        client = client_of(app, account.keys["submit"])
        job_id = new_job(client)
        started = time.monotonic()
        with client.get(f"/v1/jobs/{job_id}/events", headers=STREAM, buffered=False) as answer:
            sent = b"".join(answer.response)
        assert 1.9 < time.monotonic() - started < 30
        assert sent.count(b": hb\n\n") >= 3
        assert sent.count(b"event:") == 1
        assert places(app) == 0


def test_the_tenants_stream(client: FlaskClient, app: APIFlask, stranger: Account) -> None:
    """The feed streams what happens from now on, each event with its id, and nothing of another tenant."""
    new_job(client)
    stream = Stream(client, "/v1/events")
    assert stream.block() == {"": "hb"}
    other = client_of(app, stranger.keys["submit"])
    new_job(other)
    job_id = new_job(client, prompt="another")
    block = stream.block()
    assert (block["retry"], block["id"], block["event"]) == ("2000", "2", "job.queued")
    assert json.loads(block["data"])["data"]["id"] == job_id
    client.post(f"/v1/jobs/{job_id}/cancel")
    kind, event_id, _ = stream.event()
    assert (kind, event_id) == ("job.canceled", "3")
    stream.close()
    resumed = Stream(client, "/v1/events?types=job.canceled", **{"Last-Event-ID": "1"})
    assert resumed.block() == {"": "hb"}
    assert resumed.event()[:2] == ("job.canceled", "3")
    resumed.close()
    wait_until(lambda: places(app) == 0, 30)


def test_streams_are_bounded(client: FlaskClient, app: APIFlask, account: Account) -> None:
    """Where nobody else may wait, a stream is refused by 503 and when to come again; lists are not."""
    job_id = new_job(client)
    parts: Parts = app.extensions["glmq"]
    for _ in range(128):
        parts.waiting.take_place(account.tenant_id)
    answer = client.get(f"/v1/jobs/{job_id}/events", headers=STREAM)
    assert int(answer.headers["Retry-After"]) > 0
    assert assert_problem(answer, 503, "engine_unavailable")["type"].endswith("#temporary-reduced-capacity")
    assert client.get(f"/v1/jobs/{job_id}/events").status_code == 200


def test_an_unread_stream_gives_its_place_back(client: FlaskClient, app: APIFlask) -> None:
    """A client that hangs up before the first byte, or asks for the head alone, leaves nothing behind."""
    job_id = new_job(client)
    for path in (f"/v1/jobs/{job_id}/events", "/v1/events"):
        client.get(path, headers=STREAM, buffered=False).close()
        assert client.head(path, headers=STREAM).status_code == 200
    assert places(app) == 0


def test_strangers_see_nothing(client: FlaskClient, app: APIFlask, stranger: Account) -> None:
    """Another tenant's events are not found, listed or streamed."""
    job_id = new_job(client)
    other = client_of(app, stranger.keys["read"])
    for headers in ({}, STREAM):
        assert_problem(other.get(f"/v1/jobs/{job_id}/events", headers=headers), 404, "not_found")
    assert other.get("/v1/events").get_json()["data"] == []


def test_what_is_asked_for_is_what_accept_prefers(client: FlaskClient) -> None:
    """Only who prefers a stream gets one."""
    job_id = new_job(client)
    client.post(f"/v1/jobs/{job_id}/cancel")
    for accept, kind in (
        ("text/event-stream", "text/event-stream"),
        ("text/event-stream, */*;q=0.1", "text/event-stream"),
        ("application/json", "application/json"),
        ("*/*", "application/json"),
        ("text/event-stream;q=0.1, application/json", "application/json"),
        ("image/png", "application/json"),
    ):
        answer = client.get(f"/v1/jobs/{job_id}/events", headers={"Accept": accept})
        assert answer.mimetype == kind, accept
        assert list(itertools.islice(answer.response, 5))
