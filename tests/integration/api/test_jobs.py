"""Jobs over HTTP, from submit to image, on real stores."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.request import urlopen

from flask.testing import FlaskClient

from services.api.answers import JobAnswer
from services.api.settings import ApiSettings
from shared.checkpoint import ModelInfo
from shared.db import Database
from shared.lifecycle import claims, work
from shared.lifecycle.deliveries import Room, claim_deliveries
from shared.progress import LiveState
from shared.states import Stage
from shared.storage import Storage
from tests.integration.api.conftest import Account, assert_problem, finish_jobs, png
from tests.ledger import execute

BATCH = "bat_01m8d2cb9nexy9x03x472p3qsj"


def claim_grid(db: Database) -> claims.ClaimedGrid:
    work.release(db, Stage.AR, 100)
    claimed = claims.claim_grid(db, "w", 30)
    assert claimed is not None
    return claimed


def assert_documented(job: dict[str, Any]) -> None:
    """The job is what the OpenAPI document says, field for field."""
    answer = JobAnswer.model_validate(job)
    assert answer.model_dump(mode="json") == job


def test_submit_fills_in_every_default(client: FlaskClient, model: ModelInfo) -> None:
    """A prompt alone is a job: 202, its Location, the checkpoint's defaults, and a seed that JavaScript can hold."""
    answer = client.post("/v1/jobs", json={"prompt": "a red fox"})
    job = answer.get_json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["Retry-After"] == "1"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert (job["status"], job["stage"], job["version"]) == ("queued", "ar", 1)
    assert job["input"] == {"prompt": "a red fox"}
    assert job["model"] == {"name": model.name, "revision": model.revision}
    assert job["params"]["size"] == "128x128"
    assert (job["params"]["steps"], job["params"]["guidance_scale"], job["params"]["top_p"]) == (4, 1.5, 0.75)
    assert 0 <= job["seed"] < 2**53
    assert job["params"]["layout_seed"] == job["seed"] == job["outputs"][0]["seed"]
    assert job["urls"]["self"] == f"http://localhost/v1/jobs/{job['id']}"


def test_submit_keeps_every_field(client: FlaskClient) -> None:
    """Every field arrives where it belongs."""
    request = {
        "prompt": 'a sign that says "héllo 世界 🦊"',
        "width": 100,
        "height": 65,
        "n": 3,
        "seed": 2**63 - 2,
        "layout_seed": 5,
        "same_layout": True,
        "steps": 7,
        "guidance_scale": 3,
        "temperature": 0.5,
        "top_p": 1,
        "format": "jpeg",
        "format_options": {"quality": 80},
        "priority": "bulk",
        "deadline": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        "webhook": {"url": "https://hooks.example/x?token=1", "events": ["job.*"]},
        "metadata": {"order": "17"},
        "custom_id": "line 17",
    }
    answer = client.post("/v1/jobs", json=request)
    job = answer.get_json()
    assert answer.status_code == 202, job
    assert job["input"] == request
    assert job["params"]["size"] == "100x65"
    assert [(output["width"], output["height"], output["generated_width"], output["generated_height"]) for output in job["outputs"]] == [
        (100, 65, 128, 96)
    ] * 3
    # Seeds wrap at the end of their range.
    assert [output["seed"] for output in job["outputs"]] == [2**63 - 2, 2**63 - 1, 0]
    assert [output["layout_seed"] for output in job["outputs"]] == [5, 5, 5]
    assert (job["priority"], job["custom_id"], job["metadata"]) == ("bulk", "line 17", {"order": "17"})
    assert job["deadline"].endswith("Z")


def test_get_reports_progress_and_answers_304(client: FlaskClient, db: Database, settings: ApiSettings) -> None:
    """The ETag moves with progress as well as with the version; while nothing moves, 304."""
    job = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()
    first = client.get(f"/v1/jobs/{job['id']}")
    again = client.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": first.headers["ETag"]})
    assert first.headers["ETag"].startswith('W/"1-')
    assert (again.status_code, again.data) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]

    grid = claim_grid(db)
    running = client.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": first.headers["ETag"]})
    assert running.status_code == 200
    assert running.get_json()["status"] == "running"
    LiveState(settings.redis_url.get_secret_value()).write_progress({grid.id: ("grid", 5, 16)})
    moved = client.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": running.headers["ETag"]})
    assert moved.status_code == 200
    assert moved.get_json()["progress"] == {"phase": "grid", "done": 5, "total": 16}


def test_finished_image_is_handed_out(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """A finished job has presigned URLs that work, and its image routes lead to them; before, they say why not."""
    job = client.post("/v1/jobs", json={"prompt": "a fox", "n": 2}).get_json()
    assert_documented(job)
    early = assert_problem(client.get(f"/v1/jobs/{job['id']}/images/0"), 404, "not_found")
    assert early["detail"] == "image 0 is not there yet: the job is queued"

    finish_jobs(db, Storage(settings), account.tenant_id, png())
    done = client.get(f"/v1/jobs/{job['id']}")
    assert done.get_json()["status"] == "succeeded"
    assert_documented(done.get_json())
    assert "Retry-After" not in done.headers
    assert "storage_key" not in done.get_json()["outputs"][0]
    with urlopen(done.get_json()["outputs"][1]["url"]) as file:  # noqa: S310 - our own store
        assert file.read() == png()

    shown = client.get(f"/v1/jobs/{job['id']}/images/1")
    assert shown.status_code == 302
    assert shown.headers["Cache-Control"] == "no-store"
    saved = client.get(f"/v1/jobs/{job['id']}/images/1?download=1")
    with urlopen(saved.headers["Location"]) as file:  # noqa: S310 - our own store
        assert file.headers["Content-Disposition"] == f'attachment; filename="{job["id"]}-1.png"'
    listed = client.get(f"/v1/jobs/{job['id']}/images").get_json()
    assert [image["status"] for image in listed["data"]] == ["succeeded", "succeeded"]
    for index in ("2", "-1", "01", "x", "9" * 5000, "١", "%00"):
        assert client.get(f"/v1/jobs/{job['id']}/images/{index}").status_code == 404, index


def test_cancel_ends_the_job_and_stops_its_work(client: FlaskClient, db: Database, settings: ApiSettings) -> None:
    """Cancel answers with the canceled job and flags what runs for it; a second cancel is 409."""
    job = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()
    grid = claim_grid(db)
    answer = client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.get_json()["status"]) == (200, "canceled")
    assert LiveState(settings.redis_url.get_secret_value()).read_stops([grid.id]) == {grid.id}
    again = assert_problem(client.post(f"/v1/jobs/{job['id']}/cancel"), 409, "already_terminal")
    assert "canceled" in again["detail"]


def test_list_pages_through_all_jobs(client: FlaskClient) -> None:
    """Following rel=next visits every job once, newest first, or oldest first if asked."""
    made = [client.post("/v1/jobs", json={"prompt": "a fox", "custom_id": str(i)}).get_json()["id"] for i in range(5)]
    for order, expected in (("desc", made[::-1]), ("asc", made)):
        seen, url = [], f"/v1/jobs?limit=2&order={order}"
        while url:
            page = client.get(url)
            body = page.get_json()
            seen += [job["id"] for job in body["data"]]
            assert (body["first_id"], body["last_id"]) == (body["data"][0]["id"], body["data"][-1]["id"])
            assert body["has_more"] == ("Link" in page.headers)
            link = page.headers.get("Link", "")
            assert not link or link.endswith('>; rel="next"')
            url = link.partition(">")[0].removeprefix("<http://localhost")
        assert seen == expected


def test_list_filters(client: FlaskClient, db: Database, account: Account) -> None:
    """Status, batch, custom_id, metadata and time of creation narrow a list, all together."""
    old = client.post("/v1/jobs", json={"prompt": "a fox", "custom_id": "a&b", "metadata": {"k[1]": "v,w"}}).get_json()
    new = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()
    client.post(f"/v1/jobs/{new['id']}/cancel")

    def ids(**query: str | list[str]) -> list[str]:
        answer = client.get("/v1/jobs", query_string=query)
        assert answer.status_code == 200, answer.get_json()
        return [job["id"] for job in answer.get_json()["data"]]

    assert ids(custom_id="a&b") == [old["id"]]
    assert ids(**{"metadata[k[1]]": "v,w"}) == [old["id"]]
    assert ids(**{"metadata[k[1]]": "v"}) == []
    assert ids(status="queued") == [old["id"]]
    assert ids(status="queued,canceled") == ids(status=["canceled", "queued"]) == [new["id"], old["id"]]
    assert ids(created_after=old["created_at"].replace("Z", "+00:00"), status="canceled") == [new["id"]]
    assert ids(created_before="2000-01-01T00:00:00Z") == []
    execute(db, "INSERT INTO batch (id, tenant_id, status) VALUES (:id, :tenant, 'running')", id=BATCH, tenant=account.tenant_id)
    execute(db, "UPDATE job SET batch_id = :id, version = version + 1 WHERE id = :job", id=BATCH, job=old["id"])
    assert ids(batch=BATCH) == ids(batch=BATCH, status="queued") == [old["id"]]
    assert ids(batch=BATCH, status="canceled") == ids(batch="bat_" + "0" * 26) == []
    assert_problem(client.get("/v1/jobs?batch=bat_1"), 400, "invalid_request", "batch")
    empty = client.get("/v1/jobs?custom_id=none").get_json()
    assert empty == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}


def test_answer_to_a_submit_is_what_is_read_afterwards(client: FlaskClient) -> None:
    """The 202 is made from what was written, the GET and the event from what is read: byte by byte the same job."""
    request = {
        "prompt": 'a fox that says "hé"',
        "n": 3,
        "same_layout": False,
        "metadata": {"zz": "1", "é": "2", "a": "3", "long name": ""},
        "guidance_scale": 2.0,
        "lora": [{"name": "neon", "scale": 0.5}],
        "webhook": {"url": "https://hooks.example/x", "events": ["job.*"]},
        "deadline": "2100-01-01T00:00:00.123456+02:00",
    }
    for more in ({}, {"same_layout": True}, {"cache": "off"}, {"approve": True, "n": 1}):
        submitted = client.post("/v1/jobs", json={**request, **more})
        assert submitted.status_code == 202, submitted.get_json(force=True)
        read = client.get(f"/v1/jobs/{submitted.get_json()['id']}")
        assert submitted.get_data() == read.get_data()


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_traces(client: FlaskClient, db: Database) -> None:
    """A job keeps the trace of its request: for its messages, for its webhooks, and for the problems that name it."""
    sent = {"traceparent": PARENT, "tracestate": "a=1"}
    hook = {"url": "https://hooks.example/x", "events": ["job.queued"]}
    # Messages are for what the dispatcher releases.
    execute(db, "UPDATE worker SET stopped_at = now()")
    client.post("/v1/jobs", json={"prompt": "a fox", "seed": 1}, headers=sent)
    client.post("/v1/jobs", json={"prompt": "a fox", "seed": 2}, headers={"traceparent": "none", "tracestate": "a=1"})
    client.post("/v1/jobs", json={"prompt": "a fox", "seed": 3, "webhook": hook}, headers=sent)
    traced = list(work.release(db, Stage.AR, 10).values())
    assert [trace and trace.headers() for trace in traced] == [sent, None, sent]
    [delivery] = claim_deliveries(db, Room(9, 9, 9), 30, lambda delivery: b"{}")
    assert delivery.trace is not None
    assert delivery.trace.headers() == sent
    refused = client.post("/v1/jobs", json={}, headers=sent)
    assert refused.get_json(force=True)["trace_id"] == PARENT[3:35]
    assert client.post("/v1/jobs", json={}).get_json(force=True)["trace_id"] is None
