"""Native batches: filled by requests, paused, tried again, handed out whole; each item one job, whatever is killed."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from dataclasses import replace
from typing import Any
from urllib.request import urlopen

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from services.api.batch_clerk import Clerk
from services.api.parts import Parts
from shared.db import Database
from shared.lifecycle.jobs import expire
from shared.lifecycle.tenants import limit_tenant
from tests.integration.api.conftest import Account, assert_problem, client_of, count_rows, png
from tests.integration.api.openai import draw
from tests.integration.api.test_openai_batches import clerk as clerk
from tests.integration.api.test_openai_batches import die_at_any_write, line, read, work_all
from tests.integration.api.test_openai_batches import make as make_from_file
from tests.integration.api.test_openai_files import upload
from tests.integration.api.test_openai_webhooks import heard, listen
from tests.ledger import at_once, execute, query

PICTURE = png(64, 64)
COUNTS = dict.fromkeys(("pending", "queued", "running", "succeeded", "failed", "canceled", "expired"), 0)


def item(custom_id: str, **fields: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "prompt": f"Cat {custom_id}", "size": "64x64", **fields}


def make(client: FlaskClient, items: list[dict[str, Any]], headers: Any = None, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/batches", json={"items": items, **fields}, headers=headers)
    assert answer.status_code == 200, answer.get_json()
    return dict(answer.get_json())


def act(client: FlaskClient, batch: dict[str, Any], name: str, sent: Any = None) -> dict[str, Any]:
    answer = client.post(f"/v1/batches/{batch['id']}/{name}", json=sent)
    assert answer.status_code == 200, answer.get_json()
    return dict(answer.get_json())


def items_of(client: FlaskClient, batch: dict[str, Any], query: str = "") -> list[tuple[str, str]]:
    data = client.get(f"/v1/batches/{batch['id']}/items{query}").get_json()["data"]
    return [(one["custom_id"], one["status"]) for one in data]


def archive(client: FlaskClient, batch: dict[str, Any], path: str = "export.zip") -> zipfile.ZipFile:
    answer = client.get(f"/v1/batches/{batch['id']}/{path}")
    assert (answer.status_code, answer.mimetype) == (200, "application/zip")
    found = zipfile.ZipFile(io.BytesIO(answer.get_data()))
    assert found.testzip() is None
    return found


def test_from_items_to_results(client: FlaskClient, clerk: Clerk, parts: Parts, db: Database) -> None:
    """Items inherit the defaults and become jobs in their order; what they become is listed, streamed and zipped."""
    defaults = {"prompt": "Shoe", "size": "64x64", "steps": 2, "metadata": {"shop": "1"}}
    items: list[dict[str, Any]] = [
        {"custom_id": "b", "seed": 1, "metadata": {"sku": "7"}},
        {"custom_id": "a", "n": 2, "steps": 3, "renditions": [{"name": "small", "size": "32x32", "format": "jpeg"}]},
        {"custom_id": "c", "prompt": "doomed"},
    ]
    batch = make(client, items, defaults=defaults, name="autumn", metadata={"order": "1"}, completion_window="2d")
    assert (batch["status"], batch["endpoint"], batch["input_file_id"]) == ("in_progress", "/v1/jobs", None)
    assert (batch["name"], batch["metadata"], batch["sealed"], batch["paused"]) == ("autumn", {"order": "1"}, True, False)
    assert (batch["items"], batch["request_counts"]["total"]) == ({**COUNTS, "pending": 3}, 3)
    assert batch["expires_at"] - batch["created_at"] == 2 * 86_400
    assert client.get(batch["urls"]["self"]).get_json() == batch
    work_all(clerk)
    jobs = client.get(f"/v1/jobs?order=asc&batch={batch['id']}").get_json()["data"]
    assert [(job["custom_id"], job["priority"], job["params"]["steps"]) for job in jobs] == [
        ("b", "bulk", 2),
        ("a", "bulk", 3),
        ("c", "bulk", 2),
    ]
    assert [job["metadata"] for job in jobs] == [{"shop": "1", "sku": "7"}, {"shop": "1"}, {"shop": "1"}]
    draw(db, parts.storage, PICTURE)
    assert items_of(client, batch) == [("b", "succeeded"), ("a", "succeeded"), ("c", "failed")]
    work_all(clerk)
    done = read(client, batch)
    assert (done["status"], done["output_file_id"], done["items"]) == ("completed", None, {**COUNTS, "succeeded": 2, "failed": 1})
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert done["usage"]["output_tokens"] > 0
    results = client.get(f"/v1/batches/{batch['id']}/results").get_json()["data"]
    assert [(one["custom_id"], one["status"], len(one["outputs"]), one["job_id"]) for one in results] == [
        ("b", "succeeded", 1, jobs[0]["id"]),
        ("a", "succeeded", 2, jobs[1]["id"]),
        ("c", "failed", 0, jobs[2]["id"]),
    ]
    assert results[2]["error"] == {"code": "unprocessable_prompt", "message": "too long", "param": None, "retryable": False}
    streamed = [json.loads(text) for text in client.get(f"/v1/batches/{batch['id']}/results.jsonl").get_data().splitlines()]
    assert [{**one, "outputs": len(one["outputs"])} for one in streamed] == [{**one, "outputs": len(one["outputs"])} for one in results]
    assert urlopen(streamed[1]["outputs"][1]["url"]).read() == PICTURE  # noqa: S310 - a URL that we made
    found = archive(client, batch)
    assert found.namelist() == ["b_0.png", "a_0.png", "a_1.png", "manifest.jsonl"]
    assert found.read("a_1.png") == PICTURE
    manifest = [json.loads(text) for text in found.read("manifest.jsonl").splitlines()]
    assert [(one["custom_id"], one["status"], [file["name"] for file in one["files"]]) for one in manifest] == [
        ("b", "succeeded", ["b_0.png"]),
        ("a", "succeeded", ["a_0.png", "a_1.png"]),
        ("c", "failed", []),
    ]
    assert archive(client, batch, "export").namelist() == found.namelist()


def test_wrong_items_by_pointer(client: FlaskClient, db: Database) -> None:
    """Every fault of every item is named, where it was written; nothing is stored."""
    good = item("good")
    wrong: list[Any] = [
        good,
        item("size", size="9999x64"),
        {"custom_id": "words", "promt": "Cat"},
        {"prompt": "no name"},
        item("n", n=0),
    ]
    answer = client.post("/v1/batches", json={"items": wrong, "completion_window": "31d", "nmae": "x"})
    problem = assert_problem(answer, 400, "invalid_request", "items.2.promt")
    pointers = {error["pointer"] for error in problem["errors"]}
    assert pointers == {"#/items/2/promt", "#/items/3/custom_id", "#/items/4/n", "#/completion_window", "#/nmae"}
    wrong = [
        item("size", size="9999x64"),
        {"custom_id": "no prompt"},
        item("twice"),
        item("twice"),
        item("lora", lora=[{"name": "oil"}]),
        item("token", prompt="<|image|>"),
        item("file", images=[{"file_id": "file-" + "0" * 26}]),
        item("job", images=[{"job_id": "job_" + "0" * 26}]),
        item("hook", webhook="http://10.0.0.1/"),
        item("hook too", webhook="http://10.0.0.1/"),
    ]
    answer = client.post("/v1/batches", json={"items": wrong, "defaults": {"temperature": 1, "steps": 3, "width": 40}})
    problem = assert_problem(answer, 400, "invalid_request", "items.0.size")
    assert {(error["pointer"], error["code"]) for error in problem["errors"]} >= {
        ("#/items/0/size", "exclusive"),
        ("#/items/1/prompt", "missing"),
        ("#/items/3/custom_id", "doubled"),
        ("#/items/4/lora/0/name", "unknown_lora"),
        ("#/items/5/prompt", "control_token"),
        ("#/items/6/images/0", "invalid_request"),
        ("#/items/7/images/0", "invalid_request"),
        ("#/items/8/webhook", "forbidden_address"),
        ("#/items/9/webhook", "forbidden_address"),
    }
    inherited = client.post(
        "/v1/batches", json={"items": [{"custom_id": "a"}, {"custom_id": "b"}], "defaults": {"prompt": "x", "size": "9999x64"}}
    )
    problem = assert_problem(inherited, 400, "invalid_request", "defaults.size")
    assert [error["pointer"] for error in problem["errors"]] == ["#/defaults/size"]
    assert_problem(client.post("/v1/batches", json={"items": [good] * 1001}), 400, "invalid_request", "items")
    assert_problem(client.post("/v1/batches", json={"metadata": {}}), 400, "invalid_request", "input_file_id")
    assert query(db, "SELECT count(*)::int FROM batch") == [(0,)]


def test_priorities(client: FlaskClient, app: APIFlask, account: Account, clerk: Clerk, db: Database) -> None:
    """An item may be more urgent than bulk, as far as its key may ask."""
    make(client, [item("a", priority="interactive"), item("b")])
    work_all(clerk)
    assert query(db, "SELECT custom_id, priority FROM job ORDER BY 1") == [("a", "interactive"), ("b", "bulk")]
    limited = client_of(app, client.post("/v1/api_keys", json={"scope": "submit", "max_priority": "standard"}).get_json()["key"])
    answer = limited.post("/v1/batches", json={"items": [item("a", priority="interactive")]})
    assert assert_problem(answer, 403, "forbidden_priority", "items.0.priority")["errors"][0]["pointer"] == "#/items/0/priority"


def test_append_and_seal(client: FlaskClient, clerk: Clerk, parts: Parts, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open batch works and does not end; an item that comes again is the same one, or refused; a sealed batch takes no more."""
    batch = make(client, [], defaults={"steps": 2})
    assert (batch["sealed"], batch["status"]) == (False, "in_progress")
    appended = act(client, batch, "append", {"items": [item("a"), item("b")]})
    assert (appended["added"], appended["replayed"], appended["batch"]["items"]["pending"]) == (2, 0, 2)
    work_all(clerk)
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    assert read(client, batch)["status"] == "in_progress"
    again = act(client, batch, "append", {"items": [item("b"), item("c")]})
    assert (again["added"], again["replayed"]) == (1, 1)
    path = f"/v1/batches/{batch['id']}/append"
    changed = client.post(path, json={"items": [item("d"), item("b", seed=5)]})
    problem = assert_problem(changed, 422, "idempotency_mismatch", "items.1.custom_id")
    assert problem["errors"][0]["pointer"] == "#/items/1/custom_id"
    assert_problem(client.post(path, json={"items": [item("d", size="1x1")]}), 400, "invalid_request", "items.0.size")
    monkeypatch.setattr("services.api.batches.MAX_ITEMS", 3)
    assert_problem(client.post(path, json={"items": [item("d")]}), 400, "invalid_request", "items")
    assert act(client, batch, "seal")["sealed"] is True
    assert_problem(client.post(path, json={"items": [item("d")]}), 422, "batch_sealed")
    assert act(client, batch, "append", {"items": [item("a")]})["replayed"] == 1
    work_all(clerk)
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    done = read(client, batch)
    assert (done["status"], done["items"]) == ("completed", {**COUNTS, "succeeded": 3})
    assert [job["params"]["steps"] for job in client.get("/v1/jobs").get_json()["data"]] == [2, 2, 2]
    assert act(client, batch, "seal") == act(client, batch, "pause") == act(client, batch, "resume") == done
    from_file = make_from_file(client, [line("a")])
    assert_problem(client.post(f"/v1/batches/{from_file['id']}/append", json={"items": [item("d")]}), 422, "batch_sealed")


def test_appends_at_once(client: FlaskClient, app: APIFlask, account: Account, db: Database) -> None:
    """However requests meet, each custom id is one item, and lines are numbered without a gap."""
    batch = make(client, [])
    clients = [client_of(app, account.keys["submit"]) for _ in range(4)]
    answers = at_once([lambda one=one: act(one, batch, "append", {"items": [item(name) for name in "abc"]}) for one in clients])
    assert sorted((answer["added"], answer["replayed"]) for answer in answers) == [(0, 3), (0, 3), (0, 3), (3, 0)]
    assert query(db, "SELECT line::int, custom_id FROM batch_item ORDER BY 1") == [(1, "a"), (2, "b"), (3, "c")]


def test_one_key_is_one_batch(client: FlaskClient, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated request makes no second batch, nor a second append; a key with another request is refused."""
    key = {"Idempotency-Key": "k"}
    batch = make(client, [item("a")], key, sealed=False)
    again = client.post("/v1/batches", json={"items": [item("a")], "sealed": False}, headers=key)
    assert (again.get_json()["id"], again.headers["Idempotency-Replayed"]) == (batch["id"], "true")
    assert_problem(client.post("/v1/batches", json={"items": [item("b")]}, headers=key), 422, "idempotency_mismatch", "Idempotency-Key")
    # What it names has gone since: the answer is still that of the first time.
    hooked = {"items": [item("a", webhook="https://hooks.example/x")], "defaults": {"deadline": "2999-01-01T00:00:00Z"}}
    made = client.post("/v1/batches", json=hooked, headers={"Idempotency-Key": "h"})
    monkeypatch.setattr("services.api.openai.batches.native_batch", None)
    assert client.post("/v1/batches", json=hooked, headers={"Idempotency-Key": "h"}).get_json() == made.get_json()
    # More than other routes read, with a key.
    long = {"items": [item(str(number), prompt="x" * 7000) for number in range(200)]}
    path = f"/v1/batches/{batch['id']}/append"
    first, second = (client.post(path, json=long, headers=key) for _ in range(2))
    assert first.get_json() == second.get_json()
    assert (first.get_json()["added"], second.headers["Idempotency-Replayed"]) == (200, "true")
    assert query(db, "SELECT count(*)::int FROM batch_item") == [(202,)]


def test_pages_of_items(client: FlaskClient, clerk: Clerk) -> None:
    """By line, both ways, filtered by status; a cursor of another batch is none."""
    batch = make(client, [item(name) for name in "abcde"])
    first = client.get(f"/v1/batches/{batch['id']}/items?limit=2")
    assert [one["line"] for one in first.get_json()["data"]] == [1, 2]
    assert 'rel="next"' in first.headers["Link"]
    after = first.get_json()["last_id"]
    assert items_of(client, batch, f"?after={after}&limit=9") == [(name, "pending") for name in "cde"]
    assert items_of(client, batch, f"?after={after}&order=desc") == [("a", "pending")]
    work_all(clerk)
    assert len(items_of(client, batch, "?status=queued,running")) == 5
    assert items_of(client, batch, "?status=succeeded") == []
    assert client.get(f"/v1/batches/{batch['id']}/results").get_json()["data"] == []
    other = make(client, [item("a")])
    for path in ("items", "results"):
        assert_problem(client.get(f"/v1/batches/{other['id']}/{path}?after={after}"), 400, "invalid_request", "after")
    assert_problem(client.get(f"/v1/batches/{batch['id']}/items?status=done"), 400, "invalid_request", "status.0")
    assert_problem(client.get(f"/v1/batches/{batch['id']}/results?status=pending"), 400, "invalid_request", "status.0")


def test_pause_and_resume(
    client: FlaskClient, clerk: Clerk, parts: Parts, db: Database, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a batch is paused nothing of it begins, but for what others wait for; what runs is finished. Then it goes on."""
    monkeypatch.setattr("services.api.batch_clerk._HOLD_AGAIN_S", 0.0)
    listen(client, "batch.paused")
    limit_tenant(db, account.tenant_id, {"max_queued": 4})
    batch = make(client, [item(f"c{index}", n=1 + index % 2) for index in range(6)])
    clerk.work()
    assert count_rows(db)["job"] == 4
    paused = act(client, batch, "pause")
    assert (paused["paused"], paused["status"]) == (True, "in_progress")
    assert act(client, batch, "pause")["paused"] is True
    assert [kind for kind, _ in heard(db)] == ["batch.paused"]
    work_all(clerk)
    held = "not_before BETWEEN now() + interval '9 minutes' AND now() + interval '10 minutes'"
    assert query(db, f"SELECT count(*)::int FROM grid WHERE {held}") == [(6,)]
    limit_tenant(db, account.tenant_id, {"max_queued": None})
    shared = client.post("/v1/jobs", json={"prompt": "Cat c1", "size": "64x64", "seed": 5, "n": 1}).get_json()
    same = query(db, "SELECT params->>'seed' FROM job WHERE custom_id = 'c2'")[0][0]
    wanted = client.post("/v1/jobs", json={"prompt": "Cat c2", "size": "64x64", "seed": int(same)}).get_json()
    work_all(clerk)
    draw(db, parts.storage, PICTURE)
    states = {one["id"]: one["status"] for one in client.get("/v1/jobs").get_json()["data"]}
    assert (states.pop(shared["id"]), states.pop(wanted["id"])) == ("succeeded", "succeeded")
    # The one that waited for the same picture has it.
    assert sorted(states.values()) == ["queued", "queued", "queued", "succeeded"]
    assert count_rows(db)["job"] == 6
    assert act(client, batch, "resume")["paused"] is False
    work_all(clerk)
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    assert read(client, batch)["items"] == {**COUNTS, "succeeded": 6}
    assert query(db, "SELECT count(*)::int FROM batch WHERE holds_work") == [(0,)]


def test_a_batch_that_pauses_itself(client: FlaskClient, clerk: Clerk, parts: Parts, db: Database, account: Account) -> None:
    """When as many items have failed as may, of jobs and of those that became none; then again, counted anew."""
    listen(client, "batch.paused")
    limit_tenant(db, account.tenant_id, {"max_queued": 2})
    lost = upload(client, png(), purpose="vision").get_json()["id"]
    batch = make(client, [item(f"doomed {index}", images=[{"file_id": lost}] * (index == 1)) for index in range(5)], max_failures=2)
    client.delete(f"/v1/files/{lost}")
    work_all(clerk)
    assert (count_rows(db)["job"], read(client, batch)["paused"]) == (2, False)
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    paused = read(client, batch)
    assert (paused["paused"], paused["items"]) == (True, {**COUNTS, "failed": 3, "pending": 2})
    act(client, batch, "resume")
    work_all(clerk)
    assert (read(client, batch)["paused"], count_rows(db)["job"]) == (False, 4)
    assert client.patch(f"/v1/batches/{batch['id']}", json={"max_failures": 1}).get_json()["max_failures"] == 1
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    assert [data["request_counts"]["failed"] for _, data in heard(db)] == [3, 5]
    assert_problem(client.patch(f"/v1/batches/{batch['id']}", json={"max_failures": 0}), 400, "invalid_request", "max_failures")


def test_a_paused_batch_ends(client: FlaskClient, clerk: Clerk, db: Database) -> None:
    """Canceled, or when its time is up, also while it is paused."""
    canceled, late = make(client, [item("a")]), make(client, [item("b")])
    clerk.work()
    for batch in (canceled, late):
        act(client, batch, "pause")
    work_all(clerk)
    act(client, canceled, "cancel")
    execute(db, "UPDATE batch SET expires_at = now() WHERE id = :id", id=late["id"])
    execute(
        db,
        "UPDATE job SET deadline = batch.expires_at, version = version + 1 FROM batch WHERE batch_id = :id AND batch.id = :id",
        id=late["id"],
    )
    expire(db)
    work_all(clerk)
    for batch, status in ((canceled, "cancelled"), (late, "expired")):
        ended = read(client, batch)
        assert (ended["status"], ended["paused"]) == (status, False)


def test_an_open_batch_expires(client: FlaskClient, clerk: Clerk, parts: Parts, db: Database) -> None:
    """One that nobody seals ends when its time is up, with what there was."""
    listen(client, "batch.*")
    batch = make(client, [item("a"), item("doomed")], sealed=False)
    work_all(clerk)
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    assert read(client, batch)["status"] == "in_progress"
    execute(db, "UPDATE batch SET expires_at = now()")
    assert_problem(client.post(f"/v1/batches/{batch['id']}/append", json={"items": [item("z")]}), 422, "batch_sealed")
    work_all(clerk)
    assert (read(client, batch)["status"], read(client, batch)["request_counts"]["completed"]) == ("expired", 1)
    assert [kind for kind, _ in heard(db)] == ["batch.item_failed", "batch.expired", "batch.partial"]


def test_retry_of_what_failed(client: FlaskClient, clerk: Clerk, parts: Parts, db: Database, account: Account) -> None:
    """Jobs that failed run once more under their ids, and items that came too late get their turn; what succeeded stays."""
    limit_tenant(db, account.tenant_id, {"max_queued": 3})
    batch = make(client, [item("good"), item("doomed"), item("stopped"), item("late")])
    clerk.work()
    jobs = {job["custom_id"]: job["id"] for job in client.get("/v1/jobs").get_json()["data"]}
    client.post(f"/v1/jobs/{jobs['stopped']}/cancel")
    execute(db, "UPDATE batch SET expires_at = now()")
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    ended = read(client, batch)
    assert (ended["status"], ended["items"]) == ("expired", {**COUNTS, "succeeded": 1, "failed": 1, "canceled": 1, "expired": 1})
    assert [one["error"]["retryable"] for one in client.get(f"/v1/batches/{batch['id']}/items").get_json()["data"][1:]] == [
        False,
        True,
        True,
    ]
    # When the cause is mended.
    execute(db, "UPDATE grid SET prompt = 'mended' WHERE prompt LIKE '%doomed%'")
    retried = act(client, batch, "retry-failed")
    assert (retried["status"], retried["completed_at"], retried["expired_at"]) == ("in_progress", None, None)
    assert retried["expires_at"] > ended["expires_at"]
    work_all(clerk)
    assert query(db, "SELECT run::int FROM job ORDER BY custom_id") == [(2,), (1,), (1,), (2,)]
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    done = read(client, batch)
    assert (done["status"], done["items"]) == ("completed", {**COUNTS, "succeeded": 4})
    again = {job["custom_id"]: job["id"] for job in client.get("/v1/jobs").get_json()["data"]}
    assert {name: again[name] for name in jobs} == jobs
    # Nothing is left to be tried: it stays as it is.
    assert act(client, batch, "retry-failed") == done


def test_retry_of_a_batch_from_a_file(client: FlaskClient, clerk: Clerk, parts: Parts, db: Database) -> None:
    """Its files are written anew, and those of before stay."""
    batch = make_from_file(client, [line("a"), line("doomed")])
    work_all(clerk)
    assert_problem(client.post(f"/v1/batches/{make_from_file(client, [b'{'])['id']}/retry-failed"), 422, "not_retryable")
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    before = read(client, batch)
    execute(db, "UPDATE grid SET prompt = 'mended'")
    act(client, batch, "retry-failed")
    work_all(clerk)
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    done = read(client, batch)
    assert (done["status"], done["request_counts"]["completed"], done["error_file_id"]) == ("completed", 2, None)
    assert len(client.get(f"/v1/files/{done['output_file_id']}/content").get_data().splitlines()) == 2
    assert len(client.get(f"/v1/files/{before['output_file_id']}/content").get_data().splitlines()) == 1


def test_a_retry_is_bounded(client: FlaskClient, clerk: Clerk, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that ended is a live one again, and there may be only so many."""
    batch = make(client, [item("a")])
    clerk.work()
    act(client, batch, "cancel")
    work_all(clerk)
    monkeypatch.setattr(parts.quotas, "defaults", replace(parts.quotas.defaults, live_batches=1))
    make(client, [item("b")])
    assert_problem(client.post(f"/v1/batches/{batch['id']}/retry-failed"), 429, "too_many_batches")


def test_changes(client: FlaskClient) -> None:
    """Name and metadata of a batch, whoever filled it; what is not named stays."""
    for batch in (make(client, [item("a")], name="x", metadata={"a": "1"}), make_from_file(client, [line("a")])):
        path = f"/v1/batches/{batch['id']}"
        assert client.patch(path, json={"name": "y"}).get_json() == {**batch, "name": "y"}
        changed = client.patch(path, json={"metadata": {"b": "2"}}).get_json()
        assert (changed["name"], changed["metadata"]) == ("y", {"b": "2"})
        bare = client.patch(path, json={"name": None, "metadata": None, "max_failures": None}).get_json()
        assert (bare["name"], bare["metadata"]) == (None, {})
        assert_problem(client.patch(path, json={"nmae": "z"}), 400, "invalid_request", "nmae")


def test_names_in_a_zip(client: FlaskClient, clerk: Clerk, db: Database, parts: Parts) -> None:
    """Whatever custom ids are, nothing is unpacked outside of its folder, over another file, or as a device; a lost picture is told."""
    names = ["../../etc/passwd", "/abs", "a/b", "A_b", "con", "...", "schöne Tasse 茶", "\u202egnp.x", "x" * 128, "lost", "manifest.jsonl"]
    batch = make(client, [item(name, prompt=f"Cat {index}") for index, name in enumerate(names)])
    work_all(clerk)
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    [(key,)] = query(
        db,
        "SELECT storage_key FROM image JOIN output ON image_id = image.id JOIN job ON job.id = job_id WHERE custom_id = 'lost'",
    )
    parts.storage.delete(key)
    found = archive(client, batch)
    assert found.namelist() == [
        "_.._etc_passwd_0.png",
        "_abs_0.png",
        "a_b_0.png",
        "A_b_0~4.png",
        "_con_0.png",
        "item_0.png",
        "schöne_Tasse_茶_0.png",
        "_gnp.x_0.png",
        "x" * 100 + "_0.png",
        "manifest.jsonl_0.png",
        "manifest.jsonl",
    ]
    manifest = [json.loads(text) for text in found.read("manifest.jsonl").splitlines()]
    assert [one["custom_id"] for one in manifest] == names
    assert [file["name"] for file in manifest[9]["files"]] == [None]


def test_strangers(client: FlaskClient, app: APIFlask, stranger: Account, account: Account) -> None:
    """Another tenant's batch is not there, by any route; a key that may only read changes nothing."""
    batch = make(client, [item("a")], sealed=False)
    other, reader = client_of(app, stranger.keys["admin"]), client_of(app, account.keys["read"])
    for name in ("append", "seal", "pause", "resume", "retry-failed", "cancel"):
        assert_problem(other.post(f"/v1/batches/{batch['id']}/{name}", json={"items": [item("b")]}), 404, "not_found")
        assert_problem(reader.post(f"/v1/batches/{batch['id']}/{name}", json={"items": [item("b")]}), 403, "forbidden_scope")
    assert_problem(reader.patch(f"/v1/batches/{batch['id']}", json={"name": "x"}), 403, "forbidden_scope")
    for name in ("items", "results", "results.jsonl", "export", "export.zip"):
        assert_problem(other.get(f"/v1/batches/{batch['id']}/{name}"), 404, "not_found")
        assert reader.get(f"/v1/batches/{batch['id']}/{name}").status_code == 200
    assert client.get(f"/v1/batches/{batch['id']}").get_json() == batch


def test_no_item_is_lost_or_doubled(client: FlaskClient, clerk: Clerk, parts: Parts, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clerks that die at any write, while a batch is filled, paused and tried again, leave it to one that ends it rightly."""
    batch = make(client, [item(f"c{index}") for index in range(6)], sealed=False)
    clerk.work()
    act(client, batch, "pause")
    act(client, batch, "append", {"items": [item(name) for name in ("c5", "late")]})
    die_at_any_write(parts, monkeypatch, 6)
    assert query(db, "SELECT count(*)::int FROM job") == [(6,)]
    act(client, batch, "cancel")
    work_all(clerk)
    act(client, batch, "retry-failed")
    act(client, batch, "resume")
    die_at_any_write(parts, monkeypatch, 10)
    work_all(clerk)
    assert query(db, "SELECT custom_id, run::int, status FROM job ORDER BY 1") == [
        *((f"c{index}", 2, "queued") for index in range(6)),
        ("late", 1, "queued"),
    ]
    draw(db, parts.storage, PICTURE)
    act(client, batch, "seal")
    work_all(clerk)
    done = read(client, batch)
    assert (done["status"], done["items"]) == ("completed", {**COUNTS, "succeeded": 7})
    assert query(db, "SELECT count(*)::int FROM event WHERE type = 'batch.completed'") == [(1,)]


def test_two_clerks_retry_at_once(client: FlaskClient, clerk: Clerk, parts: Parts, db: Database) -> None:
    """Each job is run once more, not twice."""
    batch = make(client, [item(f"c{index}") for index in range(12)])
    clerk.work()
    act(client, batch, "cancel")
    work_all(clerk)
    act(client, batch, "retry-failed")
    threads = [threading.Thread(target=work_all, args=(Clerk(parts, threading.Event()),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert query(db, "SELECT run::int, status, count(*)::int FROM job GROUP BY 1, 2") == [(2, "queued", 12)]
