"""OpenAI's response routes: jobs under another name, streams that can be gone on with, and nothing that is not a picture."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from services.api.parts import Parts
from shared.db import Database
from tests.integration.api.conftest import Account, assert_problem, client_of, count_rows, png
from tests.integration.api.openai import draw, drawing, events_of
from tests.integration.api.test_openai_files import upload
from tests.ledger import query

PICTURE = png(64, 64)
TOOL = {"type": "image_generation", "size": "64x64"}


@pytest.fixture
def workers(db: Database, parts: Parts) -> Iterator[None]:
    """Whatever is submitted is drawn at once."""
    with drawing(lambda: draw(parts.db, parts.storage, PICTURE, num_previews=3)):
        yield


def respond(client: FlaskClient, **sent: Any) -> Any:
    return client.post("/v1/responses", json={"input": "A cat", "tools": [TOOL], **sent})


@pytest.mark.usefixtures("workers")
def test_a_response_is_a_job(client: FlaskClient, db: Database) -> None:
    """Held until it is completed, with the picture in it; elsewhere it is a job."""
    answer = respond(client, model="gpt-5", metadata={"order": "1"}, tools=[{**TOOL, "quality": "low", "seed": 7}], service_tier="flex")
    body = answer.get_json()
    assert answer.status_code == 200, body
    assert (body["object"], body["status"], body["model"], body["metadata"]) == ("response", "completed", "gpt-5", {"order": "1"})
    [call] = body["output"]
    assert (call["type"], call["status"], call["size"]) == ("image_generation_call", "completed", "64x64")
    assert call["id"].startswith("ig_")
    assert base64.b64decode(call["result"]) == PICTURE
    assert body["tools"] == [{**TOOL, "quality": "low", "seed": 7}]
    assert body["usage"]["total_tokens"] == body["tool_usage"]["image_gen"]["total_tokens"] > 0
    job = client.get(f"/v1/jobs/{body['id'].replace('resp_', 'job_')}").get_json()
    assert (job["seed"], job["priority"], job["params"]["steps"]) == (7, "bulk", 2)
    assert client.get(f"/v1/responses/{body['id']}").get_json() == body
    assert count_rows(db)["job"] == 1


def test_in_the_background(client: FlaskClient, db: Database, parts: Parts) -> None:
    """Answered at once, then asked for."""
    body = respond(client, background=True).get_json()
    assert (body["status"], body["background"], body["output"][0]["result"]) == ("queued", True, None)
    assert int(client.get(f"/v1/responses/{body['id']}").headers["openai-poll-after-ms"]) >= 1000
    draw(db, parts.storage, PICTURE)
    answer = client.get(f"/v1/responses/{body['id']}")
    assert "openai-poll-after-ms" not in answer.headers
    done = answer.get_json()
    assert (done["status"], base64.b64decode(done["output"][0]["result"])) == ("completed", PICTURE)


def test_cancel_and_delete(client: FlaskClient, db: Database, parts: Parts) -> None:
    """A cancel is answered with the response, whatever it has become; a deleted one is not there, and nothing that was drawn for it."""
    body = respond(client, background=True).get_json()
    for _ in range(2):
        canceled = client.post(f"/v1/responses/{body['id']}/cancel")
        assert (canceled.status_code, canceled.get_json()["status"]) == (200, "cancelled")
    deleted = client.delete(f"/v1/responses/{body['id']}")
    assert deleted.get_json() == {"id": body["id"], "object": "response", "deleted": True}
    assert_problem(client.get(f"/v1/responses/{body['id']}"), 404, "not_found")
    assert_problem(client.post(f"/v1/responses/{body['id']}/cancel"), 404, "not_found")
    assert_problem(client.delete(f"/v1/responses/{body['id']}"), 404, "not_found")
    live = respond(client, background=True).get_json()
    client.delete(f"/v1/responses/{live['id']}")
    done = respond(client, background=True).get_json()
    draw(db, parts.storage, PICTURE)
    client.delete(f"/v1/responses/{done['id']}")
    assert query(db, "SELECT status, params FROM job ORDER BY created_at") == [("canceled", {}), ("canceled", {}), ("succeeded", {})]
    assert count_rows(db)["image"] == 0
    assert_problem(client.get(f"/v1/jobs/{done['id'].replace('resp_', 'job_')}"), 410, "gone")


@pytest.mark.usefixtures("workers")
def test_a_stream_can_be_gone_on_with(client: FlaskClient) -> None:
    """Every event has the same number in every stream, and a stream begins behind the number that it is told."""
    tool = {**TOOL, "partial_images": 3}
    first = events_of(respond(client, stream=True, background=True, tools=[tool]).get_data())
    numbers = [event["sequence_number"] for event in first]
    assert numbers == sorted(set(numbers))
    kinds = [event["type"].removeprefix("response.") for event in first]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert kinds[-3:] == ["image_generation_call.completed", "output_item.done", "completed"]
    assert "image_generation_call.partial_image" in kinds
    response = first[-1]["response"]
    assert base64.b64decode(response["output"][0]["result"]) == PICTURE
    for last in (-1, 0, numbers[3], numbers[-2], numbers[-1]):
        after = f"&starting_after={last}" if last >= 0 else ""
        again = events_of(client.get(f"/v1/responses/{response['id']}?stream=true{after}").get_data())
        assert {event["sequence_number"] for event in again} >= {number for number in numbers if number > last}
        assert all(event["sequence_number"] > last for event in again)


@pytest.mark.usefixtures("workers")
def test_failures(client: FlaskClient) -> None:
    """A failed response says so, in its stream too."""
    body = respond(client, input="doomed").get_json()
    assert (body["status"], body["error"]["code"]) == ("failed", "invalid_prompt")
    assert "too long" in body["error"]["message"]
    assert events_of(respond(client, input="doomed", stream=True).get_data())[-1]["type"] == "response.failed"


@pytest.mark.usefixtures("workers")
def test_references(client: FlaskClient) -> None:
    """Pictures in the message are reference images, in their order."""
    file_id = upload(client, png(128, 96), "a.png", purpose="vision").get_json()["id"]
    blue = "data:image/png;base64," + base64.b64encode(png(64, 64, "blue")).decode()
    content = [
        {"type": "input_text", "text": "A cat"},
        {"type": "input_image", "file_id": file_id},
        {"type": "input_image", "image_url": blue, "detail": "auto"},
    ]
    tool = {"type": "image_generation", "action": "edit"}
    body = respond(client, input=[{"role": "user", "content": content}], tools=[tool]).get_json()
    assert (body["output"][0]["size"], body["output"][0]["action"]) == ("96x128", "edit")
    assert body["usage"]["input_tokens"] == 27


def test_any_job_is_a_response(client: FlaskClient, db: Database, parts: Parts) -> None:
    """Made natively, streamed as a response and canceled as an image job: all see one end."""
    job = client.post("/v1/jobs", json={"prompt": "A cat", "size": "64x64", "n": 2}).get_json()
    name = f"/v1/responses/{job['id'].replace('job_', 'resp_')}"
    assert client.get(name).get_json()["status"] == "queued"
    assert client.get(f"/v1/responses/{job['id']}").get_json() == client.get(name).get_json()
    with drawing(lambda: draw(parts.db, parts.storage, PICTURE, num_previews=3)):
        events = events_of(client.get(f"{name}?stream=true").get_data())
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    assert len(events[-1]["response"]["output"]) == 2
    assert client.get(f"/v1/jobs/{job['id']}").get_json()["status"] == "succeeded"
    assert client.post(f"{name}/cancel").get_json()["status"] == "completed"


def test_strangers(client: FlaskClient, app: APIFlask, stranger: Account) -> None:
    """Another tenant's response is not there."""
    body = respond(client, background=True).get_json()
    other = client_of(app, stranger.keys["admin"])
    for answer in (
        other.get(f"/v1/responses/{body['id']}"),
        other.get(f"/v1/responses/{body['id']}?stream=true"),
        other.post(f"/v1/responses/{body['id']}/cancel"),
        other.delete(f"/v1/responses/{body['id']}"),
    ):
        assert_problem(answer, 404, "not_found")
    assert client.get(f"/v1/responses/{body['id']}").get_json()["status"] == "queued"


@pytest.mark.parametrize(
    ("sent", "status", "code", "param"),
    [
        ({"tools": []}, 400, "invalid_request", "tools"),
        ({"tools": [{"type": "web_search"}]}, 400, "unsupported_parameter", "tools.0"),
        ({"tools": [TOOL, TOOL]}, 400, "invalid_request", "tools"),
        ({"tools": [{**TOOL, "background": "transparent"}]}, 400, "unsupported_parameter", "tools.0.background"),
        ({"tools": [{**TOOL, "input_image_mask": {"file_id": "f"}}]}, 400, "unsupported_parameter", "tools.0.input_image_mask"),
        ({"tools": [{**TOOL, "size": "big"}]}, 400, "invalid_request", "tools.0.size"),
        ({"tools": [{**TOOL, "action": "edit"}]}, 400, "invalid_request", "tools.0.action"),
        ({"tools": [{**TOOL, "output_compression": 5}]}, 400, "invalid_request", "tools.0.output_compression"),
        ({"instructions": "be nice"}, 400, "unsupported_parameter", "instructions"),
        ({"previous_response_id": "resp_1"}, 400, "unsupported_parameter", "previous_response_id"),
        ({"store": False}, 400, "unsupported_parameter", "store"),
        ({"model": "llama"}, 404, "model_not_found", "model"),
        ({"input": ""}, 400, "invalid_request", "input"),
        ({"input": "a <|image|> b"}, 422, "unprocessable_prompt", "input"),
        ({"tools": [{**TOOL, "size": "1x1"}]}, 400, "invalid_request", "tools.0.size"),
        ({"input": []}, 400, "unsupported_parameter", "input"),
        ({"input": [{"role": "assistant", "content": "x"}]}, 400, "invalid_request", "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, 400, "invalid_request", "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}, {"type": "input_image", "file_id": "f"}]}]},
            400,
            "invalid_request",
            "input.0.content.1.file_id",
        ),
        ({"tool_choice": "none"}, 400, "invalid_request", "tool_choice"),
    ],
)
def test_what_is_no_picture(refusing: FlaskClient, sent: dict[str, Any], status: int, code: str, param: str) -> None:
    """Anything that glmq has not is refused, by name."""
    answer = respond(refusing, **sent)
    body = answer.get_json(force=True)
    assert (answer.status_code, body["code"]) == (status, code), body
    assert body["param"].startswith(param), body


def test_windows_are_lanes(client: FlaskClient) -> None:
    """Whoever has hours is served when there is room."""
    body = respond(client, background=True, background_options={"completion_window": "8h"}).get_json()
    job = client.get(f"/v1/jobs/{body['id'].replace('resp_', 'job_')}").get_json()
    assert (job["priority"], body["service_tier"], job["deadline"] is None) == ("bulk", "flex", False)
