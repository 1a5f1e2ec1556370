"""Long polls and `Prefer: wait`, on real stores."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from services.api.parts import Parts
from services.api.settings import ApiSettings
from shared.db import Database
from shared.lifecycle import claims, finish, work
from shared.progress import LiveState
from shared.states import Stage
from shared.storage import Storage
from tests.integration.api.conftest import Account, client_of, finish_jobs, open_app, png
from tests.stack import wait_until


@pytest.fixture
def app(settings: ApiSettings) -> Iterator[APIFlask]:
    """An application for each test: what it holds for others is counted."""
    with open_app(settings) as app:
        yield app


def parts_of(app: APIFlask) -> Parts:
    parts: Parts = app.extensions["glmq"]
    return parts


def later(app: APIFlask, job_id: str, call: Callable[[], object]) -> threading.Thread:
    """Call as soon as a request waits for the job and would hear of it."""

    def work() -> None:
        waiting = parts_of(app).waiting
        wait_until(lambda: job_id in waiting._watches and waiting._listener is not None and waiting._listener.is_hearing, 60, 0.01)
        time.sleep(0.1)
        call()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_long_poll_hears_of_the_end_at_once(
    app: APIFlask, client: FlaskClient, telling_db: Database, settings: ApiSettings, account: Account
) -> None:
    """`?wait=` answers within a moment of the commit that ended the job, and not before: its start is not what it waits for."""
    job = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()
    ended: list[float] = []

    def end() -> None:
        finish_jobs(telling_db, Storage(settings), account.tenant_id, png())
        ended.append(time.monotonic())

    thread = later(app, job["id"], end)
    answer = client.get(f"/v1/jobs/{job['id']}?wait=30")
    answered = time.monotonic()
    thread.join()
    assert answer.get_json()["status"] == "succeeded"
    # Without a hint it would have looked five seconds later.
    assert answered - ended[0] < 4


def test_with_an_etag_any_change_ends_the_wait(app: APIFlask, client: FlaskClient, telling_db: Database) -> None:
    """With If-None-Match the wait ends with the next change; after its time, with 304."""
    job = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()
    etag = client.get(f"/v1/jobs/{job['id']}").headers["ETag"]
    started = time.monotonic()
    same = client.get(f"/v1/jobs/{job['id']}?wait=1", headers={"If-None-Match": etag})
    assert (same.status_code, same.data) == (304, b"")
    assert 0.9 < time.monotonic() - started < 30

    def start() -> None:
        work.release(telling_db, Stage.AR, 10)
        claims.claim_grid(telling_db, "w", 30)

    thread = later(app, job["id"], start)
    changed = client.get(f"/v1/jobs/{job['id']}?wait=30", headers={"If-None-Match": etag})
    thread.join()
    assert (changed.status_code, changed.get_json()["status"]) == (200, "running")


def test_progress_ends_a_wait_with_an_etag(app: APIFlask, client: FlaskClient, telling_db: Database, settings: ApiSettings) -> None:
    """Progress changes the ETag though nothing is committed, so it ends the wait too."""
    job = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()
    work.release(telling_db, Stage.AR, 10)
    grid = claims.claim_grid(telling_db, "w", 30)
    assert grid is not None
    etag = client.get(f"/v1/jobs/{job['id']}").headers["ETag"]
    live = LiveState(settings.redis_url.get_secret_value())
    thread = later(app, job["id"], lambda: live.write_progress({grid.id: ("grid", 3, 16)}))
    answer = client.get(f"/v1/jobs/{job['id']}?wait=20", headers={"If-None-Match": etag})
    thread.join()
    assert answer.get_json()["progress"] == {"phase": "grid", "done": 3, "total": 16}


def test_a_version_that_grows_without_an_event_is_told(app: APIFlask, client: FlaskClient, telling_db: Database) -> None:
    """Of two images the first is stored: no event tells of it, but the version does, and so does the wait."""
    job = client.post("/v1/jobs", json={"prompt": "a fox", "n": 2, "same_layout": True}).get_json()
    work.release(telling_db, Stage.AR, 10)
    grid = claims.claim_grid(telling_db, "w", 30)
    assert grid is not None
    finish.finish_grid(telling_db, grid.id, grid.attempt, claims.StoredArtifact("t/grid", "ab" * 32, 100), 16)
    work.release(telling_db, Stage.DECODER, 10)
    image = claims.claim_image(telling_db, "w", 30)
    assert image is not None
    etag = client.get(f"/v1/jobs/{job['id']}").headers["ETag"]
    artifact = claims.StoredArtifact("t/image", "ab" * 32, 100)
    thread = later(app, job["id"], lambda: finish.finish_image(telling_db, image.id, image.attempt, artifact))
    answer = client.get(f"/v1/jobs/{job['id']}?wait=20", headers={"If-None-Match": etag})
    thread.join()
    assert [output["status"] for output in answer.get_json()["outputs"]].count("succeeded") == 1


def test_prefer_wait_answers_with_the_finished_job(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """A job that ends in time is answered by 200; one that does not by 202 with its place and when to look."""
    slow = client.post("/v1/jobs", json={"prompt": "a fox", "seed": 1}, headers={"Prefer": "wait=1"})
    assert (slow.status_code, slow.get_json()["status"]) == (202, "queued")
    assert slow.headers["Preference-Applied"] == "wait=1"
    assert slow.headers["Location"] == f"/v1/jobs/{slow.get_json()['id']}"
    assert slow.headers["Retry-After"].isdigit()

    finish_jobs(db, Storage(settings), account.tenant_id, png())
    # The same request: all of it is in the store already.
    fast = client.post("/v1/jobs", json={"prompt": "a fox", "seed": 1}, headers={"Prefer": "respond-async, wait=20"})
    assert (fast.status_code, fast.get_json()["status"]) == (200, "succeeded")
    assert fast.headers["Preference-Applied"] == "wait=20"
    assert fast.headers["Location"] == f"/v1/jobs/{fast.get_json()['id']}"
    assert "Retry-After" not in fast.headers
    at_once = client.post("/v1/jobs", json={"prompt": "a fox", "seed": 1}, headers={"Prefer": "wait=0"})
    assert (at_once.status_code, at_once.get_json()["status"], at_once.headers["Preference-Applied"]) == (200, "succeeded", "wait=0")

    queued = client.post("/v1/jobs", json={"prompt": "another fox"}, headers={"Prefer": "respond-async"})
    assert (queued.status_code, queued.headers["Preference-Applied"]) == (202, "respond-async")
    assert "Preference-Applied" not in client.post("/v1/jobs", json={"prompt": "a third fox"}).headers


def test_a_replay_waits_too(app: APIFlask, client: FlaskClient, telling_db: Database, settings: ApiSettings, account: Account) -> None:
    """A client that lost its connection asks again with its key, and waits for the job that it made before."""
    headers = {"Idempotency-Key": "k", "Prefer": "wait=20"}
    job = client.post("/v1/jobs", json={"prompt": "a fox"}, headers={"Idempotency-Key": "k"}).get_json()
    thread = later(app, job["id"], lambda: finish_jobs(telling_db, Storage(settings), account.tenant_id, png()))
    answer = client.post("/v1/jobs", json={"prompt": "a fox"}, headers=headers)
    thread.join()
    assert (answer.status_code, answer.get_json()["status"]) == (200, "succeeded")
    assert answer.headers["Idempotency-Replayed"] == "true"


def test_where_nobody_else_may_wait_the_answer_comes_at_once(app: APIFlask, client: FlaskClient, account: Account) -> None:
    """With every place taken, long polls and submits are answered as without waiting, and say so."""
    waiting = parts_of(app).waiting
    for _ in range(128):
        waiting.take_place(account.tenant_id)
    started = time.monotonic()
    submitted = client.post("/v1/jobs", json={"prompt": "a fox"}, headers={"Prefer": "wait=30"})
    assert (submitted.status_code, submitted.headers["Preference-Applied"]) == (202, "respond-async")
    read = client.get(f"/v1/jobs/{submitted.get_json()['id']}?wait=30")
    assert (read.status_code, read.get_json()["status"]) == (200, "queued")
    assert time.monotonic() - started < 200


def test_a_foreign_job_is_not_waited_for(app: APIFlask, client: FlaskClient, stranger: Account) -> None:
    """Somebody else's job is not found, however long one would wait."""
    job = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()
    started = time.monotonic()
    assert client_of(app, stranger.keys["read"]).get(f"/v1/jobs/{job['id']}?wait=30").status_code == 404
    assert time.monotonic() - started < 20


def test_wrong_waits_are_refused(client: FlaskClient) -> None:
    """A wait is a whole number of seconds; a long one is cut, not refused."""
    job = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()
    client.post(f"/v1/jobs/{job['id']}/cancel")
    for wrong in ("-1", "x", "1.5", "", "9999999999"):
        answer = client.get(f"/v1/jobs/{job['id']}", query_string={"wait": wrong})
        assert (answer.status_code, answer.get_json()["param"]) == (400, "wait"), wrong
    assert client.get(f"/v1/jobs/{job['id']}?wait=3600").status_code == 200
