"""A model that draws small pictures only serves large ones too, and says what it does."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import text

from services.api.settings import ApiSettings
from shared.db import Database
from shared.lifecycle.workers import beat_worker
from shared.states import Stage
from shared.storage import Storage
from tests.integration.api.conftest import MODEL, Account, assert_problem, client_of, finish_jobs, png

SMALL = replace(MODEL, max_px=2048, source_max_px=256, min_generate_px=64, max_generate_px=256, max_tokens=2000, token_bytes=(6, 2, 1, 1))


@pytest.fixture
def client(app: APIFlask, account: Account, db: Database) -> FlaskClient:
    """Sends the admin key of `account` to a service whose AR worker has reported `SMALL`."""
    beat_worker(db, "worker-1", Stage.AR, "host", 1, 1, asdict(SMALL))
    return client_of(app, account.keys["admin"])


def test_a_large_picture_is_drawn_small_and_the_job_says_so(
    client: FlaskClient, db: Database, settings: ApiSettings, account: Account
) -> None:
    """Both sizes, the progress and the usage are those of what is really done."""
    [model] = client.get("/v1/models").get_json()["data"]
    assert (model["limits"]["max_side"], model["limits"]["max_generated_side"]) == (2048, 256)

    job = client.post("/v1/jobs", json={"prompt": "a fox", "size": "1536x1024"}).get_json()

    assert job["params"]["size"] == "1536x1024"
    [output] = job["outputs"]
    assert (output["width"], output["height"], output["generated_width"], output["generated_height"]) == (1536, 1024, 256, 160)
    assert job["progress"] == {"phase": "draft", "done": 0, "total": 12 * 20}
    finish_jobs(db, Storage(settings), account.tenant_id, png(1024, 1536))
    assert client.get(f"/v1/jobs/{job['id']}").get_json()["usage"]["ar_tokens"] == 12 * 20 + 5 * 8


def test_an_earlier_result_lies_on_its_grid_again(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """As a source, a result of any size gets the size it was drawn in, and so does an edit that is asked for in the size of the result."""
    first = client.post("/v1/jobs", json={"prompt": "a fox", "size": "1536x1024"}).get_json()
    finish_jobs(db, Storage(settings), account.tenant_id, png(1024, 1536))
    request = {"prompt": "at night", "size": "1536x1024", "images": [{"job_id": first["id"]}]}

    edit = client.post("/v1/jobs", json=request).get_json()

    assert (edit["outputs"][0]["generated_width"], edit["outputs"][0]["generated_height"]) == (256, 160)
    assert db.run(lambda session: session.execute(text("SELECT width_px, height_px FROM file")).all()) == [(256, 160)]


def test_large_pictures_of_one_drawn_size_share_their_layout(client: FlaskClient, db: Database) -> None:
    """The tokens are written once for sizes that are drawn alike."""
    for size in ("256x256", "512x512", "2048x2048"):
        assert client.post("/v1/jobs", json={"prompt": "a fox", "size": size, "seed": 1}).status_code == 202
    assert db.run(lambda session: session.execute(text("SELECT count(*) FROM grid")).scalar()) == 1


@pytest.mark.parametrize("prompt", ["🦊" * 500, "世" * 700, "ñ" * 2000, "fox " * 3 + "🦊" * 480])
def test_a_prompt_of_too_many_tokens_is_refused_at_once(client: FlaskClient, prompt: str) -> None:
    """What no worker has room for never becomes a job, in any interface; the limit is told, and a smaller picture leaves more room."""
    assert client.get("/v1/models").get_json()["data"][0]["limits"]["max_tokens"] == 2000
    for path in ("/v1/jobs", "/v1/estimate"):
        problem = assert_problem(client.post(path, json={"prompt": prompt, "size": "256x256"}), 422, "unprocessable_prompt", "prompt")
        assert problem["errors"][0]["code"] == "too_many_tokens"
        assert "room for" in problem["detail"]
        assert "GLMQ_" not in problem["detail"]
    refused = client.post("/v1/images/generations", json={"prompt": prompt})
    assert (refused.status_code, refused.get_json(force=True)["error"]["param"]) == (422, "prompt")
    assert client.get("/v1/jobs").get_json()["data"] == []
    assert client.post("/v1/jobs", json={"prompt": prompt[:400], "size": "256x256"}).status_code == 202
