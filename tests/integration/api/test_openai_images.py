"""OpenAI's image routes: one job row behind each request, and answers as OpenAI's clients read them."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from services.api.job_access import find_job
from services.api.openai import wait
from services.api.openai.images import EDITS, GENERATIONS
from services.api.parts import Parts
from services.api.settings import ApiSettings
from shared.db import Database
from tests.integration.api.conftest import Account, assert_problem, client_of, count_rows, open_app, png
from tests.integration.api.openai import draw, drawing, events_of
from tests.stack import wait_until

PICTURE = png(64, 64)
ONLY_JSON = {"Accept": "application/json"}


@pytest.fixture
def workers(parts: Parts) -> Iterator[None]:
    """Whatever is submitted is drawn at once."""
    # With the API's own ledger, which tells of changes as the workers' does: whoever waits hears of it at once.
    with drawing(lambda: draw(parts.db, parts.storage, PICTURE, num_previews=3)):
        yield


@pytest.fixture
def hasty(settings: ApiSettings, account: Account, model: object) -> Iterator[FlaskClient]:
    """A client of an API that holds requests for a moment only."""
    with open_app(settings.model_copy(update={"sync_max_s": 0.1})) as app:
        yield client_of(app, account.keys["admin"])


def generate(client: FlaskClient, headers: dict[str, str] | None = None, **sent: Any) -> Any:
    return client.post(GENERATIONS, json={"prompt": "A cat", **sent}, headers=headers or {})


def edit(client: FlaskClient, parts: list[tuple[str, Any]]) -> Any:
    """POST a form as OpenAI's clients do: text parts, and files as (bytes, name)."""
    values: dict[str, Any] = {}
    for name, value in parts:
        values.setdefault(name, []).append(FileStorage(io.BytesIO(value[0]), value[1]) if isinstance(value, tuple) else value)
    boundary, body = encode_multipart(values)
    return client.post(EDITS, data=body, content_type=f"multipart/form-data; boundary={boundary}")


def num_jobs(db: Database) -> int:
    return count_rows(db)["job"]


@pytest.mark.usefixtures("workers")
def test_a_request_is_held_until_its_images_are_there(client: FlaskClient, db: Database) -> None:
    """One request, one job, its images in base 64, and a usage that was counted."""
    answer = generate(client, size="64x96", n=2, quality="low", seed=3)
    body = answer.get_json()
    assert answer.status_code == 200, body
    assert [base64.b64decode(datum["b64_json"]) for datum in body["data"]] == [PICTURE, PICTURE]
    assert [datum["seed"] for datum in body["data"]] == [3, 4]
    assert (body["size"], body["quality"], body["output_format"], body["background"]) == ("64x96", "low", "png", "opaque")
    job = client.get(f"/v1/jobs/{body['id']}").get_json()
    assert (job["status"], job["params"]["steps"]) == ("succeeded", 2)
    written = 2 * (13 * 19 + 6)
    assert job["usage"]["ar_tokens"] == written
    assert body["usage"] == {
        "input_tokens": 54,
        "input_tokens_details": {"text_tokens": 42, "image_tokens": 12},
        "output_tokens": written,
        "output_tokens_details": {"image_tokens": written, "text_tokens": 0},
        "total_tokens": 54 + written,
    }
    assert num_jobs(db) == 1


@pytest.mark.usefixtures("workers")
def test_images_by_url(client: FlaskClient) -> None:
    """Whoever wants URLs gets presigned ones, and is told how long they are good."""
    body = generate(client, response_format="url").get_json()
    [datum] = body["data"]
    assert urlopen(datum["url"]).read() == PICTURE  # noqa: S310 - a URL that we made
    assert datum["expires_at"] > body["created"] + 3000
    assert "b64_json" not in datum


def test_in_the_background(client: FlaskClient, db: Database) -> None:
    """`background: true` is answered at once, with a job to ask for."""
    answer = generate(client, background=True, metadata={"order": "1"}, service_tier="flex")
    body = answer.get_json()
    assert answer.status_code == 202
    assert (body["data"], body["status"], answer.headers["Location"]) == (None, "queued", f"/v1/jobs/{body['id']}")
    assert int(answer.headers["Retry-After"]) > 0
    assert int(answer.headers["openai-poll-after-ms"]) >= 1000
    assert int(answer.headers["openai-processing-ms"]) >= 0
    job = client.get(body["urls"]["self"]).get_json()
    assert (job["metadata"], job["priority"]) == ({"order": "1"}, "bulk")
    assert num_jobs(db) == 1


@pytest.mark.usefixtures("workers")
def test_a_stream_shows_pictures_on_the_way(client: FlaskClient) -> None:
    """First the draft, then the picture between its steps, then each image once; no frame that the official clients stumble over."""
    answer = generate(client, stream=True, partial_images=2, n=1, size="64x64")
    assert answer.mimetype == "text/event-stream"
    assert answer.headers["X-Accel-Buffering"] == "no"
    data = answer.get_data()
    assert data.startswith(b":")
    *partial, last = events_of(data)
    assert 1 <= len(partial) <= 2
    assert [found["partial_image_index"] for found in partial] == list(range(len(partial)))
    assert {found["type"] for found in partial} == {"image_generation.partial_image"}
    assert {found["preview"]["kind"] for found in partial} <= {"draft", "x0"}
    assert all(found["output_format"] == "webp" and base64.b64decode(found["b64_json"]) for found in partial)
    assert (last["type"], last["size"], last["image_index"]) == ("image_generation.completed", "64x64", 0)
    assert base64.b64decode(last["b64_json"]) == PICTURE
    assert last["usage"]["output_tokens"] > 0


@pytest.mark.usefixtures("workers")
def test_a_stream_of_several_images(client: FlaskClient) -> None:
    """Each image has an event of its own, and their usages add up to the job's."""
    found = events_of(generate(client, stream=True, n=3, size="64x64").get_data())
    assert [event["image_index"] for event in found] == [0, 1, 2]
    job = client.get(f"/v1/jobs/{found[0]['id']}").get_json()
    assert sum(event["usage"]["output_tokens"] for event in found) == job["usage"]["ar_tokens"]


@pytest.mark.usefixtures("workers")
def test_a_failure_in_a_stream(client: FlaskClient) -> None:
    """A job that fails mid-stream is an event with `error`, which the clients raise."""
    [event] = events_of(generate(client, stream=True, prompt="doomed").get_data())
    assert (event["error"]["code"], event["error"]["type"]) == ("unprocessable_prompt", "invalid_request_error")
    assert "too long" in event["error"]["message"]


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize(("prompt", "status", "code"), [("cursed", 500, "job_failed"), ("doomed", 422, "unprocessable_prompt")])
def test_a_failed_job(client: FlaskClient, prompt: str, status: int, code: str) -> None:
    """A failure is an error that the clients do not answer with the same request; what is the client's fault is told as such."""
    answer = generate(client, prompt=prompt)
    assert "too long" in assert_problem(answer, status, code)["detail"]
    assert answer.headers["X-Should-Retry"] == "false"
    assert answer.get_json()["job"].endswith(client.get("/v1/jobs").get_json()["data"][0]["id"])


def test_a_canceled_job(client: FlaskClient, db: Database) -> None:
    """A cancel from elsewhere ends the wait; never with 409, which the clients would repeat."""

    def cancel() -> None:
        for job in client.get("/v1/jobs?status=queued").get_json()["data"]:
            client.post(f"/v1/jobs/{job['id']}/cancel")

    with drawing(cancel):
        assert_problem(generate(client), 422, "job_canceled")


def test_a_wait_that_is_too_long(hasty: FlaskClient, parts: Parts, db: Database) -> None:
    """After `sync_max_s` the client is told where its job is, and not to ask for another one."""
    answer = generate(hasty, headers=ONLY_JSON)
    body = answer.get_json()
    assert (answer.status_code, answer.mimetype) == (504, "application/json")
    assert (body["error"]["code"], answer.headers["X-Should-Retry"]) == ("deadline", "false")
    draw(db, parts.storage, PICTURE)
    assert hasty.get(body["job"]).get_json()["status"] == "succeeded"
    [event] = events_of(generate(hasty, stream=True).get_data())
    assert event["error"]["code"] == "deadline"


@pytest.mark.parametrize(
    ("prompt", "status", "end"), [("A cat", "succeeded", 200), ("doomed", "failed", 422), ("A slow cat", "queued", 504)]
)
def test_a_wait_that_is_kept_alive(
    settings: ApiSettings, account: Account, model: object, db: Database, prompt: str, status: str, end: int
) -> None:
    """Spaces, and then the body. 200 was sent with the first of them, so the body of a failure tells its own `status`."""
    with open_app(settings.model_copy(update={"sync_keep_alive_s": 0.05, "sync_max_s": 0.4})) as app:
        client = client_of(app, account.keys["submit"])
        assert generate(client, size="7x7").status_code == 400
        answer = generate(client, prompt=prompt)
        assert (answer.status_code, answer.mimetype) == (200, "application/json")
        chunks = answer.iter_encoded()
        assert [next(chunks), next(chunks)] == [b" ", b" "]
        if status != "queued":
            draw(db, app.extensions["glmq"].storage, PICTURE)
        body = json.loads(b"".join(chunks))
        answer.close()
        [job] = client.get("/v1/jobs").get_json()["data"]
        assert job["status"] == status
        if end == 200:
            assert base64.b64decode(body["data"][0]["b64_json"]) == PICTURE
        else:
            assert (body["status"], "data" in body) == (end, False)
            assert body["job"].endswith(job["id"])
            assert body["error"]["message"] == body["detail"]


def test_a_short_wait_is_not_kept_alive(settings: ApiSettings, account: Account, model: object) -> None:
    """What ends before the first space has its true status."""
    with open_app(settings.model_copy(update={"sync_keep_alive_s": 30})) as app:
        parts: Parts = app.extensions["glmq"]
        with drawing(lambda: draw(parts.db, parts.storage, PICTURE)):
            assert generate(client_of(app, account.keys["submit"]), prompt="cursed").status_code == 500


def test_a_wait_looks_only_after_a_change(hasty: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """One change during a long wait costs one more look at the job."""
    looks = []
    monkeypatch.setattr(wait, "find_job", lambda *args: looks.append(args) or find_job(*args))
    answer = generate(hasty)
    assert answer.status_code == 504
    assert len(looks) < 8


def test_only_so_many_may_wait(client: FlaskClient, parts: Parts, account: Account, db: Database) -> None:
    """Who cannot wait is told so before anything is stored; the background is open to everybody."""
    num_places = parts.settings.api_max_waiting // 2
    for _ in range(num_places):
        parts.waiting.take_place(account.tenant_id)
    answer = generate(client)
    assert assert_problem(answer, 503, "engine_unavailable")["type"].endswith("#temporary-reduced-capacity")
    assert int(answer.headers["Retry-After"]) > 0
    assert num_jobs(db) == 0
    assert generate(client, background=True).status_code == 202
    for _ in range(num_places):
        parts.waiting.leave_place(account.tenant_id)


@pytest.mark.usefixtures("workers")
def test_places_are_given_back(settings: ApiSettings, account: Account, model: object) -> None:
    """By streams and held requests, whatever becomes of them."""
    with open_app(settings.model_copy(update={"api_max_waiting": 2})) as app:
        client = client_of(app, account.keys["submit"])
        for _ in range(3):
            generate(client, stream=True, size="64x64", seed=1).close()
            assert generate(client, size="7x7").status_code == 400
            assert generate(client, size="64x64", seed=1).status_code == 200


def test_the_end_of_the_process(settings: ApiSettings, account: Account, model: object, db: Database) -> None:
    """A server that stops asks its clients to come again; the numbered try finds the job that goes on."""
    with open_app(settings) as app:
        client, parts = client_of(app, account.keys["submit"]), app.extensions["glmq"]
        with drawing(lambda: num_jobs(db) and parts.waiting.close()):
            answer = generate(client, {"X-Stainless-Retry-Count": "0"})
        assert_problem(answer, 503, "engine_unavailable")
        assert "X-Should-Retry" not in answer.headers
        assert generate(client, {"X-Stainless-Retry-Count": "1"}).status_code == 503
        assert num_jobs(db) == 1


def test_a_try_that_was_lost_makes_no_second_job(hasty: FlaskClient, db: Database) -> None:
    """OpenAI's clients number their tries and send no key: the second one gets the job of the first."""
    assert generate(hasty, {"X-Stainless-Retry-Count": "0"}).status_code == 504
    assert generate(hasty, {"X-Stainless-Retry-Count": "1"}).headers["X-Should-Retry"] == "false"
    assert num_jobs(db) == 1
    # Another content, or a first try, is another request.
    generate(hasty, {"X-Stainless-Retry-Count": "1"}, seed=4)
    generate(hasty, {"X-Stainless-Retry-Count": "0"})
    generate(hasty)
    assert num_jobs(db) == 4


def test_two_that_are_alike_and_both_lost(client: FlaskClient, db: Database) -> None:
    """Each of two equal requests keeps a job, whichever of both."""
    jobs = [generate(client, {"X-Stainless-Retry-Count": number}, background=True).get_json()["id"] for number in "0011"]
    assert jobs[0] != jobs[1]
    assert set(jobs[:2]) == set(jobs[2:])
    assert num_jobs(db) == 2


def test_tries_of_strangers(client: FlaskClient, app: APIFlask, stranger: Account, db: Database) -> None:
    """Nobody gets another tenant's job."""
    generate(client, {"X-Stainless-Retry-Count": "0"}, background=True)
    generate(client_of(app, stranger.keys["submit"]), {"X-Stainless-Retry-Count": "1"}, background=True)
    assert num_jobs(db) == 2


def test_a_key_makes_one_job(client: FlaskClient, db: Database) -> None:
    """Concurrent requests with one Idempotency-Key share a job and its answer."""
    key = {"Idempotency-Key": "k", "X-Stainless-Retry-Count": "0"}
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(generate(client, key, n=2, size="64x64"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    parts: Parts = client.application.extensions["glmq"]
    wait_until(lambda: num_jobs(db) == 1)
    with drawing(lambda: draw(parts.db, parts.storage, PICTURE)):
        for thread in threads:
            thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.get_data() for answer in answers}) == 1
    assert sorted(answer.headers.get("Idempotency-Replayed", "") for answer in answers) == ["", "true", "true", "true"]
    assert num_jobs(db) == 1
    assert_problem(generate(client, key, n=3), 422, "idempotency_mismatch", "Idempotency-Key")


@pytest.mark.parametrize("name", ["image", "image[]"])
@pytest.mark.usefixtures("workers")
def test_edit_with_files(client: FlaskClient, name: str) -> None:
    """One file or many, as the clients send them: the size is that of the first one."""
    files = [(name, (png(128, 96), "a.png")), (name, (png(64, 64, "blue"), "b.bin"))]
    answer = edit(client, [*files, ("prompt", "make it night"), ("n", "2"), ("stream", "false"), ("metadata[a]", "1")])
    body = answer.get_json()
    assert answer.status_code == 200, body
    assert (len(body["data"]), body["size"]) == (2, "96x128")
    job = client.get(f"/v1/jobs/{body['id']}").get_json()
    assert len(job["params"]["images"]) == 2
    assert job["metadata"] == {"a": "1"}
    assert body["usage"]["input_tokens_details"]["image_tokens"] == 12


@pytest.mark.usefixtures("workers")
def test_edit_streams(client: FlaskClient) -> None:
    """Events of an edit have names of their own."""
    data = edit(client, [("image", (png(), "a.png")), ("prompt", "night"), ("stream", "true"), ("partial_images", "1")]).get_data()
    assert {event["type"] for event in events_of(data)} == {"image_edit.partial_image", "image_edit.completed"}


@pytest.mark.usefixtures("workers")
def test_edit_by_json(client: FlaskClient) -> None:
    """References by data URL and by file id, in the order in which they were sent."""
    blue = "data:image/png;base64," + base64.b64encode(png(64, 64, "blue")).decode()
    first = edit(client, [("image", (png(128, 96), "a.png")), ("prompt", "night")]).get_json()
    file_id = client.get(f"/v1/jobs/{first['id']}").get_json()["params"]["images"][0]["file_id"]
    sent = {"prompt": "night", "images": [{"image_url": blue}, {"file_id": file_id}]}
    body = client.post(EDITS, json=sent).get_json()
    assert body["size"] == "64x64"
    job = client.get(f"/v1/jobs/{body['id']}").get_json()
    assert job["params"]["images"][1] == {"file_id": file_id}
    assert "base64" not in str(job)


@pytest.mark.parametrize(
    ("sent", "code", "param"),
    [
        ([("prompt", "p")], "invalid_request", "image"),
        ([("image", (png(), "a.png"))], "invalid_request", "prompt"),
        ([("image", (png(), "a.png")), ("mask", (png(), "m.png")), ("prompt", "p")], "unsupported_parameter", "mask"),
        ([("image", (png(), "a.png")), ("markup", (png(), "m.png")), ("prompt", "p")], "unsupported_parameter", "markup"),
        ([("image", (png(), "a.png")), ("svg[model]", "m"), ("prompt", "p")], "unsupported_parameter", "svg"),
        ([("image", (png(), "a.png")), ("picture", (png(), "m.png")), ("prompt", "p")], "invalid_request", "picture"),
        ([("image", "text"), ("prompt", "p")], "invalid_request", "image"),
        ([("image", (png(), "a.png")), ("prompt", "p"), ("n", "many")], "invalid_request", "n"),
        ([("image", (b"\x89PNG\r\n\x1a\n", "a.png")), ("prompt", "p")], "invalid_image", "image.0"),
        ([("image[]", (png(), "a.png"))] * 17 + [("prompt", "p")], "invalid_request", "images"),
    ],
)
def test_wrong_edits(refusing: FlaskClient, sent: list[tuple[str, Any]], code: str, param: str) -> None:
    """Each is refused by name, and leaves nothing behind."""
    assert_problem(edit(refusing, sent), 400, code, param)


@pytest.mark.parametrize(
    ("sent", "status", "code", "param"),
    [
        ({}, 400, "invalid_request", "images"),
        ({"images": [{"image_url": "https://inside.example/a.png"}]}, 400, "forbidden_address", "images.0.image_url"),
        ({"images": [{"file_id": "file-nobody"}]}, 400, "invalid_request", "images.0.file_id"),
        ({"images": [{}]}, 400, "invalid_request", "images.0"),
        ({"images": [{"image_url": "data:image/png;base64,AAAA"}]}, 415, "unsupported_media", "images.0.image_url"),
        ({"images": [{"image_url": "x"}], "mask": {"file_id": "f"}}, 400, "unsupported_parameter", "mask"),
    ],
)
def test_wrong_json_edits(refusing: FlaskClient, sent: dict[str, Any], status: int, code: str, param: str) -> None:
    """Errors name the reference as it was sent."""
    assert_problem(refusing.post(EDITS, json={"prompt": "p", **sent}), status, code, param)


@pytest.mark.parametrize(
    ("sent", "status", "code", "param"),
    [
        ({"prompt": None}, 400, "invalid_request", "prompt"),
        ({"prompt": "<|image|>"}, 422, "unprocessable_prompt", "prompt"),
        ({"model": "sd"}, 404, "model_not_found", "model"),
        ({"size": "4096x64"}, 400, "invalid_request", "size"),
        ({"background": "transparent"}, 400, "unsupported_parameter", "background"),
        ({"promt": "x"}, 400, "invalid_request", "promt"),
        ({"deadline": "2001-01-01T00:00:00Z"}, 400, "invalid_request", "deadline"),
        ({"webhook": "http://10.0.0.1/"}, 400, "forbidden_address", "webhook"),
    ],
)
def test_wrong_requests(refusing: FlaskClient, sent: dict[str, Any], status: int, code: str, param: str) -> None:
    """Each is refused by the name it was sent with, as problem and as OpenAI's error."""
    assert_problem(generate(refusing, **sent), status, code, param)


def test_errors_are_json_for_who_takes_only_json(refusing: FlaskClient) -> None:
    """OpenAI's clients accept `application/json` and nothing else."""
    assert generate(refusing, ONLY_JSON, n=0).mimetype == "application/json"
    assert generate(refusing, {"Accept": "application/json, */*"}, n=0).mimetype == "application/problem+json"


def test_scopes(app: APIFlask, account: Account, model: object) -> None:
    """A key that may only read draws nothing."""
    assert_problem(generate(client_of(app, account.keys["read"])), 403, "forbidden_scope")
    assert_problem(app.test_client().post(GENERATIONS, json={}), 401, "unauthorized")
