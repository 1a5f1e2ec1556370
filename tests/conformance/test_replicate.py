"""Replicate's unmodified clients against a running stack; and clients of event streams, which any customer may have."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.conformance.conftest import HERE, Outcome, install_python, run_script
from tests.stack import Stack, wait_until

PYTHON_CLIENTS = ("replicate==1.0.7", "openai==3.57.0")
"""Together in one environment: one of them goes on with what the other one began."""
SSE_CLIENTS = ("httpx>=0.28,<1", "httpx-sse==0.4.3", "sseclient-py==1.9.0", "requests>=2.32,<3")
SCENARIOS = "run,run_slower_than_the_wait,run_by_version,create_and_poll,cancel,stream,files,secret,listing"


def _png() -> str:
    out = io.BytesIO()
    Image.new("RGB", (96, 96), "red").save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


@pytest.fixture(scope="module")
def own(stack: Stack) -> Stack:
    """The stack as a tenant of this file sees it."""
    return stack.as_tenant("replicate")


@pytest.fixture(scope="module")
def ref(own: Stack) -> str:
    """The loaded model as clients name it."""
    name = own.client.get("/v1/models").json()["data"][0]["id"].rpartition("/")
    return f"{name[0].rpartition('/')[2] or 'glmq'}/{name[2]}"


@pytest.fixture(scope="module")
def python_client(client_cache: Path) -> Path:
    return install_python(client_cache, *PYTHON_CLIENTS)


@pytest.fixture(scope="module")
def by_python(own: Stack, python_client: Path, ref: str) -> dict[str, Outcome]:
    """What Python's client found."""
    scenarios = SCENARIOS + ",failure,asynchronous,wrong_key,unknown_model,others"
    native = own.submit(prompt="A native job", size="64x64", steps=2)
    command = [str(python_client), str(HERE / "replicate_client.py")]
    return run_script(command, own, REF=ref, SCENARIOS=scenarios, PNG=_png(), JOB_ID=native["id"])


@pytest.fixture(scope="module")
def by_node(own: Stack, node_modules: Path, ref: str, by_python: dict[str, Outcome]) -> dict[str, Outcome]:
    """What Node's client found, after Python's."""
    script = node_modules / "replicate_client.mjs"
    script.write_bytes((HERE / "node" / script.name).read_bytes())
    return run_script(["node", str(script)], own, node_modules, REF=ref, SCENARIOS=SCENARIOS + ",wrong_input", PNG=_png())


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver of webhooks: its URL, and what it got."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append({"headers": {name.lower(): value for name, value in self.headers.items()}, "body": body.decode()})
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got
    server.shutdown()
    server.server_close()


def is_picture(url: str) -> bool:
    return httpx.get(url, timeout=30).content.startswith(b"\x89PNG")


@pytest.mark.parametrize("client", ["by_python", "by_node"])
def test_run_returns_the_images(client: str, request: pytest.FixtureRequest) -> None:
    """By model or by version, waiting or polling; a job that is slower than the wait returns them too, not nothing."""
    found = request.getfixturevalue(client)
    assert [is_picture(url) for url in found["run"].get()["output"]] == [True, True]
    slow = found["run_slower_than_the_wait"].get()
    assert slow["output"] is not None
    assert [is_picture(url) for url in slow["output"]] == [True]
    assert [is_picture(url) for url in found["run_by_version"].get()["output"]] == [True]


def test_node_polls_on_after_starting(by_node: dict[str, Outcome]) -> None:
    """The answer to the create was `starting`: what the client takes for under way."""
    assert by_node["run_slower_than_the_wait"].get()["seen"][0] == "starting"


@pytest.mark.parametrize("client", ["by_python", "by_node"])
def test_create_poll_and_progress(client: str, request: pytest.FixtureRequest) -> None:
    """A prediction is followed to its end, and its logs hold a progress that the client can read."""
    found = request.getfixturevalue(client)["create_and_poll"].get()
    assert (found["first"], found["status"], len(found["output"])) == ("starting", "succeeded", 1)
    progress = found.get("progress") or {"percentage": found["percentage"]}
    assert progress["percentage"] == 1


@pytest.mark.parametrize("client", ["by_python", "by_node"])
def test_cancel(client: str, request: pytest.FixtureRequest) -> None:
    """Canceled at once; once more is no error."""
    found = request.getfixturevalue(client)["cancel"].get()
    assert (found["once"], found["twice"]) == ("canceled", "canceled")


@pytest.mark.parametrize("client", ["by_python", "by_node"])
def test_stream(client: str, request: pytest.FixtureRequest) -> None:
    """Logs on the way, the image, and done; the client drops no event, since each has an id. Node's client sends no key here."""
    events = request.getfixturevalue(client)["stream"].get()["events"]
    kinds = [kind for kind, _, _ in events]
    assert kinds[-2:] == ["output", "done"]
    assert kinds[0] == "logs"
    assert all(event_id for _, _, event_id in events)
    assert is_picture(events[-2][1])


def test_files_and_listing(by_python: dict[str, Outcome], by_node: dict[str, Outcome]) -> None:
    """Files are uploaded or sent as data URLs; one client lists what the other made."""
    assert by_python["files"].get() == {"statuses": ["succeeded", "succeeded"]}
    assert [is_picture(url) for url in by_node["files"].get()["output"]] == [True]
    assert by_python["create_and_poll"].get()["id"] in by_node["listing"].get()["ids"]
    known = {"starting", "processing", "succeeded", "failed", "canceled"}
    assert set(by_python["listing"].get()["statuses"]) <= known


def test_errors_are_in_our_words(by_python: dict[str, Outcome], by_node: dict[str, Outcome]) -> None:
    """Status, title and detail arrive."""
    failure = by_python["failure"].get()
    assert failure["status"] == 400
    assert failure["detail"].startswith("input.prompt:")
    assert by_python["wrong_key"].get() == {"status": 401}
    assert by_python["unknown_model"].get()["status"] == 404
    wrong = by_node["wrong_input"].get()
    assert wrong["status"] == 400
    assert "input.num_outputs" in wrong["message"]


def test_a_job_of_one_client_is_anothers(own: Stack, by_python: dict[str, Outcome]) -> None:
    """Made here, seen there: as prediction, as job, and in the job's stream."""
    assert by_python["others"].get()["status"] == "succeeded"
    assert by_python["asynchronous"].get()["output"]
    made = by_python["create_and_poll"].get()["id"]
    assert own.job(made)["status"] == "succeeded"
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "0"}
    assert "event: job.succeeded" in own.client.get(f"/v1/jobs/{made}/events", headers=headers).text


def test_all_see_one_end(own: Stack, python_client: Path, ref: str) -> None:
    """Made with one client, followed and canceled with the other one; each names the same end in its own words."""
    found = run_script([str(python_client), str(HERE / "across_client.py")], own, REF=ref)
    ends = {"prediction": "canceled", "response": "cancelled"}
    first, second, third = (found[name].get() for name in ("made_by_replicate", "made_by_openai", "drawn"))
    jobs = [own.job(values.pop("id")) for values in (first, second, third)]
    assert [job["status"] for job in jobs] == ["canceled", "canceled", "succeeded"]
    assert first == {"first": "response.created", "last": "response.incomplete", "streamed": "cancelled", **ends}
    assert second == {"canceled": "cancelled", "waited": "canceled", **ends}
    done = {"prediction": "succeeded", "response": "completed"}
    assert third == {"last": "response.completed", "streamed": "completed", "has_output": True, **done}
    for job in jobs:
        kinds = [event["type"] for event in own.client.get(f"/v1/jobs/{job['id']}/events").json()["data"]]
        assert [kind for kind in kinds if kind.split(".")[1] in ("succeeded", "failed", "canceled", "expired")] == [f"job.{job['status']}"]


def test_webhooks_are_validated(
    own: Stack,
    ref: str,
    by_python: dict[str, Outcome],
    python_client: Path,
    node_modules: Path,
    receiver: tuple[str, list[dict[str, Any]]],
) -> None:
    """A delivery is a prediction that both clients validate with the secret that they read; a forged one they refuse."""
    url, got = receiver
    body = {"input": {"prompt": "A hook", "seed": 21, "size": "64x64", "num_inference_steps": 2}, "webhook": url}
    made = own.client.post(f"/v1/models/{ref}/predictions", json={**body, "webhook_events_filter": ["completed"]}).json()
    wait_until(lambda: got, 60)
    given = {"DELIVERY": json.dumps(got[0]), "SECRET": by_python["secret"].get()["key"], "REF": ref, "SCENARIOS": "validate"}
    command = [str(python_client), str(HERE / "replicate_client.py")]
    seen = run_script(command, own, PNG=_png(), **given)["validate"].get()["prediction"]
    assert (seen["id"], seen["status"], seen["input"]["prompt"]) == (made["id"], "succeeded", "A hook")
    script = node_modules / "replicate_client.mjs"
    script.write_bytes((HERE / "node" / script.name).read_bytes())
    found = run_script(["node", str(script)], own, node_modules, PNG=_png(), **given)["validate"].get()
    assert found == {"valid": True, "forged": False}


def test_too_many_requests(stack: Stack, ref: str, python_client: Path, node_modules: Path) -> None:
    """
    Over the limit Python's client fails at once and Node's knocks six times; neither makes a job.

    Every refusal says in whole seconds when to come again, which is all that Python's client understands.
    """
    hurried = stack.as_tenant("hurried")
    [tenant] = stack.client.get("/v1/tenants", params={"name": "hurried"}).json()["data"]
    changed = stack.client.patch(f"/v1/tenants/{tenant['id']}", json={"limits": {"requests_per_minute": 1}})
    assert changed.status_code == 200, changed.text
    given = {"REF": ref, "SCENARIOS": "too_many", "PNG": ""}
    found = run_script([str(python_client), str(HERE / "replicate_client.py")], hurried, **given)["too_many"].get()
    assert (found["status"], found["made"]) == (429, 1)
    assert found["seconds"] < 3
    script = node_modules / "replicate_client.mjs"
    script.write_bytes((HERE / "node" / script.name).read_bytes())
    found = run_script(["node", str(script)], hurried, node_modules, **given)["too_many"].get()
    assert (found["status"], found["made"]) == (429, 1)
    assert len(found["tries"]) == 6
    assert all(status == 429 and retry_after.isdigit() for status, retry_after in found["tries"])


def test_event_sources_stop_by_themselves(own: Stack, node_modules: Path) -> None:
    """An EventSource hears the snapshot and every event, comes back after the end with its id, is told 204, and stops."""
    job = own.submit(prompt="A source", size="256x256", steps=60, seed=31)
    script = node_modules / "eventsource_client.mjs"
    script.write_bytes((HERE / "node" / script.name).read_bytes())
    found = run_script(["node", str(script)], own, node_modules, JOB_ID=job["id"])["eventsource"].get()
    assert found["events"][0][0] == "job.snapshot"
    assert found["events"][-1][::2] == ["job.succeeded", "succeeded"]
    assert [status for status, _ in found["statuses"]] == [200, 204]
    assert found["statuses"][1][1] == found["events"][-1][1]


def test_python_event_clients(own: Stack, client_cache: Path) -> None:
    """httpx-sse and sseclient read the stream, heartbeats and all, and resume from the last id without a gap."""
    python = install_python(client_cache, *SSE_CLIENTS)
    found = run_script([str(python), str(HERE / "sse_client.py")], own)
    first, second = found["httpx_sse"].get(), found["sseclient"].get()
    assert first["kinds"][0] == second["kinds"][0] == "job.snapshot"
    assert first["kinds"][-1] == second["kinds"][-1] == "job.succeeded"
    assert first["ids"] == sorted(first["ids"], key=int)
    listed = own.client.get(f"/v1/jobs/{first['job']}/events?limit=100").json()["data"]
    seqs = [str(event["seq"]) for event in listed]
    # The second client begins after the first event that has a number.
    assert second["ids"] == seqs[seqs.index(second["after"]) + 1 :]
