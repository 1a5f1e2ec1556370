"""Estimates: what submit takes and usage says, without a row."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient

from services.api.answers import BatchEstimateAnswer, EstimateAnswer
from services.api.batch_answers import GENERATIONS
from services.api.parts import Parts
from services.api.settings import ApiSettings
from shared.db import Database
from shared.storage import Storage
from tests.integration.api.conftest import AR_SPEED, Account, assert_problem, finish_jobs, png, post_multipart
from tests.integration.api.test_openai_batches import line
from tests.integration.api.test_openai_files import upload


def estimate(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/estimate", json={"prompt": "a fox", **fields})
    assert answer.status_code == 200, answer.get_json()
    body: dict[str, Any] = answer.get_json()
    assert EstimateAnswer.model_validate(body).model_dump(mode="json") == body
    return body


def test_nothing_is_stored(refusing: FlaskClient) -> None:
    """An estimate leaves no row."""
    assert estimate(refusing)["object"] == "estimate"


@pytest.mark.parametrize(
    ("fields", "ar_tokens", "steps"),
    [
        ({}, 256 + 16, 4),
        ({"n": 3, "steps": 7}, 3 * 272, 21),
        ({"n": 3, "same_layout": True}, 272, 12),
        ({"size": "256x128"}, 242 + 32, 4),
    ],
)
def test_costs_are_what_usage_says(
    client: FlaskClient, db: Database, settings: ApiSettings, account: Account, fields: dict[str, Any], ar_tokens: int, steps: int
) -> None:
    """Tokens, steps and images are exact: the job's usage says the same once it is done."""
    cost = estimate(client, **fields)["cost"]
    job = client.post("/v1/jobs", json={"prompt": "a fox", **fields}).get_json()
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    usage = client.get(f"/v1/jobs/{job['id']}").get_json()["usage"]
    assert {name: usage[name] for name in cost} == cost
    assert (cost["ar_tokens"], cost["decoder_steps"]) == (ar_tokens, steps)


def test_what_is_stored_costs_nothing(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """A picture that is there is free, another of its layout costs the decoder alone, and `cache: off` costs all."""
    client.post("/v1/jobs", json={"prompt": "a fox", "seed": 7})
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    free = estimate(client, seed=7)
    assert free["cost"] == {"ar_tokens": 0, "decoder_steps": 0, "images": 0}
    assert (free["gpu_seconds"], free["queue_seconds"]) == (0, 0)
    assert estimate(client, seed=7, steps=9)["cost"] == {"ar_tokens": 0, "decoder_steps": 9, "images": 1}
    assert estimate(client, seed=7, cache="off")["cost"]["images"] == 1


@pytest.mark.usefixtures("workers")
def test_seconds_are_what_workers_report(client: FlaskClient, parts: Parts) -> None:
    """Worker seconds of both stages, the queue in front as the next job would see it, and when it would be done."""
    before = datetime.now(UTC)
    first = estimate(client, n=2)
    assert first["gpu_seconds_by_stage"]["ar"] == pytest.approx(2 * first["cost"]["ar_tokens"] / 2 * AR_SPEED.seconds_per_unit)
    assert first["gpu_seconds_by_stage"]["decoder"] > 0
    assert first["gpu_seconds"] == pytest.approx(sum(first["gpu_seconds_by_stage"].values()), abs=0.002)
    assert first["queue_seconds"] == 0
    assert datetime.fromisoformat(first["eta"]) > before
    job = client.post("/v1/jobs", json={"prompt": "a wolf", "n": 4}).get_json()
    parts.outlook.forget()
    assert estimate(client)["queue_seconds"] == pytest.approx(4 * first["cost"]["ar_tokens"] / 2 * AR_SPEED.seconds_per_unit)
    assert estimate(client)["queue_seconds"] > client.get(f"/v1/jobs/{job['id']}").get_json()["queue"]["seconds_ahead"]
    assert estimate(client, priority="interactive")["queue_seconds"] == 0


@pytest.mark.usefixtures("workers")
def test_guidance_and_references_count(client: FlaskClient) -> None:
    """No guidance is half of the decoder's work; reference images add to it, and need no draft."""
    plain, unguided = estimate(client), estimate(client, guidance_scale=1)
    assert unguided["gpu_seconds_by_stage"]["decoder"] < 0.6 * plain["gpu_seconds_by_stage"]["decoder"]
    request = json.dumps({"prompt": "a fox", "size": "128x128"})
    edited = post_multipart(client, {"request": request, "image": (png(128, 128), "a.png")}, "/v1/estimate").get_json()
    assert edited["cost"]["ar_tokens"] == 16
    assert edited["gpu_seconds_by_stage"]["decoder"] > plain["gpu_seconds_by_stage"]["decoder"]


@pytest.mark.usefixtures("workers")
def test_a_batch(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums over its lines; of a long file the first lines stand for the rest. Wrong lines are named, and wrong fields."""

    def ask(lines: list[dict[str, Any]], **fields: Any) -> Any:
        file = upload(client, b"\n\n".join(json.dumps(one).encode() for one in lines), purpose="batch").get_json()
        return client.post("/v1/estimate", json={"input_file_id": file["id"], "endpoint": GENERATIONS, **fields})

    single = estimate(client, prompt="Cat a", size="64x64")
    found = ask([line("a"), line("b", n=3)], completion_window="24h").get_json()
    assert BatchEstimateAnswer.model_validate(found).model_dump(mode="json") == found
    assert (found["requests"], found["warnings"]) == (2, [])
    assert found["cost"] == {name: 4 * count for name, count in single["cost"].items()}
    assert found["gpu_seconds"] == pytest.approx(4 * single["gpu_seconds"], rel=0.01)
    assert datetime.fromisoformat(found["eta"]) > datetime.now(UTC)
    wrong = assert_problem(ask([line("a"), line("b", size="9x9")]), 400, "invalid_request", "input_file_id")
    assert "line 2: body.size" in wrong["detail"]
    assert_problem(ask([line("a")], endpoint="/v1/x"), 400, "invalid_request", "endpoint")
    items = [{"custom_id": "a", "prompt": "Cat a"}, {"custom_id": "b", "prompt": "Cat b", "n": 3}]
    sent = client.post("/v1/estimate", json={"items": items, "defaults": {"size": "64x64"}}).get_json()
    assert (sent["requests"], sent["cost"]) == (2, found["cost"])
    items[1]["size"] = "9x9"
    assert_problem(client.post("/v1/estimate", json={"items": items}), 400, "invalid_request", "items.1.size")
    monkeypatch.setattr("services.api.openai.batch_estimate.MAX_COUNTED", 2)
    sampled = ask([line(str(index)) for index in range(5)]).get_json()
    assert (sampled["requests"], [warning["code"] for warning in sampled["warnings"]]) == (5, ["sampled"])
    assert sampled["cost"] == {name: 5 * count for name, count in single["cost"].items()}


def test_warnings(client: FlaskClient) -> None:
    """Of the prompt, of missing workers, of a deadline that nobody can meet."""
    codes = [warning["code"] for warning in estimate(client, prompt="it's a dog's \"B\"")["warnings"]]
    assert codes == ["apostrophe", "no_workers"]


@pytest.mark.usefixtures("workers")
def test_a_deadline_that_cannot_be_met(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """It is a warning in an estimate, which counts who is before it; what a job cannot meet even if it is alone is refused by submit."""
    late = estimate(client, n=10, size="512x512", steps=200, deadline="2099-01-01T00:00:00Z")
    assert late["warnings"] == []
    near = (datetime.now(UTC) + timedelta(seconds=7)).isoformat()
    large = {"n": 4, "size": "512x512", "seed": 1, "deadline": near}
    assert [warning["code"] for warning in estimate(client, **large)["warnings"]] == ["deadline_unmeetable"]
    sent = {"prompt": "a fox", **large}
    assert_problem(client.post("/v1/jobs", json=sent), 409, "deadline_unmeetable", "deadline")
    answer = client.post("/v1/images/generations", json=sent)
    assert (answer.status_code, answer.get_json(force=True)["status"]) == (422, 422)
    assert client.post("/v1/jobs", json={**sent, "size": "32x32", "n": 1}).status_code == 202
    del sent["deadline"]
    path = f"/v1/jobs/{client.post('/v1/jobs', json=sent).get_json()['id']}"
    client.post(f"{path}/cancel")
    # A retry is held to what it has left to do.
    assert_problem(client.post(f"{path}/retry", json={"deadline": near}), 409, "deadline_unmeetable", "deadline")
    assert client.get(path).get_json()["status"] == "canceled"
    assert client.post(f"{path}/retry", json={"deadline": "2099-01-01T00:00:00Z"}).status_code == 202
    assert_problem(client.post(f"{path}/retry", json={"deadline": near}), 409, "not_retryable")
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    # What is there already is there in time.
    assert client.post("/v1/jobs", json={**sent, "deadline": (datetime.now(UTC) + timedelta(seconds=2)).isoformat()}).status_code == 202
    soon = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    assert_problem(client.post("/v1/estimate", json={"prompt": "x", "deadline": soon}), 400, "invalid_request", "deadline")


@pytest.mark.parametrize(("fields", "param"), [({"sise": "1x1"}, "sise"), ({"size": "9999x9999"}, "size"), ({"n": 11}, "n")])
def test_refuses_what_submit_refuses(refusing: FlaskClient, fields: dict[str, Any], param: str) -> None:
    """The same words for the same mistakes."""
    estimated, submitted = (refusing.post(path, json={"prompt": "a fox", **fields}) for path in ("/v1/estimate", "/v1/jobs"))
    assert_problem(estimated, 400, "invalid_request", param)
    assert estimated.get_json()["errors"] == submitted.get_json()["errors"]
