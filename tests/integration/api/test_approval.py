"""Drafts over HTTP: asked for, shown, approved and rejected."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.request import urlopen

from flask.testing import FlaskClient

from services.api.settings import ApiSettings
from shared.db import Database
from shared.lifecycle import claims, drafts, finish, work
from shared.lifecycle.previews import add_preview, claim_preview, finish_draft_preview
from shared.states import Stage
from shared.storage import Storage
from tests.integration.api.conftest import MODEL, Account, assert_problem, finish_jobs, png
from tests.integration.api.test_jobs import assert_documented

DRAFT = tuple(range(256))


def hold_drafts(db: Database) -> None:
    work.release(db, Stage.AR, 10)
    while grid := claims.claim_grid(db, "w", 30):
        drafts.hold_grid(db, grid.id, grid.attempt, DRAFT)


def store(settings: ApiSettings, key: str) -> claims.StoredArtifact:
    Storage(settings).put(key, png(), "image/png")
    return claims.StoredArtifact(key, hashlib.sha256(png()).hexdigest(), len(png()))


def ask(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    return dict(client.post("/v1/jobs", json={"prompt": "a fox", "approve": True, **fields}).get_json())


def test_draft_is_shown_and_approved(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """The draft's picture has a URL that works; approval answers with the job, which then is drawn."""
    job = ask(client)
    hold_drafts(db)
    claim = claim_preview(db, "w", 30, MODEL.revision)
    assert claim is not None
    finish_draft_preview(db, claim, store(settings, "t/draft.png"), 128, 96)
    waiting = client.get(f"/v1/jobs/{job['id']}").get_json()
    assert_documented(waiting)
    assert (waiting["status"], waiting["progress"]["phase"]) == ("queued", "awaiting_approval")
    wait = datetime.fromisoformat(waiting["approval_deadline"]) - datetime.now(UTC)
    assert abs(wait - timedelta(seconds=settings.approval_s)) < timedelta(seconds=30)
    [preview] = waiting["outputs"][0]["previews"]
    assert {name: preview[name] for name in ("kind", "step", "height", "width")} == {
        "kind": "draft",
        "step": None,
        "height": 128,
        "width": 96,
    }
    with urlopen(preview["url"]) as file:  # noqa: S310 - our own store
        assert file.read() == png()

    approved = client.post(f"/v1/jobs/{job['id']}/approve")
    assert (approved.status_code, approved.get_json()["progress"]["phase"]) == (200, "grid")
    assert_documented(approved.get_json())
    assert_problem(client.post(f"/v1/jobs/{job['id']}/approve"), 409, "not_awaiting_approval")
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    assert client.get(f"/v1/jobs/{job['id']}").get_json()["status"] == "succeeded"
    assert_problem(client.post(f"/v1/jobs/{job['id']}/approve"), 409, "already_terminal")


def test_rejection_with_and_without_a_seed(client: FlaskClient, db: Database) -> None:
    """A rejection takes the seed it is given, or a random one that JavaScript can hold, with any form of an empty body."""
    job = ask(client, seed=1)
    path = f"/v1/jobs/{job['id']}/reject"
    hold_drafts(db)
    assert client.post(path, json={"layout_seed": 44}).get_json()["outputs"][0]["layout_seed"] == 44
    for call in (lambda: client.post(path), lambda: client.post(path, json={}), lambda: client.post(path, data=b"")):
        assert_problem(call(), 409, "not_awaiting_approval")
        hold_drafts(db)
        answer = call()
        assert answer.status_code == 200
        assert 0 <= answer.get_json()["params"]["layout_seed"] < 2**53
    hold_drafts(db)
    seed = client.get(f"/v1/jobs/{job['id']}").get_json()["params"]["layout_seed"]
    for body, param in (({"layout_seed": -1}, "layout_seed"), ({"seed": 1}, "seed"), ({"layout_seed": seed}, "layout_seed")):
        assert_problem(client.post(path, json=body), 400, "invalid_request", param)
    assert_problem(client.post(path, data=b"x"), 415, "unsupported_media")
    assert_problem(client.post(path, data=b"[", content_type="application/json"), 400, "invalid_request")


def test_pictures_between_steps_have_urls(client: FlaskClient, db: Database, settings: ApiSettings) -> None:
    """What an image looks like on its way is in the job, unless the job wants no previews."""
    ids = [client.post("/v1/jobs", json={"prompt": "a fox", "seed": 1, "previews": wanted}).get_json()["id"] for wanted in (True, False)]
    work.release(db, Stage.AR, 10)
    grid = claims.claim_grid(db, "w", 30)
    assert grid is not None
    finish.finish_grid(db, grid.id, grid.attempt, claims.StoredArtifact("t/grid", "ab" * 32, 100), 16)
    work.release(db, Stage.DECODER, 10)
    image = claims.claim_image(db, "w", 30)
    assert image is not None
    assert add_preview(db, image.id, image.attempt, store(settings, "t/x0.png"), 64, 48, 2)
    seen, unseen = (client.get(f"/v1/jobs/{job_id}").get_json() for job_id in ids)
    assert_documented(seen)
    [preview] = seen["outputs"][0]["previews"]
    assert (preview["kind"], preview["step"]) == ("x0", 2)
    with urlopen(preview["url"]) as file:  # noqa: S310 - our own store
        assert file.read() == png()
    assert unseen["outputs"][0]["previews"] == []
