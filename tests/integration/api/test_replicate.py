"""Replicate's dialect, on real stores. The official clients drive it in tests/conformance."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from services.api.replicate.schemas import HostedModelAnswer, PredictionAnswer, VersionAnswer
from services.api.settings import ApiSettings
from services.webhook_sender.letter import LetterWriter
from services.webhook_sender.settings import WebhookSenderSettings
from shared.db import Database
from shared.errors import PermanentWorkError
from shared.lifecycle import claims, finish, jobs, work
from shared.lifecycle.deliveries import Room, claim_deliveries
from shared.progress import LiveState
from shared.sealing import Sealer
from shared.settings import CoreSettings
from shared.states import Stage
from shared.storage import Storage
from shared.tables import Job
from tests.integration.api.conftest import MODEL, Account, assert_problem, client_of, finish_jobs, png
from tests.ledger import execute

REF = "glmq/miniature"
VERSION = "0123456789abcdef"
PROGRESS = re.compile(r"^\s*(?P<percentage>\d+)%\s*\|.+?\|\s*(?P<current>\d+)\/(?P<total>\d+)", re.MULTILINE)
"""As Python's client reads it."""


def create(client: FlaskClient, headers: dict[str, str] | None = None, **input: Any) -> dict[str, Any]:
    answer = client.post("/v1/predictions", json={"version": REF, "input": {"prompt": "a fox", **input}}, headers=headers)
    assert answer.status_code == 201, answer.get_json()
    PredictionAnswer.model_validate(answer.get_json(), strict=True)
    return dict(answer.get_json())


def get(client: FlaskClient, prediction: dict[str, Any]) -> dict[str, Any]:
    answer = client.get(f"/v1/predictions/{prediction['id']}")
    assert answer.status_code == 200
    PredictionAnswer.model_validate(answer.get_json(), strict=True)
    return dict(answer.get_json())


def events(text: str) -> list[dict[str, str]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    found = []
    for block in blocks:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            fields[name] = fields[name] + "\n" + value if name in fields else value
        found.append(fields)
    return found


def test_a_predictions_life(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """Created as `starting`, `processing` once a worker has it, `succeeded` with the URLs of its images."""
    made = create(client, num_outputs=2, seed=5, output_format="jpg", output_quality=0)
    assert (made["status"], made["model"], made["version"], made["output"], made["error"]) == ("starting", REF, VERSION, None, None)
    assert made["input"] == {"prompt": "a fox", "num_outputs": 2, "seed": 5, "output_format": "jpg", "output_quality": 0}
    assert made["urls"]["get"] == f"http://localhost/v1/predictions/{made['id']}"
    native = client.get(f"/v1/jobs/{made['id']}").get_json()
    assert (native["params"]["n"], native["params"]["format"], native["params"]["format_options"]["quality"]) == (2, "jpeg", 1)

    work.release(db, Stage.AR, 1)
    grid = claims.claim_grid(db, "w", 30)
    assert grid is not None
    LiveState(settings.redis_url.get_secret_value()).write_progress({grid.id: ("grid", 4, 16)})
    processing = get(client, made)
    assert processing["status"] == "processing"
    found = PROGRESS.search(processing["logs"])
    assert found is not None
    finish.finish_grid(db, grid.id, grid.attempt, claims.StoredArtifact("t/grid", "ab" * 32, 100), 16)
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    done = get(client, made)
    assert done["status"] == "succeeded"
    assert len(done["output"]) == 2
    assert all(url.startswith(settings.s3_endpoint) for url in done["output"])
    assert done["metrics"]["predict_time"] >= 0
    assert done["completed_at"].endswith("Z")
    # Whoever cancels it now gets it as it is.
    assert client.post(f"/v1/predictions/{made['id']}/cancel").get_json()["status"] == "succeeded"


def test_waiting(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """A prediction that is still under way when the wait is over is `starting`, whatever it is: else clients take it for done."""
    made = create(client, {"Prefer": "wait=1"}, seed=1)
    assert made["status"] == "starting"
    work.release(db, Stage.AR, 1)
    grid = claims.claim_grid(db, "w", 30)
    assert grid is not None
    running = client.post("/v1/predictions", json={"version": REF, "input": {"prompt": "a fox", "seed": 1}}, headers={"Prefer": "wait=1"})
    assert (running.status_code, running.get_json()["status"]) == (201, "starting")
    assert running.headers["Preference-Applied"] == "wait=1"
    assert get(client, running.get_json())["status"] == "processing"
    finish.finish_grid(db, grid.id, grid.attempt, claims.StoredArtifact("t/grid", "ab" * 32, 100), 16)
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    assert create(client, {"Prefer": "wait"}, seed=1)["status"] == "succeeded"


def test_every_end_is_one_that_clients_know(client: FlaskClient, db: Database) -> None:
    """Failed with a text, canceled by hand, and expired as canceled: no other word ends a client's polling."""
    failed = create(client, seed=1)
    work.release(db, Stage.AR, 10)
    grid = claims.claim_grid(db, "w", 30)
    assert grid is not None
    finish.fail(db, Stage.AR, grid.id, grid.attempt, PermanentWorkError("ar_timeout", "it took too long"), retryable=False)
    assert (get(client, failed)["status"], get(client, failed)["error"]) == ("failed", "ar_timeout: it took too long")

    canceled = create(client, seed=2)
    answer = client.post(f"/v1/predictions/{canceled['id']}/cancel")
    assert (answer.status_code, answer.get_json()["status"]) == (200, "canceled")
    assert client.post(f"/v1/predictions/{canceled['id']}/cancel").status_code == 200

    expired = create(client, {"Cancel-After": "5m"}, seed=3)
    execute(db, "UPDATE job SET deadline = clock_timestamp() - interval '1 s', version = version + 1 WHERE id = :id", id=expired["id"])
    jobs.expire(db)
    assert get(client, expired)["status"] == "canceled"
    assert client.get(f"/v1/jobs/{expired['id']}").get_json()["status"] == "expired"


@pytest.mark.parametrize(("header", "seconds"), [("60", 60), ("90s", 90), ("5m", 300), ("1h30m", 5400), (" 1h ", 3600)])
def test_cancel_after(client: FlaskClient, header: str, seconds: int) -> None:
    """Seconds or a duration; it becomes the job's deadline."""
    made = create(client, {"Cancel-After": header})
    deadline = datetime.fromisoformat(client.get(f"/v1/jobs/{made['id']}").get_json()["deadline"])
    assert abs((deadline - datetime.now(UTC)).total_seconds() - seconds) < 10


def test_wrong_requests(client: FlaskClient) -> None:
    """Errors name the fields as they were sent."""

    def refused(code: str, param: str | None, status: int = 400, headers: dict[str, str] | None = None, **body: Any) -> None:
        answer = client.post("/v1/predictions", json={"version": REF, "input": {"prompt": "a fox"}, **body}, headers=headers)
        assert_problem(answer, status, code, param)

    refused("invalid_request", "input.prompt", input={})
    refused("invalid_request", "input.prmpt", input={"prompt": "a", "prmpt": "b"})
    refused("invalid_request", "input.num_outputs", input={"prompt": "a", "num_outputs": 11})
    refused("invalid_request", "input.size", input={"prompt": "a", "size": "9000x9000"})
    refused("invalid_request", "input.aspect_ratio", input={"prompt": "a", "aspect_ratio": "1:1", "size": "64x64"})
    refused("invalid_image", "input.image", input={"prompt": "a", "image": "data:image/png;base64,%%%"})
    refused("invalid_image", "input.image", input={"prompt": "a", "image": "data:image/png;base64,é"})
    refused("unsupported_media", "input.image", 415, input={"prompt": "a", "image": "data:image/png;base64,AAAA"})
    refused("forbidden_address", "input.image", input={"prompt": "a", "image": "http://10.0.0.7/a.png"})
    red = "data:image/png;base64," + base64.b64encode(png()).decode()
    refused("forbidden_address", "input.images.1", input={"prompt": "a", "image": red, "images": [red, "http://10.0.0.7/a.png"]})
    refused("unprocessable_prompt", "input.prompt", 422, input={"prompt": "a <|image|> b"})
    refused("forbidden_address", "webhook", webhook="http://10.0.0.7/")
    refused("invalid_request", "webhook_completed", webhook_completed="x")
    refused("invalid_request", "webhook_events_filter.0", webhook_events_filter=["end"])
    refused("model_not_found", "version", 404, version="other/model")
    refused("model_not_found", "version", 404, version=f"{REF}:0000")
    refused("invalid_request", "Cancel-After", headers={"Cancel-After": "soon"})
    refused("invalid_request", "Cancel-After", headers={"Cancel-After": "1s"})
    told = client.post("/v1/predictions", json={"version": REF, "input": {"prompt": "a"}}, headers={"Cancel-After": "1s"}).get_json()
    assert told["errors"][0]["header"] == "Cancel-After"
    assert_problem(client.post("/v1/models/other/model/predictions", json={"input": {"prompt": "a"}}), 404, "model_not_found", "model")
    assert_problem(client.get("/v1/predictions?cursor=x"), 400, "invalid_request", "cursor")


def test_nulls_are_as_absent(client: FlaskClient) -> None:
    """Clients send null for what was not given."""
    body = {"version": REF, "input": {"prompt": "a fox", "seed": None, "image": None}, "webhook": None, "stream": None}
    assert client.post("/v1/predictions", json=body).status_code == 201


def test_versions_and_models(client: FlaskClient) -> None:
    """The model is looked up by owner and name, its version by hash; both ways of creating take them."""
    model = client.get(f"/v1/models/{REF}").get_json()
    HostedModelAnswer.model_validate(model, strict=True)
    assert (model["owner"], model["name"], model["id"], model["latest_version"]["id"]) == ("glmq", "miniature", MODEL.name, VERSION)
    version = client.get(f"/v1/models/{REF}/versions/{VERSION}").get_json()
    VersionAnswer.model_validate(version, strict=True)
    schemas = version["openapi_schema"]["components"]["schemas"]
    assert schemas["Output"]["type"] == "array"
    assert "prompt" in schemas["Input"]["properties"]
    assert client.get(f"/v1/models/{REF}/versions").get_json()["results"] == [version]
    assert_problem(client.get(f"/v1/models/{REF}/versions/x"), 404, "not_found")
    assert_problem(client.get("/v1/models/glmq/other"), 404, "model_not_found", "model")
    # The model that the checkpoint is one of.
    assert client.get("/v1/models/zai-org/GLM-Image").get_json() == model
    for named in (REF, f"{REF}:{VERSION}", VERSION, MODEL.revision, "GLMQ/Miniature"):
        assert client.post("/v1/predictions", json={"version": named, "input": {"prompt": "a"}}).status_code == 201, named
    assert client.post(f"/v1/models/{REF}/predictions", json={"input": {"prompt": "a"}}).status_code == 201


def test_images_in_every_form(client: FlaskClient) -> None:
    """A data URL, an upload of this dialect and one of OpenAI's are reference images, in their order."""
    data_url = "data:image/png;base64," + base64.b64encode(png(128, 96, "red")).decode()
    files = {"content": (png(96, 128, "blue"), "b.png"), "metadata": (b'{"k": "v"}', "blob")}
    sent = {name: (io.BytesIO(data), filename) for name, (data, filename) in files.items()}
    upload = client.post("/v1/files", data=sent, content_type="multipart/form-data")
    assert upload.status_code == 201, upload.get_json()
    file = upload.get_json()
    assert (file["name"], file["metadata"], file["size"]) == ("b.png", {"k": "v"}, len(png(96, 128, "blue")))
    made = create(client, image=[data_url, file["urls"]["get"]], aspect_ratio="match_input_image")
    native = client.get(f"/v1/jobs/{made['id']}").get_json()
    assert len(native["params"]["images"]) == 2
    assert native["params"]["size"] == "96x128"
    assert len(made["input"]["image"][0]) < 300
    assert made["input"]["image"][1] == file["urls"]["get"]


@pytest.mark.parametrize(("ratio", "size"), [("1:1", "128x128"), ("16:9", "160x96"), ("9:16", "96x160"), ("21:9", "192x96")])
def test_aspect_ratios(client: FlaskClient, ratio: str, size: str) -> None:
    """Of the default's area, in sides that the model draws."""
    made = create(client, aspect_ratio=ratio)
    assert client.get(f"/v1/jobs/{made['id']}").get_json()["params"]["size"] == size


def test_lists_page_both_ways(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """All jobs are predictions, newest first; `next` leads to older ones and `previous` back, by absolute URLs."""
    monkeypatch.setattr("services.api.replicate.predictions._PAGE", 2)
    made = [create(client, seed=seed)["id"] for seed in range(4)]
    made.append(client.post("/v1/jobs", json={"prompt": "native"}).get_json()["id"])
    url, pages, seen = "http://localhost/v1/predictions", [], []
    while url:
        page = client.get(url.removeprefix("http://localhost")).get_json()
        assert set(page) == {"previous", "next", "results"}
        pages.append(page)
        seen += [found["id"] for found in page["results"]]
        url = page["next"]
    assert seen == made[::-1]
    assert pages[0]["previous"] is None
    back = client.get(pages[2]["previous"].removeprefix("http://localhost")).get_json()
    assert [found["id"] for found in back["results"]] == [found["id"] for found in pages[1]["results"]]
    first = client.get(back["previous"].removeprefix("http://localhost")).get_json()
    assert [found["id"] for found in first["results"]] == made[:-3:-1]
    assert first["previous"] is None


def test_stream(client: FlaskClient, app: APIFlask, db: Database, settings: ApiSettings, account: Account) -> None:
    """Without a key, by the token of its URL: each event with an id, an output for each image, and done."""
    made = create(client, num_outputs=2)
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    path = made["urls"]["stream"].removeprefix("http://localhost")
    anyone = app.test_client()
    answer = anyone.get(path, headers={"Accept": "text/event-stream"})
    assert answer.mimetype == "text/event-stream"
    told = events(answer.get_data(as_text=True))
    assert [event["event"] for event in told] == ["logs", "output", "output", "done"]
    assert all(event["id"] for event in told)
    assert PROGRESS.search(told[0]["data"])
    assert told[1]["data"].startswith(settings.s3_endpoint)
    assert told[-1]["data"] == "{}"
    assert client.get(f"/v1/predictions/{made['id']}/stream").status_code == 200

    for wrong in (
        path[:-1] + ("0" if path[-1] != "0" else "1"),
        path.replace("token=", "token=1"),
        path.partition("token=")[0] + "token=x",
    ):
        assert anyone.get(wrong).status_code == 401, wrong
    other = create(client, seed=9)
    token = path.partition("token=")[2]
    assert anyone.get(f"/v1/predictions/{other['id']}/stream?token={token}").status_code == 401
    old = token.split(".", 1)
    assert anyone.get(f"/v1/predictions/{made['id']}/stream?token={int(time.time()) - 1}.{old[1]}").status_code == 401


def test_streams_of_what_did_not_succeed(client: FlaskClient, db: Database) -> None:
    """A failure is an error and done; a cancel is done with its reason."""
    failed = create(client, seed=1)
    work.release(db, Stage.AR, 10)
    grid = claims.claim_grid(db, "w", 30)
    assert grid is not None
    finish.fail(db, Stage.AR, grid.id, grid.attempt, PermanentWorkError("ar_timeout", "too long"), retryable=False)
    told = events(client.get(f"/v1/predictions/{failed['id']}/stream").get_data(as_text=True))
    assert [(event["event"], event["data"]) for event in told if event["event"] != "logs"] == [
        ("error", "ar_timeout: too long"),
        ("done", '{"reason":"error"}'),
    ]
    canceled = create(client, seed=2)
    client.post(f"/v1/predictions/{canceled['id']}/cancel")
    told = events(client.get(f"/v1/predictions/{canceled['id']}/stream").get_data(as_text=True))
    assert [(event["event"], event["data"]) for event in told] == [("done", '{"reason":"canceled"}')]


@pytest.mark.parametrize(
    ("asked", "events"),
    [
        (
            {},
            [
                "job.started",
                "job.draft_ready",
                "job.tokens_ready",
                "job.preview",
                "job.succeeded",
                "job.failed",
                "job.canceled",
                "job.expired",
            ],
        ),
        ({"webhook_events_filter": ["completed"]}, ["job.succeeded", "job.failed", "job.canceled", "job.expired"]),
        ({"webhook_events_filter": ["start"]}, ["job.started"]),
        ({"webhook_events_filter": ["output"]}, ["job.tokens_ready", "job.succeeded"]),
        ({"webhook_events_filter": ["logs"]}, ["job.draft_ready", "job.preview", "job.progress"]),
        ({"webhook_events_filter": ["logs", "start"]}, ["job.started", "job.draft_ready", "job.preview", "job.progress"]),
    ],
)
def test_webhook_filters(client: FlaskClient, db: Database, account: Account, asked: dict[str, Any], events: list[str]) -> None:
    """Each word of the filter stands for events of ours."""
    body = {"version": REF, "input": {"prompt": "a"}, "webhook": "https://hooks.example/x", **asked}
    made = client.post("/v1/predictions", json=body).get_json()
    stored = db.run(lambda session: session.get_one(Job, made["id"]).webhook)
    assert stored == {"url": "https://hooks.example/x", "events": events}


def test_webhooks_are_predictions(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """What is posted for a job of this dialect is the prediction; for a native one it is the event."""
    body = {
        "version": REF,
        "input": {"prompt": "a fox", "seed": 3},
        "webhook": "https://hooks.example/x",
        "webhook_events_filter": ["completed"],
    }
    made = client.post("/v1/predictions", json=body).get_json()
    client.post("/v1/jobs", json={"prompt": "a fox", "seed": 3, "webhook": "https://hooks.example/native"})
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    sender = WebhookSenderSettings(
        **{name: getattr(settings, name) for name in CoreSettings.model_fields} | {"public_url": "http://localhost"}
    )
    writer = LetterWriter(Storage(settings), Sealer(settings.secret_key.get_secret_value()), sender)
    posted = {delivery.url: delivery.body for delivery in claim_deliveries(db, Room(10, 10, 10), 30, writer.body)}
    sent = json.loads(posted["https://hooks.example/x"] or b"")
    PredictionAnswer.model_validate(sent, strict=True)
    shown = get(client, made)
    assert (sent["id"], sent["status"], sent["input"]) == (made["id"], "succeeded", {"prompt": "a fox", "seed": 3})
    assert {name: sent[name] for name in ("model", "version", "completed_at", "metrics")} == {
        name: shown[name] for name in ("model", "version", "completed_at", "metrics")
    }
    assert sent["output"][0].startswith("http")
    assert json.loads(posted["https://hooks.example/native"] or b"")["object"] == "event"


def test_idempotency(client: FlaskClient) -> None:
    """The same key makes one prediction; with another input it is refused."""
    first = client.post("/v1/predictions", json={"version": REF, "input": {"prompt": "a"}}, headers={"Idempotency-Key": "k"})
    again = client.post("/v1/predictions", json={"version": REF, "input": {"prompt": "a"}}, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.get_json()["id"]) == (201, first.get_json()["id"])
    assert again.headers["Idempotency-Replayed"] == "true"
    other = client.post("/v1/predictions", json={"version": REF, "input": {"prompt": "b"}}, headers={"Idempotency-Key": "k"})
    assert_problem(other, 422, "idempotency_mismatch", "Idempotency-Key")


def test_strangers_see_nothing(client: FlaskClient, app: APIFlask, account: Account, stranger: Account) -> None:
    """Another tenant's predictions are not there; a key that reads may not create or cancel."""
    made = create(client)
    other = client_of(app, stranger.keys["admin"])
    for method, path in (("get", ""), ("post", "/cancel"), ("get", "/stream")):
        assert_problem(getattr(other, method)(f"/v1/predictions/{made['id']}{path}"), 404, "not_found")
    assert other.get("/v1/predictions").get_json()["results"] == []
    assert_problem(other.get(f"/v1/predictions?cursor=after_{made['id']}"), 400, "invalid_request", "after")
    reader = client_of(app, account.keys["read"])
    assert_problem(reader.post("/v1/predictions", json={"version": REF, "input": {"prompt": "a"}}), 403, "forbidden_scope")
    assert_problem(reader.post(f"/v1/predictions/{made['id']}/cancel"), 403, "forbidden_scope")


def test_an_erased_prediction(client: FlaskClient) -> None:
    """Erased as a job, it is gone as a prediction."""
    made = create(client)
    client.delete(f"/v1/jobs/{made['id']}")
    assert_problem(client.get(f"/v1/predictions/{made['id']}"), 410, "gone")
    assert client.get("/v1/predictions").get_json()["results"] == []
