"""What was drawn before is not drawn again, what a customer wants to see first waits for a word, and both end in the same pictures."""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import Any

import httpx
import psycopg
import pytest
from PIL import Image

from tests.stack import Stack, wait_until


def runs(stack: Stack, *jobs: dict[str, Any]) -> Counter[str]:
    """How often each stage really ran for these jobs, by the usage that winning attempts wrote down."""
    query = """
        SELECT usage.stage, count(DISTINCT usage.id) FROM usage
        JOIN image ON usage.work_id IN (image.id, image.grid_id) JOIN output ON output.image_id = image.id
        WHERE output.job_id = ANY(%s) GROUP BY usage.stage
    """
    with psycopg.connect(stack.environment["GLMQ_DATABASE_URL"]) as connection:
        return Counter(dict(connection.execute(query, ([job["id"] for job in jobs],)).fetchall()))


def opened(url: str) -> Image.Image:
    """The picture behind a presigned link."""
    return Image.open(io.BytesIO(httpx.get(url).raise_for_status().content))


def wait_for_phase(stack: Stack, job: dict[str, Any], phase: str) -> dict[str, Any]:
    """The job once it is in this phase."""
    return dict(wait_until(lambda: now if (now := stack.job(job["id"]))["progress"]["phase"] == phase else None, 60, 0.02))


def test_eight_images_of_one_layout_and_source_share_what_they_can(stack: Stack) -> None:
    """`same_layout` with n = 8: one grid, the source encoded once by the one decoder worker, eight pictures, all different."""
    request = {"prompt": "eight of a kind", "size": "64x64", "steps": 2, "n": 8, "same_layout": True}
    photo = io.BytesIO()
    Image.radial_gradient("L").resize((64, 64)).save(photo, "PNG")
    files = [("request", (None, json.dumps(request), "application/json")), ("image", ("photo.png", photo.getvalue()))]
    before = stack.log("decoder_worker").count("sources_encoded")
    answer = stack.client.post("/v1/jobs", files=files)
    assert answer.status_code == 202, answer.text

    job = stack.wait(answer.json())

    assert job["status"] == "succeeded", job["error"]
    assert len({output["sha256"] for output in job["outputs"]}) == 8
    assert runs(stack, job) == {"ar": 1, "decoder": 8}
    assert stack.log("decoder_worker").count("sources_encoded") == before + 1


def test_a_hundred_identical_jobs_cost_one(stack: Stack) -> None:
    """Submitted together, they share one AR run and one decoder run, and each has its result."""
    request = {"prompt": "the crowd's favourite", "size": "96x96", "steps": 6, "seed": 5}
    jobs = [stack.submit(**request) for _ in range(100)]

    done = [stack.wait(job) for job in jobs]

    assert {job["status"] for job in done} == {"succeeded"}
    assert len({job["outputs"][0]["sha256"] for job in done}) == 1
    assert stack.result(done[0]) == stack.result(done[-1])
    assert runs(stack, *done) == {"ar": 1, "decoder": 1}


def test_a_finished_picture_is_served_again_unless_asked_otherwise(stack: Stack) -> None:
    """`use` answers with the finished job at once; `refresh` and `off` draw it again, to the same bytes."""
    request = {"prompt": "seen before", "size": "64x96", "steps": 2, "seed": 3}
    first = stack.wait(stack.submit(**request))

    again = stack.submit(**request)
    assert again["status"] == "succeeded"
    assert again["outputs"][0]["cached"] is True
    assert again["usage"] == {"text_tokens": 0, "image_tokens": 0, "ar_tokens": 0, "decoder_steps": 0, "images": 0}
    drawn_again = [stack.wait(stack.submit(**request, cache=mode)) for mode in ("refresh", "off")]

    assert {job["outputs"][0]["sha256"] for job in [again, *drawn_again]} == {first["outputs"][0]["sha256"]}
    assert all(job["usage"]["decoder_steps"] == 2 for job in drawn_again)


def test_one_customer_s_pictures_are_never_another_s(stack: Stack) -> None:
    """The same request of another tenant is drawn anew."""
    request = {"prompt": "whose is it", "size": "64x64", "steps": 1, "seed": 8}
    stack.wait(stack.submit(**request))
    rival = stack.as_tenant("rival")
    other = rival.wait(rival.submit(**request))

    assert other["outputs"][0]["cached"] is False
    assert other["usage"]["decoder_steps"] == 1
    assert other["usage"]["ar_tokens"] > 0


def test_a_redecode_runs_no_ar_tokens(stack: Stack) -> None:
    """Other steps, noise, guidance, size and format on the layouts that are there."""
    first = stack.wait(stack.submit(prompt="once laid out", size="96x64", steps=2, n=2, seed=1))
    change = {"steps": 4, "seed": 99, "guidance_scale": 3.0, "size": "48x32", "format": "webp"}
    answer = stack.client.post(f"/v1/jobs/{first['id']}/redecode", json=change)
    assert answer.status_code == 202, answer.text

    job = stack.wait(answer.json())

    assert job["status"] == "succeeded", job["error"]
    assert (job["usage"]["ar_tokens"], job["usage"]["decoder_steps"]) == (0, 8)
    assert [output["layout_seed"] for output in job["outputs"]] == [output["layout_seed"] for output in first["outputs"]]
    picture = opened(job["outputs"][1]["url"])
    assert (picture.size, picture.format) == ((48, 32), "WEBP")


def test_approve_goes_on_from_the_draft(stack: Stack) -> None:
    """The job waits, queued, with its draft to be looked at; approved, it ends as it would have without the wait."""
    request = {"prompt": "look first", "size": "96x96", "steps": 3, "seed": 12}
    job = stack.submit(**request, approve=True)
    held = wait_for_phase(stack, job, "awaiting_approval")
    assert held["status"] == "queued"
    assert held["approval_deadline"] is not None
    shown = wait_until(lambda: stack.job(job["id"])["outputs"][0]["previews"])
    assert opened(shown[0]["url"]).size == (shown[0]["width"], shown[0]["height"])

    assert stack.client.post(f"/v1/jobs/{job['id']}/approve").status_code == 200
    done = stack.wait(job)

    assert done["status"] == "succeeded", done["error"]
    assert stack.client.post(f"/v1/jobs/{job['id']}/approve").status_code == 409
    plain = stack.wait(stack.submit(**request, cache="off"))
    assert done["outputs"][0]["sha256"] == plain["outputs"][0]["sha256"]
    with psycopg.connect(stack.environment["GLMQ_DATABASE_URL"]) as connection:
        query = "SELECT units FROM usage JOIN image ON usage.work_id = image.grid_id JOIN output ON output.image_id = image.id"
        units = connection.execute(f"{query} WHERE output.job_id = %s ORDER BY usage.id", (job["id"],)).fetchall()
    # The draft's 256 tokens once, and the grid's 9 once.
    assert sum(count for (count,) in units) == 256 + 9


def test_reject_makes_another_draft(stack: Stack) -> None:
    """With the seed that the customer names, the job ends as if it had been asked for so."""
    request = {"prompt": "not this one", "size": "64x64", "steps": 2, "seed": 21}
    job = stack.submit(**request, approve=True)
    first = wait_for_phase(stack, job, "awaiting_approval")

    assert stack.client.post(f"/v1/jobs/{job['id']}/reject", json={"layout_seed": 77}).status_code == 200
    second = wait_until(
        lambda: (
            now
            if (now := stack.job(job["id"]))["progress"]["phase"] == "awaiting_approval" and now["version"] > first["version"] + 1
            else None
        )
    )
    assert second["outputs"][0]["layout_seed"] == 77
    assert stack.client.post(f"/v1/jobs/{job['id']}/approve").status_code == 200
    done = stack.wait(job)

    plain = stack.wait(stack.submit(**request, layout_seed=77, cache="off"))
    assert done["outputs"][0]["sha256"] == plain["outputs"][0]["sha256"]


def test_previews_show_the_layout_and_the_picture_on_its_way(stack: Stack) -> None:
    """A draft and the unfinished picture can be looked at; the result is the one without previews."""
    request = {"prompt": "let me see", "size": "512x512", "steps": 24, "seed": 4}
    job = stack.wait(stack.submit(**request, previews=True))
    quiet = stack.wait(stack.submit(**request, previews=False, cache="off"))

    previews = job["outputs"][0]["previews"]
    assert {preview["kind"] for preview in previews} == {"draft", "x0"}
    for preview in previews:
        assert opened(preview["url"]).size == (preview["width"], preview["height"])
    assert quiet["outputs"][0]["previews"] == []
    assert quiet["outputs"][0]["sha256"] == job["outputs"][0]["sha256"]


@pytest.mark.parametrize("path", ["approve", "reject", "redecode"])
def test_a_stranger_s_job_is_not_there(stack: Stack, path: str) -> None:
    """Another tenant cannot approve, reject or redecode it."""
    job = stack.wait(stack.submit(prompt="mine", size="64x64", steps=1))
    stranger = stack.as_tenant("stranger")
    assert stranger.client.post(f"/v1/jobs/{job['id']}/{path}", json={}).status_code == 404
