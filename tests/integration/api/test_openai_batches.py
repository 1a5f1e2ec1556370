"""OpenAI's batches: each line one job, whatever is killed; truthful statuses, counts and files."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.request import urlopen

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from services.api.batch_answers import EDITS, GENERATIONS
from services.api.batch_clerk import Clerk
from services.api.openai.batch_lines import MAX_LINES, read_lines
from services.api.parts import Parts
from shared.db import Database, DatabaseDownError
from shared.lifecycle import batch_items, batches
from shared.lifecycle.files import delete_expired_files
from shared.lifecycle.tenants import limit_tenant
from shared.storage import StorageMissingError
from shared.sweep import sweep
from tests.integration.api.conftest import MODEL, Account, assert_problem, client_of, count_rows, png
from tests.integration.api.openai import draw
from tests.integration.api.test_openai_files import upload
from tests.integration.api.test_quotas import assert_refused, parsed
from tests.ledger import at_once, execute, query

PICTURE = png(64, 64)


def line(custom_id: str, url: str = GENERATIONS, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"prompt": f"Cat {custom_id}", "size": "64x64", **body}}


def make(client: FlaskClient, lines: list[Any], endpoint: str = GENERATIONS, headers: Any = None, **fields: Any) -> dict[str, Any]:
    data = b"\n".join(text if isinstance(text, bytes) else json.dumps(text).encode() for text in lines)
    file = upload(client, data, purpose="batch").get_json()
    sent = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h", **fields}
    answer = client.post("/v1/batches", json=sent, headers=headers)
    assert answer.status_code == 200, answer.get_json()
    return dict(answer.get_json())


def read(client: FlaskClient, batch: dict[str, Any]) -> dict[str, Any]:
    return dict(client.get(f"/v1/batches/{batch['id']}").get_json())


def content(client: FlaskClient, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(text) for text in client.get(f"/v1/files/{file_id}/content").get_data().splitlines()]


@pytest.fixture
def clerk(parts: Parts) -> Clerk:
    return Clerk(parts, threading.Event())


def work_all(clerk: Clerk) -> None:
    while clerk.work():
        pass


def test_a_batch_from_file_to_files(client: FlaskClient, clerk: Clerk, parts: Parts, db: Database) -> None:
    """Lines become bulk jobs in their order, and their results lines of a file with links that work."""
    batch = make(client, [line("b"), b"", line("a", n=2, seed=3), line("c", response_format="b64_json")], metadata={"order": "1"})
    assert (batch["status"], batch["request_counts"]["total"], batch["metadata"]) == ("validating", 0, {"order": "1"})
    assert batch["expires_at"] - batch["created_at"] == 86_400
    clerk.work()
    assert read(client, batch)["status"] == "in_progress"
    work_all(clerk)
    jobs = client.get("/v1/jobs?order=asc").get_json()["data"]
    assert [(job["custom_id"], job["priority"], job["batch_id"]) for job in jobs] == [(name, "bulk", batch["id"]) for name in "bac"]
    assert read(client, batch)["request_counts"] == {"total": 3, "completed": 0, "failed": 0}
    assert client.get(f"/v1/batches/{batch['id']}").headers["openai-poll-after-ms"] == "5000"
    draw(db, parts.storage, PICTURE)
    assert read(client, batch)["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    work_all(clerk)
    done = read(client, batch)
    assert (done["status"], done["error_file_id"], done["errors"]) == ("completed", None, None)
    assert done["created_at"] <= done["in_progress_at"] <= done["finalizing_at"] <= done["completed_at"]
    assert done["usage"]["output_tokens"] > 0
    output = content(client, done["output_file_id"])
    assert [record["custom_id"] for record in output] == ["b", "a", "c"]
    assert {record["response"]["status_code"] for record in output} == {200}
    first, second, third = (record["response"]["body"] for record in output)
    assert urlopen(first["data"][0]["url"]).read() == PICTURE  # noqa: S310 - a URL that we made
    assert [datum["seed"] for datum in second["data"]] == [3, 4]
    assert base64.b64decode(third["data"][0]["b64_json"]) == PICTURE
    assert first["usage"]["total_tokens"] > 0
    assert client.get("/v1/batches").get_json()["data"] == [done]


def test_result_files(client: FlaskClient, clerk: Clerk, db: Database, parts: Parts) -> None:
    """`bytes` is what a read gives, links and pictures too; the files go when they were asked to, and their objects with them."""
    lines = [line("a"), line("b", response_format="b64_json", n=2), line("doomed"), line("é", prompt="画")]
    batch = make(client, lines, output_expires_after={"anchor": "created_at", "seconds": 3600})
    work_all(clerk)
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    done = read(client, batch)
    keys = [key for (key,) in query(db, "SELECT storage_key FROM file WHERE purpose = 'batch_output'")]
    for name in ("output_file_id", "error_file_id"):
        file = client.get(f"/v1/files/{done[name]}").get_json()
        assert file["bytes"] == len(client.get(f"/v1/files/{done[name]}/content").get_data())
        assert file["expires_at"] - file["created_at"] == 3600
    execute(db, "UPDATE file SET expires_at = now() WHERE purpose = 'batch_output'")
    assert_problem(client.get(f"/v1/files/{done['output_file_id']}/content"), 404, "not_found")
    delete_expired_files(db, 10)
    sweep(db, parts.storage)
    for key in keys:
        with pytest.raises(StorageMissingError):
            parts.storage.get(key)


def test_wrong_lines_by_number(client: FlaskClient, clerk: Clerk, db: Database) -> None:
    """Nothing is run if any line is wrong, and each wrong line is named."""
    lines = [
        line("a"),
        b"",
        b"{",
        line("a"),
        line("b", size="9999x64"),
        line("c", url=EDITS),
        {**line("d"), "method": "GET"},
        {"custom_id": "e"},
        line("f", stream=True),
        line("g", background="transparent"),
        line("h", prompt="<|image|>"),
        b'{"custom_id": "\xff"}',
        line("i", model="sd"),
        line("j", n=0, quality="best"),
    ]
    batch = make(client, lines)
    work_all(clerk)
    failed = read(client, batch)
    assert (failed["status"], failed["output_file_id"], failed["request_counts"]["total"]) == ("failed", None, 0)
    assert failed["failed_at"] is not None
    found = [(error["line"], error["code"], error["param"]) for error in failed["errors"]["data"]]
    assert found == [
        (3, "invalid_json_line", None),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "invalid_request", "body.size"),
        (6, "mismatched_url", "url"),
        (7, "invalid_request", "method"),
        (8, "invalid_request", "method"),
        (8, "invalid_request", "url"),
        (8, "invalid_request", "body"),
        (9, "invalid_request", "body.stream"),
        (10, "unsupported_parameter", "body.background"),
        (11, "unprocessable_prompt", "body.prompt"),
        (12, "invalid_json_line", None),
        (13, "model_not_found", "body.model"),
        (14, "invalid_request", "body.quality"),
        (14, "invalid_request", "body.n"),
    ]
    assert count_rows(db)["job"] == 0


def test_limits_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lines, too many lines, and more errors than anybody reads."""
    empty = read_lines(b"\n \n", GENERATIONS, MODEL)
    assert empty is not None
    assert [error["code"] for error in empty.errors] == ["empty_file"]
    wrong = read_lines(b"x\n" * (MAX_LINES + 1), GENERATIONS, MODEL)
    assert wrong is not None
    assert (len(wrong.errors), wrong.num_errors) == (100, MAX_LINES + 1)
    monkeypatch.setattr("services.api.openai.batch_lines.MAX_LINES", 1)
    long = read_lines(b"\n".join(json.dumps(line(name)).encode() for name in "ab"), GENERATIONS, MODEL)
    assert long is not None
    assert [(error["code"], error["line"]) for error in long.errors] == [("too_many_lines", 2)]


class _KilledError(BaseException):
    """Stands for kill -9: nothing of the transaction is there afterwards, and nobody tidies up."""


def die_at_any_write(parts: Parts, monkeypatch: pytest.MonkeyPatch, num_writes: int) -> None:
    """Clerks work one after the other, each of which dies at a later write than the one before: before it is committed, or after."""
    left = 0

    def dying(call: Any) -> Any:
        def die_or_call(self: Database, *given: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise _KilledError("before the commit")
            result = call(self, *given)
            if left == -1:
                raise _KilledError("after the commit")
            return result

        return die_or_call

    monkeypatch.setattr(Database, "run", dying(Database.run))
    monkeypatch.setattr(Database, "run_alone", dying(Database.run_alone))
    for fuse in range(num_writes):
        for left in (fuse + 1, fuse):  # noqa: B007 - `dying` counts it down
            with suppress(_KilledError):
                Clerk(parts, threading.Event()).work()
    monkeypatch.undo()


def test_no_line_is_lost_or_doubled(client: FlaskClient, clerk: Clerk, db: Database, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clerk that dies at any write, before or after it is committed, leaves a batch that its successor ends rightly."""
    # Some are written by one statement, some of them one after the other because they share their work.
    batch = make(client, [line(f"c{index}", **({"prompt": "Alike", "seed": 1} if index % 9 > 6 else {})) for index in range(45)])
    die_at_any_write(parts, monkeypatch, 13)
    work_all(clerk)
    assert query(db, "SELECT count(*), count(DISTINCT custom_id) FROM job") == [(45, 45)]
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    done = read(client, batch)
    assert (done["status"], done["request_counts"]) == ("completed", {"total": 45, "completed": 45, "failed": 0})
    assert [record["custom_id"] for record in content(client, done["output_file_id"])] == [f"c{index}" for index in range(45)]
    assert query(db, "SELECT count(*) FROM file WHERE purpose = 'batch_output'") == [(1,)]


def test_lines_wait_for_room_in_the_queue(client: FlaskClient, clerk: Clerk, db: Database, parts: Parts, account: Account) -> None:
    """A tenant that may have five jobs queued gets its batch done five by five."""
    limit_tenant(db, account.tenant_id, {"max_queued": 5})
    batch = make(client, [line(f"c{index}") for index in range(12)])
    for expected in (5, 10, 12):
        work_all(clerk)
        assert count_rows(db)["job"] == expected
        draw(db, parts.storage, PICTURE)
    work_all(clerk)
    assert read(client, batch)["request_counts"] == {"total": 12, "completed": 12, "failed": 0}


def test_lines_wait_for_seconds_of_workers(
    client: FlaskClient, clerk: Clerk, db: Database, parts: Parts, account: Account, workers: None
) -> None:
    """Where a day's seconds are bounded, lines become jobs as far as the seconds go; the rest waits for the next day."""
    cost_s = client.post("/v1/estimate", json={"prompt": "Cat", "size": "64x64"}).get_json()["gpu_seconds"]
    limit_tenant(db, account.tenant_id, {"gpu_seconds_per_day": 2.5 * cost_s})
    batch = make(client, [line(f"c{index}") for index in range(6)])
    work_all(clerk)
    assert (count_rows(db)["job"], read(client, batch)["status"]) == (3, "in_progress")
    work_all(clerk)
    assert count_rows(db)["job"] == 3
    limit_tenant(db, account.tenant_id, {"gpu_seconds_per_day": 100 * cost_s})
    work_all(clerk)
    assert count_rows(db)["job"] == 6


def test_batches_are_bounded(client: FlaskClient, app: APIFlask, db: Database, account: Account) -> None:
    """Of many requests at once as many make batches as there is room for; one that ends makes room. They are counted."""
    limit_tenant(db, account.tenant_id, {"live_batches": 2})
    file_id = upload(client, b"x", purpose="batch").get_json()["id"]
    sent = {"input_file_id": file_id, "endpoint": GENERATIONS, "completion_window": "24h"}
    clients = [client_of(app, account.keys["submit"]) for _ in range(4)]
    answers = at_once([lambda one=one: one.post("/v1/batches", json=sent) for one in clients])
    made = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert (len(made), len(refused)) == (2, 2)
    for answer in refused:
        assert_refused(answer, 429, "too_many_batches", "batches")
    assert sorted(parsed(answer, "RateLimit")["batches"]["r"] for answer in made) == [0, 1]
    execute(db, "UPDATE batch SET status = 'failed', completed_at = now() WHERE id = :id", id=made[0].get_json()["id"])
    limit_tenant(db, account.tenant_id, {"requests_per_minute": 1})
    assert client.post("/v1/batches", json=sent).status_code == 200
    assert_refused(client.post("/v1/batches", json=sent), 429, "too_many_requests", "create")
    assert client.get("/v1/usage").get_json()["limits"]["live_batches"] == 2


def test_one_key_with_two_requests_at_once(client: FlaskClient, app: APIFlask, account: Account) -> None:
    """Whoever is second is told of the mismatch, and does not get the batch of the other."""
    file_id = upload(client, b"x", purpose="batch").get_json()["id"]
    sent = {"input_file_id": file_id, "endpoint": GENERATIONS, "completion_window": "24h"}
    clients = [client_of(app, account.keys["submit"]) for _ in range(4)]
    headers = {"Idempotency-Key": "k"}
    answers = at_once(
        [
            lambda one=one, index=index: one.post("/v1/batches", json={**sent, "metadata": {"i": str(index % 2)}}, headers=headers)
            for index, one in enumerate(clients)
        ]
    )
    made = [answer.get_json() for answer in answers if answer.status_code == 200]
    assert len(made) == 2
    assert made[0] == made[1]
    for answer in answers:
        if answer.status_code != 200:
            assert_problem(answer, 422, "idempotency_mismatch", "Idempotency-Key")


def test_two_clerks_at_once(client: FlaskClient, parts: Parts, db: Database) -> None:
    """Even if two of them think that they are the one, each line has one job."""
    make(client, [line(f"c{index}", seed=index % 25, prompt="Cat") for index in range(50)])

    def work() -> None:
        clerk = Clerk(parts, threading.Event())
        while True:
            # As the clerk's own loop does: on a slow machine one waits for the other's rows longer than Postgres lets it.
            with suppress(DatabaseDownError):
                work_all(clerk)
                return

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert query(db, "SELECT count(*), count(DISTINCT custom_id) FROM job") == [(50, 50)]
    assert query(db, "SELECT count(*) FROM grid") == [(25,)]


@pytest.mark.parametrize("has_listener", [False, True])
def test_lines_that_share_work(client: FlaskClient, clerk: Clerk, db: Database, parts: Parts, has_listener: bool) -> None:
    """However lines are written: equal ones are drawn once, jobs stand in the lines' order, and events are numbered without a gap."""
    if has_listener:
        client.post("/v1/webhook_endpoints", json={"url": "https://hooks.example/glmq", "event_types": ["job.queued"]})
    client.post("/v1/jobs", json={"prompt": "Native", "size": "64x64", "seed": 1, "metadata": {"native": "1"}})
    same = {"prompt": "Same", "seed": 2}
    lines = [
        line("a", **same),
        line("b"),
        line("c", **same),
        line("d", prompt="Native", seed=1),
        line("e", n=3),
        line("f", cache="off", **same),
    ]
    make(client, lines)
    work_all(clerk)
    assert query(db, "SELECT custom_id FROM job WHERE batch_id IS NOT NULL ORDER BY created_at") == [(name,) for name in "abcdef"]
    grids = query(db, "SELECT prompt, count(*)::int FROM grid GROUP BY 1 ORDER BY 1")
    assert grids == [("Cat b", 1), ("Cat e", 3), ("Native", 1), ("Same", 2)]
    assert query(db, "SELECT seq, custom_id FROM event JOIN job ON job.id = job_id ORDER BY seq") == [
        (seq, name) for seq, name in enumerate([None, *"abcdef"], 1)
    ]
    assert query(db, "SELECT event_seq, num_queued FROM tenant") == [(7, 7)]
    assert query(db, "SELECT count(*)::int FROM webhook_delivery") == [(7 if has_listener else 0,)]
    for job in client.get("/v1/jobs").get_json()["data"]:
        [event] = client.get(f"/v1/jobs/{job['id']}/events").get_json()["data"]
        ours = {name: value for name, value in event["data"].items() if name not in ("progress", "queue")}
        assert ours == {name: job[name] for name in ours}
    draw(db, parts.storage, PICTURE)
    assert query(db, "SELECT DISTINCT status FROM job") == [("succeeded",)]


def test_failures_have_a_file_of_their_own(client: FlaskClient, clerk: Clerk, db: Database, parts: Parts) -> None:
    """A batch whose jobs failed is completed, with an error file; what was wrong only when its turn came is in it too."""
    picture = upload(client, png(), purpose="vision").get_json()["id"]
    edit = {"size": "auto", "images": [{"file_id": picture}]}
    batch = make(client, [line("good", EDITS, **edit), line("gone", EDITS, **edit), line("doomed", EDITS, **edit)], EDITS)
    clerk.work()
    execute(db, "UPDATE batch_item SET request = jsonb_set(request, '{images,0,file_id}', '\"file-gone\"') WHERE custom_id = 'gone'")
    clerk.work()
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    done = read(client, batch)
    assert (done["status"], done["request_counts"]) == ("completed", {"total": 3, "completed": 1, "failed": 2})
    assert [record["custom_id"] for record in content(client, done["output_file_id"])] == ["good"]
    gone, failed = content(client, done["error_file_id"])
    assert (gone["custom_id"], gone["response"]["status_code"]) == ("gone", 400)
    assert gone["response"]["body"]["error"]["param"] == "body.images.0.file_id"
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("doomed", 422)
    assert failed["response"]["body"]["error"]["code"] == "unprocessable_prompt"


def test_a_line_that_is_erased(client: FlaskClient, clerk: Clerk, db: Database, parts: Parts) -> None:
    """A job that was deleted before its batch ended is a failure with a reason, and holds up nobody."""
    batch = make(client, [line("kept"), line("erased")])
    clerk.work()
    clerk.work()
    draw(db, parts.storage, PICTURE)
    [erased] = [job["id"] for job in client.get("/v1/jobs").get_json()["data"] if job["custom_id"] == "erased"]
    client.delete(f"/v1/jobs/{erased}")
    work_all(clerk)
    done = read(client, batch)
    assert (done["status"], done["request_counts"]) == ("completed", {"total": 2, "completed": 1, "failed": 1})
    [record] = content(client, done["error_file_id"])
    assert (record["custom_id"], record["response"]["status_code"], record["response"]["body"]["error"]["code"]) == ("erased", 410, "gone")


def test_a_canceled_batch_keeps_what_there_was(
    client: FlaskClient, clerk: Clerk, db: Database, parts: Parts, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that are done are in the output, all others in the error file; a cancel of what has ended changes nothing."""
    monkeypatch.setattr(batch_items, "_DROP_AT_ONCE", 7)
    limit_tenant(db, account.tenant_id, {"max_queued": 20})
    batch = make(client, [line(f"c{index}") for index in range(50)])
    clerk.work()
    clerk.work()
    draw(db, parts.storage, PICTURE)
    clerk.work()
    canceled = client.post(f"/v1/batches/{batch['id']}/cancel")
    assert canceled.status_code == 200
    assert (canceled.get_json()["status"], canceled.get_json()["cancelling_at"] is None) == ("cancelling", False)
    work_all(clerk)
    done = read(client, batch)
    assert (done["status"], done["request_counts"]) == ("cancelled", {"total": 50, "completed": 20, "failed": 30})
    assert done["cancelled_at"] is not None
    assert len(content(client, done["output_file_id"])) == 20
    assert {record["error"]["code"] for record in content(client, done["error_file_id"])} == {"batch_cancelled"}
    assert client.post(f"/v1/batches/{batch['id']}/cancel").get_json() == done
    assert query(db, "SELECT DISTINCT status FROM job ORDER BY 1") == [("canceled",), ("succeeded",)]


def test_a_cancel_before_the_lines_are_read(client: FlaskClient, clerk: Clerk, db: Database) -> None:
    """Nothing was run, and nothing will be."""
    batch = make(client, [line("a")])
    client.post(f"/v1/batches/{batch['id']}/cancel")
    work_all(clerk)
    done = read(client, batch)
    assert (done["status"], done["output_file_id"], count_rows(db)["job"]) == ("cancelled", None, 0)


def test_an_expired_batch_keeps_what_there_was(
    client: FlaskClient, clerk: Clerk, db: Database, parts: Parts, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When its time is up, the rest is not run, however much of it there is."""
    monkeypatch.setattr(batch_items, "_DROP_AT_ONCE", 4)
    limit_tenant(db, account.tenant_id, {"max_queued": 20})
    batch = make(client, [line(f"c{index}") for index in range(30)])
    clerk.work()
    clerk.work()
    draw(db, parts.storage, PICTURE)
    execute(db, "UPDATE batch SET expires_at = now()")
    work_all(clerk)
    done = read(client, batch)
    assert (done["status"], done["request_counts"]) == ("expired", {"total": 30, "completed": 20, "failed": 10})
    assert done["expired_at"] is not None
    assert {record["error"]["code"] for record in content(client, done["error_file_id"])} == {"batch_expired"}


def test_deadlines_are_the_batchs(client: FlaskClient, clerk: Clerk) -> None:
    """A job may be done by the end of the batch, or sooner if its line says so."""
    batch = make(client, [line("a"), line("b", deadline="2999-01-01T00:00:00Z")])
    work_all(clerk)
    ends = datetime.fromtimestamp(batch["expires_at"], UTC)
    for job in client.get("/v1/jobs").get_json()["data"]:
        assert abs((datetime.fromisoformat(job["deadline"]) - ends).total_seconds()) <= 1


def test_a_deleted_input(client: FlaskClient, clerk: Clerk) -> None:
    """Before its lines were read, that is an error of the batch; afterwards the file is not needed."""
    lost = make(client, [line("a")])
    client.delete(f"/v1/files/{lost['input_file_id']}")
    work_all(clerk)
    failed = read(client, lost)
    assert (failed["status"], failed["errors"]["data"][0]["code"]) == ("failed", "input_file_missing")
    kept = make(client, [line("a")])
    clerk.work()
    client.delete(f"/v1/files/{kept['input_file_id']}")
    assert read(client, kept)["status"] == "in_progress"


def test_tries_and_keys(client: FlaskClient) -> None:
    """A repeated request makes no second batch; a key with another request is refused."""
    file_id = upload(client, b"x", purpose="batch").get_json()["id"]
    sent = {"input_file_id": file_id, "endpoint": GENERATIONS, "completion_window": "24h"}

    def post(headers: dict[str, str], **more: Any) -> Any:
        return client.post("/v1/batches", json={**sent, **more}, headers=headers)

    first = post({"X-Stainless-Retry-Count": "0"})
    again = post({"X-Stainless-Retry-Count": "1"})
    assert again.get_json()["id"] == first.get_json()["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert post({"X-Stainless-Retry-Count": "0"}).get_json()["id"] != first.get_json()["id"]
    key = {"Idempotency-Key": "k"}
    assert post(key).get_json()["id"] == post(key).get_json()["id"]
    assert_problem(post(key, metadata={"a": "b"}), 422, "idempotency_mismatch", "Idempotency-Key")


def test_strangers(client: FlaskClient, app: APIFlask, stranger: Account) -> None:
    """Another tenant's batch is not there, and its file is no input."""
    batch = make(client, [line("a")])
    other = client_of(app, stranger.keys["admin"])
    assert_problem(other.get(f"/v1/batches/{batch['id']}"), 404, "not_found")
    assert_problem(other.post(f"/v1/batches/{batch['id']}/cancel"), 404, "not_found")
    assert other.get("/v1/batches").get_json()["data"] == []
    sent = {"input_file_id": batch["input_file_id"], "endpoint": GENERATIONS, "completion_window": "24h"}
    assert_problem(other.post("/v1/batches", json=sent), 400, "invalid_request", "input_file_id")
    assert read(client, batch)["status"] == "validating"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/chat/completions"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-x"}, "input_file_id"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ],
)
def test_wrong_batches(refusing: FlaskClient, fields: dict[str, Any], param: str) -> None:
    """Refused by name."""
    sent = {"input_file_id": "file-x", "endpoint": GENERATIONS, "completion_window": "24h", **fields}
    assert_problem(refusing.post("/v1/batches", json=sent), 400, "invalid_request", param)


def test_a_picture_is_no_input(client: FlaskClient) -> None:
    """The file's purpose must be `batch`."""
    file_id = upload(client, png(), purpose="vision").get_json()["id"]
    sent = {"input_file_id": file_id, "endpoint": GENERATIONS, "completion_window": "24h"}
    assert_problem(client.post("/v1/batches", json=sent), 400, "invalid_request", "input_file_id")


def test_without_a_model_lines_wait(app: APIFlask, account: Account, db: Database) -> None:
    """Before a worker has told of its model nothing can be judged."""
    client = client_of(app, account.keys["admin"])
    batch = make(client, [line("a")])
    parts: Parts = app.extensions["glmq"]
    assert not Clerk(parts, threading.Event()).work()
    assert read(client, batch)["status"] == "validating"
    assert batches.live_batches(db)
