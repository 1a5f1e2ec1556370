"""OpenAI's own clients, unmodified: Python in the current major and the one before, and Node, against a running stack."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from shared.webhooks import event_body, new_secret, sign
from tests.conformance.conftest import HERE, Outcome, install_python, run_script
from tests.conformance.proxy import losing_answers, overhearing
from tests.stack import Stack, wait_until

VERSIONS = {"openai 3": "3.57.0", "openai 2": "2.54.0"}
"""The current major and the one before. Node's is in node/package-lock.json: the newest that runs on Node 20."""


PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABgCAIAAAAip+O/AAAAZElEQVR42u3PQQ0AAAgEoNP+nfVvAzdoQE1+6wgICAgICAgICAgICAgICAgICA"
    "gICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIHAuIzgG/cr/TJwAAAABJRU5ErkJggg=="
)
"""A red PNG, 64 by 96."""


WEBHOOKS = [
    ("batch.completed", "bat_1", "BatchCompletedWebhookEvent"),
    ("batch.failed", "bat_2", "BatchFailedWebhookEvent"),
    ("batch.cancelled", "bat_3", "BatchCancelledWebhookEvent"),
    ("batch.expired", "bat_4", "BatchExpiredWebhookEvent"),
    ("response.completed", "resp_1", "ResponseCompletedWebhookEvent"),
    ("response.failed", "resp_2", "ResponseFailedWebhookEvent"),
    ("response.cancelled", "resp_3", "ResponseCancelledWebhookEvent"),
    ("response.incomplete", "resp_4", "ResponseIncompleteWebhookEvent"),
]
"""Type, id of what it is about, and the client's class for it."""


def webhook(kind: str, about_id: str) -> dict[str, Any]:
    """What a receiver gets, and the secret that it has; that these are sent at all is proved in integration/api/test_openai_webhooks.py."""
    now, secret = datetime.now(UTC), new_secret()
    body = event_body("evt_1", kind, now, 1, {"id": about_id, "object": kind.partition(".")[0]})
    seconds = int(now.timestamp())
    signed = {"webhook-id": "evt_1", "webhook-timestamp": str(seconds), "webhook-signature": sign([secret], "evt_1", seconds, body)}
    return {"body": body.decode(), "headers": signed, "secret": secret}


def prompts(stack: Stack, prompt: str) -> list[dict[str, Any]]:
    """The jobs that draw this prompt."""
    found = stack.client.get("/v1/jobs?limit=100").json()["data"]
    return [job for job in found if job["params"]["prompt"] == prompt]


def arrival(stack: Stack, prompt: str) -> Callable[[], object]:
    """Blocks until a job with this prompt is in the ledger."""
    return lambda: wait_until(lambda: prompts(stack, prompt))


@pytest.fixture(scope="module", params=list(VERSIONS))
def python_run(request: pytest.FixtureRequest, stack: Stack, hasty_url: str, lively_url: str, client_cache: Path) -> Run:
    """One run of all scenarios, with a tenant of its own so that its jobs can be counted."""
    python = install_python(client_cache, f"openai=={VERSIONS[request.param]}")
    own = stack.as_tenant(request.param.replace(" ", ""))
    port = urlsplit(stack.url).port or 0
    with (
        losing_answers(port, 1, arrival(own, "A lost sheep")) as first,
        losing_answers(port, 2, arrival(own, "A lost goat")) as second,
        overhearing(port, heard := bytearray()) as overheard,
    ):
        outcomes = run_script(
            [str(python), str(HERE / "openai_client.py")],
            own,
            PNG=PICTURE,
            HASTY_URL=hasty_url,
            LIVELY_URL=lively_url,
            LOSING_URL=first,
            LOSING_URL_2=second,
            OVERHEARD_URL=overheard,
            WEBHOOKS=json.dumps([webhook(kind, event_id) for kind, event_id, _ in WEBHOOKS]),
        )
    assert outcomes["version"].get()["version"] == VERSIONS[request.param]
    return own, outcomes, bytes(heard)


Run = tuple[Stack, dict[str, Outcome], bytes]
"""The stack as the client's tenant sees it, what the scenarios found, and what was sent in answer to the one that streams."""
ERRORS = {
    "size": ["BadRequestError", 400, "invalid_request", "size", "invalid_request_error", True],
    "transparent": ["BadRequestError", 400, "unsupported_parameter", "background", "invalid_request_error", True],
    "mask": ["BadRequestError", 400, "unsupported_parameter", "mask", "invalid_request_error", True],
    "model": ["NotFoundError", 404, "model_not_found", "model", "invalid_request_error", True],
    "key": ["AuthenticationError", 401, "unauthorized", None, "authentication_error", True],
    "file": ["NotFoundError", 404, "not_found", None, "invalid_request_error", True],
    "batch": ["NotFoundError", 404, "not_found", None, "invalid_request_error", True],
    "response": ["NotFoundError", 404, "not_found", None, "invalid_request_error", True],
    "prompt": ["UnprocessableEntityError", 422, "unprocessable_prompt", "prompt", "invalid_request_error", True],
}


def test_models(python_run: Run) -> None:
    """The loaded model is listed, and found by its names."""
    found = python_run[1]["models"].get()
    assert found["listed"] == [found["one"]] == [found["alias"]]


def test_generate(python_run: Run) -> None:
    """Pictures in base 64 with a usage that adds up."""
    found = python_run[1]["generate"].get()
    assert (found["pngs"], found["size"], found["quality"]) == ([True, True], "64x64", "low")
    usage = found["usage"]
    assert usage["output_tokens"] == 2 * (256 + 4)
    assert usage["input_tokens"] == usage["input_tokens_details"]["text_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert found["request_id"]


def test_every_parameter(python_run: Run) -> None:
    """What the client has is taken, and what `extra_body` adds reaches the job."""
    own, outcomes, _ = python_run
    found = outcomes["everything"].get()
    assert (found["b64"], found["format"], found["size"]) == (None, "webp", "96x64")
    assert httpx.get(found["url"]).content[8:12] == b"WEBP"
    [job] = [job for job in prompts(own, "A cat") if job["metadata"] == {"order": "1"}]
    assert (job["priority"], job["params"]["steps"], job["params"]["format_options"]["quality"]) == ("bulk", 2, 80)


def test_stream(python_run: Run) -> None:
    """Events of the client's own classes: pictures on the way, then the picture. Comments between them harm nobody."""
    found = python_run[1]["stream"].get()
    sent = python_run[2]
    assert sent.count(b": hb\n\n") >= 3
    assert b"\nid:" not in sent
    assert b"\nretry:" not in sent
    assert found["types"][-1] == "image_generation.completed"
    assert set(found["types"][:-1]) <= {"image_generation.partial_image"}
    assert len(found["types"]) <= 3
    assert found["classes"][-1] == "ImageGenCompletedEvent"
    assert found["pngs"] == [True]
    assert found["usage"]["output_tokens"] == 256 + 4


def test_the_background(python_run: Run) -> None:
    """A 202 is an answer, too."""
    found = python_run[1]["background"].get()
    assert (found["data"], found["end"]) == (None, "completed")
    assert found["id"].startswith("job_")


def test_edit(python_run: Run) -> None:
    """One file, and several; the size is the first one's, unless one is named."""
    found = python_run[1]["edit"].get()
    assert (found["one"][0], found["many"]) == (True, True)
    assert found["usage"]["input_tokens_details"]["image_tokens"] > 0
    assert python_run[1]["edit_stream"].get()["types"][-1] == "image_edit.completed"


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors(python_run: Run, name: str) -> None:
    """Each is the client's exception for it, with code and param."""
    assert python_run[1]["errors"].get()[name] == ERRORS[name]


def test_a_stream_that_fails(python_run: Run) -> None:
    """The client raises what the stream says."""
    assert python_run[1]["failing_stream"].get() == {"error": "APIError", "code": "job_canceled"}


def test_a_wait_that_is_too_long(python_run: Run) -> None:
    """504, and the client does not try again: one job."""
    own, outcomes, _ = python_run
    assert outcomes["hasty"].get()["error"][:3] == ["InternalServerError", 504, "deadline"]
    assert len(prompts(own, "A slow fish")) == 1


def test_a_wait_that_is_kept_alive(python_run: Run) -> None:
    """The client reads past its timeout, and past the spaces."""
    assert python_run[1]["kept_alive"].get() == {"png": True, "outlasted": True}


def test_a_client_that_gives_up(python_run: Run) -> None:
    """Its own second try finds the job of the first: one job, which goes on."""
    own, outcomes, _ = python_run
    outcomes["impatient"].get()
    [job] = prompts(own, "An impatient fish")
    assert own.wait(job, 120)["status"] == "succeeded"


@pytest.mark.parametrize(("scenario", "prompt", "found"), [("lost", "A lost sheep", "png"), ("lost_with_key", "A lost goat", "same")])
def test_answers_that_are_lost(python_run: Run, scenario: str, prompt: str, found: str) -> None:
    """A request cut off in its middle and repeated by the client's own logic makes one job."""
    own, outcomes, _ = python_run
    assert outcomes[scenario].get() == {found: True}
    assert len(prompts(own, prompt)) == 1


def test_a_stream_that_nobody_reads(python_run: Run) -> None:
    """The job does not need its reader."""
    own, outcomes, _ = python_run
    outcomes["walk_away"].get()
    [job] = prompts(own, "A deserted cat")
    assert own.wait(job, 60)["status"] == "succeeded"


def test_files(python_run: Run) -> None:
    """Uploaded, listed, read, used and deleted."""
    found = python_run[1]["files"].get()
    assert found == {"purpose": "batch", "read": '{"a": 1}\n', "listed": True, "name": "in.jsonl", "deleted": True, "edited": True}


def test_batches(python_run: Run) -> None:
    """From file to file; wrong lines by number; canceled."""
    found = python_run[1]["batches"].get()
    urls = found.pop("urls")
    assert all(httpx.get(url).content.startswith(b"\x89PNG") for url in urls)
    assert found == {
        "native": ["completed", 1, None],
        "status": "completed",
        "counts": {"completed": 3, "failed": 0, "total": 3},
        "metadata": {"order": "1"},
        "ids": ["c0", "c1", "c2"],
        "listed": True,
        "failed": "failed",
        "errors": [[4, "invalid_request"]] * 4 + [[5, "duplicate_custom_id"]],
        "canceled": "cancelled",
    }


def test_responses(python_run: Run) -> None:
    """In the background, canceled and deleted."""
    found = python_run[1]["responses"].get()
    assert found.pop("first") in ("queued", "in_progress")
    assert found == {
        "end": "completed",
        "type": "image_generation_call",
        "png": True,
        "usage": True,
        "metadata": {"order": "2"},
        "canceled": "cancelled",
        "deleted": 404,
    }


def test_streams_are_gone_on_with(python_run: Run) -> None:
    """Cut off and resumed, a stream has every event once."""
    found = python_run[1]["resume"].get()
    assert found["numbers"] == sorted(set(found["numbers"]))
    assert (found["last"], found["png"]) == ("response.completed", True)


def test_webhooks_are_unwrapped(python_run: Run) -> None:
    """The client verifies them, and knows each by its class."""
    assert python_run[1]["unwrap"].get()["events"] == [[name, kind, about_id, True] for kind, about_id, name in WEBHOOKS]


def test_asynchronous(python_run: Run) -> None:
    """Several requests of one process at once."""
    assert python_run[1]["asynchronous"].get() == {"pngs": [True] * 4}


@pytest.fixture(scope="module")
def node_run(stack: Stack, node_modules: Path) -> Run:
    """The same from Node."""
    own = stack.as_tenant("openainode")
    shutil.copy(HERE / "node" / "openai_client.mjs", node_modules)
    with losing_answers(urlsplit(stack.url).port or 0, 1, arrival(own, "A lost cow")) as losing:
        outcomes = run_script(
            ["node", "openai_client.mjs"],
            own,
            node_modules,
            PNG=PICTURE,
            LOSING_URL=losing,
        )
    return own, outcomes, b""


def test_node_generates(node_run: Run) -> None:
    """Pictures, usage and request id."""
    found = node_run[1]["generate"].get()
    assert (found["pngs"], found["size"], found["usage"]["output_tokens"]) == ([True, True], "64x64", 520)
    assert found["id"]


def test_node_streams(node_run: Run) -> None:
    """Another decoder of events than Python's, the same events."""
    found = node_run[1]["stream"].get()
    assert (found["types"][-1], found["png"]) == ("image_generation.completed", True)


def test_node_edits(node_run: Run) -> None:
    """One file, and several."""
    assert node_run[1]["edit"].get() == {"one": True, "many": True}


def test_node_errors(node_run: Run) -> None:
    """Each is the client's exception for it."""
    assert node_run[1]["errors"].get() == {name: ERRORS[name][:4] for name in ("size", "transparent", "model")}


def test_node_loses_an_answer(node_run: Run) -> None:
    """Its own second try makes no second job."""
    own, outcomes, _ = node_run
    assert outcomes["lost"].get() == {"png": True}
    assert len(prompts(own, "A lost cow")) == 1


def test_node_batches(node_run: Run) -> None:
    """From file to file."""
    assert node_run[1]["batches"].get() == {"status": "completed", "id": "c"}


def test_node_responses(node_run: Run) -> None:
    """In the background, then streamed from where it was left."""
    found = node_run[1]["responses"].get()
    assert (found["png"], found["last"], found["first"]) == (True, "response.completed", "response.output_item.added")
