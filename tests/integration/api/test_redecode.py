"""Reuse over HTTP: pictures of the store, and layouts that are drawn once more."""

from __future__ import annotations

import json
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import text

from services.api.settings import ApiSettings
from shared.db import Database
from shared.lifecycle import work
from shared.states import Stage
from shared.storage import Storage
from tests.integration.api.conftest import Account, assert_problem, client_of, count_rows, finish_jobs, png, post_multipart
from tests.integration.api.test_jobs import assert_documented

REQUEST = {"prompt": "a fox", "seed": 7, "format": "jpeg", "format_options": {"quality": 80}, "size": "100x65"}


@pytest.fixture
def source(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> dict[str, Any]:
    """A finished job of `REQUEST`."""
    job = client.post("/v1/jobs", json=REQUEST).get_json()
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    found = client.get(f"/v1/jobs/{job['id']}").get_json()
    assert found["status"] == "succeeded"
    return dict(found)


def redecode(client: FlaskClient, source: dict[str, Any], **fields: Any) -> Any:
    return client.post(f"/v1/jobs/{source['id']}/redecode", json=fields)


def test_equal_request_is_answered_from_the_store(client: FlaskClient, source: dict[str, Any]) -> None:
    """A picture that is there already comes with the very answer: 202, succeeded, cached, with a URL."""
    answer = client.post("/v1/jobs", json={**REQUEST, "custom_id": "again"})
    job = answer.get_json()
    assert (answer.status_code, job["status"]) == (202, "succeeded")
    assert "Retry-After" not in answer.headers
    assert job["id"] != source["id"]
    assert_documented(job)
    [output] = job["outputs"]
    assert output["cached"]
    assert (output["id"], output["sha256"]) == (source["outputs"][0]["id"], source["outputs"][0]["sha256"])
    assert output["url"]
    assert job["usage"] == {"text_tokens": 0, "image_tokens": 0, "ar_tokens": 0, "decoder_steps": 0, "images": 0}
    assert client.get(f"/v1/jobs/{job['id']}/images/0").status_code == 302


@pytest.mark.parametrize("cache", ["refresh", "off"])
def test_cache_can_be_passed_by(client: FlaskClient, source: dict[str, Any], cache: str) -> None:
    """Whoever asks for a new picture gets one, and the request says so."""
    job = client.post("/v1/jobs", json={**REQUEST, "cache": cache}).get_json()
    assert (job["status"], job["params"]["cache"]) == ("queued", cache)
    assert job["outputs"][0]["id"] != source["outputs"][0]["id"]


def test_store_is_not_shared_between_tenants(app: APIFlask, client: FlaskClient, source: dict[str, Any], stranger: Account) -> None:
    """Another tenant with the same request starts from nothing."""
    job = client_of(app, stranger.keys["admin"]).post("/v1/jobs", json=REQUEST).get_json()
    assert (job["status"], job["outputs"][0]["cached"]) == ("queued", False)


def test_redecode_keeps_what_is_left_out(client: FlaskClient, db: Database, source: dict[str, Any]) -> None:
    """A redecode takes over every value it does not name, points to its source, and asks nothing of the AR stage."""
    answer = redecode(client, source, steps=9, metadata={"k": "v"}, custom_id="c", priority="bulk", webhook="https://hooks.example/")
    job = answer.get_json()
    assert answer.status_code == 202, job
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert_documented(job)
    assert (job["status"], job["stage"], job["redecode_of"]) == ("queued", "decoder", source["id"])
    assert (job["metadata"], job["custom_id"], job["priority"]) == ({"k": "v"}, "c", "bulk")
    assert job["params"] == {**source["params"], "steps": 9}
    assert work.release(db, Stage.AR, 10) == {}


def test_a_redecode_that_is_tried_again(client: FlaskClient, source: dict[str, Any], db: Database) -> None:
    """Clients that number their tries and send no key get the job of the first one; another content is another job."""

    def attempt(number: str, **fields: Any) -> Any:
        return client.post(f"/v1/jobs/{source['id']}/redecode", json=fields, headers={"X-Stainless-Retry-Count": number})

    first = attempt("0", steps=9)
    again = attempt("1", steps=9)
    assert (first.status_code, again.status_code, again.headers["Idempotency-Replayed"]) == (202, 200, "true")
    assert first.get_json()["id"] == again.get_json()["id"]
    assert attempt("1", steps=8).get_json()["id"] != first.get_json()["id"]
    assert count_rows(db)["job"] == 3


def test_redecode_changes_what_it_names(client: FlaskClient, source: dict[str, Any]) -> None:
    """Noise, number, size, guidance, format and quality may be others; the layout stays, and another format has its own default quality."""
    fields = {
        "n": 3,
        "seed": 5,
        "guidance_scale": 2,
        "size": "64x64",
        "format": "webp",
        "quality": "fast",
        "previews": False,
        "cache": "off",
    }
    job = redecode(client, source, **fields).get_json()
    params = {name: job["params"][name] for name in fields}
    assert params == fields
    assert job["params"]["format_options"] == {"quality": None, "max_bytes": None}
    assert [(output["seed"], output["layout_seed"], output["width"], output["generated_width"]) for output in job["outputs"]] == [
        (5 + index, 7, 64, 128) for index in range(3)
    ]


def test_redecode_without_a_change_is_in_the_store(client: FlaskClient, source: dict[str, Any]) -> None:
    """The same once more is the same picture."""
    job = redecode(client, source).get_json()
    assert (job["status"], job["outputs"][0]["id"]) == ("succeeded", source["outputs"][0]["id"])


def test_redecode_with_sources(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """An image-to-image job is drawn once more with its own reference images."""
    sent = post_multipart(client, {"request": json.dumps({"prompt": "a fox"}), "image": (png(), "a.png")}).get_json()
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    job = redecode(client, sent, steps=9).get_json()
    assert job["params"]["images"] == sent["params"]["images"] != []


def test_redecode_is_idempotent(client: FlaskClient, db: Database, source: dict[str, Any]) -> None:
    """One key makes one job; with another request, or for another source, it is a mismatch."""
    headers = {"Idempotency-Key": "k"}
    path = f"/v1/jobs/{source['id']}/redecode"
    first, again = (client.post(path, json={"steps": 9}, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert first.get_json() == again.get_json()
    assert_problem(client.post(path, json={"steps": 8}, headers=headers), 422, "idempotency_mismatch", "Idempotency-Key")
    other = first.get_json()["id"]
    assert count_rows(db)["job"] == 2
    of_other = client.post(f"/v1/jobs/{other}/redecode", json={"steps": 9}, headers=headers)
    assert_problem(of_other, 422, "idempotency_mismatch", "Idempotency-Key")


def test_unfinished_layout_is_told(client: FlaskClient, db: Database) -> None:
    """While the layout is not there, and once another model is loaded, a redecode is 409 with the reason, and stores nothing."""
    job = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()
    before = count_rows(db)
    body = assert_problem(redecode(client, job, steps=9), 409, "layout_unavailable")
    assert body["detail"] == "the job has no finished layout to draw from: one of them is not finished yet"
    db.run(lambda session: session.execute(text('UPDATE job SET model = \'{"name": "m", "revision": "old"}\', version = version + 1')))
    assert "old" in assert_problem(redecode(client, job, steps=9), 409, "layout_unavailable")["detail"]
    assert count_rows(db) == before


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "another"}, "prompt"),
        ({"layout_seed": 1}, "layout_seed"),
        ({"images": []}, "images"),
        ({"approve": True}, "approve"),
        ({"n": 0}, "n"),
        ({"n": None, "steps": 0}, "steps"),
        ({"size": "auto"}, "size"),
        ({"size": "64x513"}, "size"),
        ({"seed": -1}, "seed"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"format": "png", "format_options": {"quality": 1}}, "format_options.quality"),
        ({"format": "gif"}, "format"),
        ({"quality": "best"}, "quality"),
        ({"lora": [{"name": "sketch"}]}, "lora"),
        ({"lora": [{"name": "sketch", "scale": 9}]}, "lora.0.scale"),
        ({"cache": "no"}, "cache"),
        ({"deadline": "2020-01-01T00:00:00Z"}, "deadline"),
        ({"webhook": {"url": "http://169.254.169.254/"}}, "webhook.url"),
        ({"metadata": {"k": 1}}, "metadata.k"),
    ],
    ids=str,
)
def test_wrong_field_of_a_redecode_is_named(client: FlaskClient, source: dict[str, Any], fields: dict[str, Any], param: str) -> None:
    """What decides the layout cannot be changed, and what is wrong is named."""
    code = "forbidden_address" if "webhook" in fields else "invalid_request"
    assert_problem(redecode(client, source, **fields), 400, code, param)


def test_body_of_a_redecode(client: FlaskClient, source: dict[str, Any]) -> None:
    """It is JSON, and nothing else; adapters may be repeated as they were."""
    path = f"/v1/jobs/{source['id']}/redecode"
    assert_problem(client.post(path), 415, "unsupported_media")
    assert_problem(client.post(path, data={"request": "{}"}, content_type="multipart/form-data"), 415, "unsupported_media")
    assert redecode(client, source, lora=[], steps=9).status_code == 202
