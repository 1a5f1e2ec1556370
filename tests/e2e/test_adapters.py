"""Adapters and fast drawing, asked for over HTTP from workers that have a folder of adapters."""

from __future__ import annotations

from tests.stack import Stack

REQUEST = {"prompt": 'a "B" in ink', "size": "96x64", "steps": 12, "seed": 6}


def sha256(stack: Stack, **changes: object) -> str:
    """Hash of the picture that the request gives with these changes."""
    job = stack.wait(stack.submit(**{**REQUEST, **changes}))
    assert job["status"] == "succeeded", job["error"]
    return str(job["outputs"][0]["sha256"])


def test_an_adapter_changes_the_picture_as_strongly_as_asked(stack: Stack) -> None:
    """By name and scale; without it the picture is the bare model's, also in between."""
    bare = sha256(stack)
    full, half = (sha256(stack, lora=[{"name": "ink", "scale": scale}]) for scale in (1.0, 0.5))

    assert len({bare, full, half}) == 3
    assert sha256(stack, cache="off") == bare
    assert sha256(stack, cache="off", lora=[{"name": "ink"}]) == full


def test_an_unknown_adapter_is_refused_by_name(stack: Stack) -> None:
    """The answer names the field, and what there is."""
    answer = stack.client.post("/v1/jobs", json={**REQUEST, "lora": [{"name": "oil"}]})

    assert answer.status_code == 400
    assert answer.json()["param"] == "lora.0.name"
    assert "ink" in answer.json()["detail"]
    assert "ink" in stack.client.get("/v1/models").json()["data"][0]["loras"]


def test_a_broken_adapter_fails_its_job_and_no_other(stack: Stack) -> None:
    """At once, with the reason; the operator was warned at the start."""
    job = stack.wait(stack.submit(**REQUEST, lora=[{"name": "torn"}]))

    assert (job["status"], job["error"]["code"]) == ("failed", "lora_broken")
    assert sha256(stack, cache="off")
    assert "lora_broken" in stack.log("ar_worker")


def test_fast_drawing_is_another_picture_and_always_the_same_one(stack: Stack) -> None:
    """`quality: fast` skips work; beside neighbours and alone it gives the same bytes."""
    exact, fast = sha256(stack), sha256(stack, quality="fast")
    neighbours = [stack.submit(**{**REQUEST, "seed": seed}) for seed in range(50, 53)]

    assert fast != exact
    assert sha256(stack, quality="fast", cache="off") == fast
    assert {stack.wait(job)["status"] for job in neighbours} == {"succeeded"}
