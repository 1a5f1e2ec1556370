"""What files a job's images have: sizes by channel, renditions, variants, and how long they are kept."""

from __future__ import annotations

import io
from typing import Any
from urllib.request import urlopen

import pytest
from flask.testing import FlaskClient
from PIL import Image

from services.api.presets import PRESETS, SIZES
from services.api.settings import ApiSettings
from shared.db import Database
from shared.lifecycle import claims, finish, work
from shared.rendition import Rendition
from shared.states import Stage
from shared.storage import Storage
from tests.integration.api.conftest import assert_problem, png
from tests.integration.api.test_jobs import assert_documented
from tests.ledger import finish_one_grid

WANTED = [
    {"name": "story", "size": "270x480", "format": "jpeg", "format_options": {"quality": 80, "max_bytes": 50_000}, "fit": "contain"},
    {"name": "plain"},
    {"name": "pin", "preset": "pinterest_pin", "format": "webp"},
]


def submit(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json={"prompt": "a fox", "seed": 1, **fields})
    assert answer.status_code == 202, answer.get_json()
    return dict(answer.get_json())


def download(url: str) -> bytes:
    with urlopen(url) as file:  # noqa: S310 - our own presigned URL
        return bytes(file.read())


def draw(db: Database, storage: Storage) -> claims.ClaimedImage:
    """Do a job's work, with all its renditions."""
    finish_one_grid(db)
    work.release(db, Stage.DECODER, 10)
    image = claims.claim_image(db, "w", 30)
    assert image is not None
    files = {}
    for name in ("", *(rendition.name for rendition in image.renditions)):
        files[name] = claims.StoredArtifact(f"t/{image.id}-{name}", "ab" * 32, 7)
        storage.put(files[name].storage_key, png(1024, 512), "image/png")
    finish.finish_image(db, image.id, image.attempt, files.pop(""), renditions=files)
    return image


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_size(preset: Any) -> None:
    """Which the published model can draw or be resized to."""
    assert all(32 <= side <= 2048 for side in SIZES[preset])


def test_renditions_are_asked_drawn_and_handed_out(client: FlaskClient, db: Database, settings: ApiSettings) -> None:
    """Their sizes and formats reach the worker, their files the customer; unfinished ones have no URL."""
    job = submit(client, size="96x64", renditions=WANTED)
    assert [rendition["url"] for rendition in job["outputs"][0]["renditions"]] == [None] * 3
    assert_documented(job)
    image = draw(db, Storage(settings))
    assert image.renditions == (
        Rendition("story", 480, 270, "jpeg", 80, 50_000, "contain"),
        Rendition("plain", 64, 96, "png"),
        Rendition("pin", 1500, 1000, "webp"),
    )
    job = client.get(f"/v1/jobs/{job['id']}").get_json()
    renditions = job["outputs"][0]["renditions"]
    assert [(one["name"], one["width"], one["height"], one["format"]) for one in renditions] == [
        ("story", 270, 480, "jpeg"),
        ("plain", 96, 64, "png"),
        ("pin", 1000, 1500, "webp"),
    ]
    assert download(renditions[0]["url"]) == png(1024, 512)
    assert_documented(job)
    location = client.get(f"/v1/jobs/{job['id']}/images/0?variant=pin&download=1").headers["Location"]
    assert f"{image.id}-pin" in location
    assert f"{job['id']}-0-pin.webp" in location


def test_a_thumbnail_of_every_image(client: FlaskClient, db: Database, settings: ApiSettings) -> None:
    """Made when it is asked for, of at most 256 pixels a side."""
    job = submit(client)
    draw(db, Storage(settings))
    for _ in range(2):
        location = client.get(f"/v1/jobs/{job['id']}/images/0?variant=thumb256").headers["Location"]
        with Image.open(io.BytesIO(download(location))) as image:
            assert (image.size, image.format) == ((128, 256), "WEBP")


def test_an_unknown_variant(client: FlaskClient, db: Database, settings: ApiSettings) -> None:
    """The answer names those that there are."""
    job = submit(client, renditions=[{"name": "web"}])
    draw(db, Storage(settings))
    body = assert_problem(client.get(f"/v1/jobs/{job['id']}/images/0?variant=big"), 404, "not_found", "variant")
    assert "web, thumb256" in body["detail"]


def test_jobs_with_other_files_share_a_layout_and_no_image(client: FlaskClient, db: Database, settings: ApiSettings) -> None:
    """A picture without the rendition is not the one that was asked."""
    first = submit(client)
    draw(db, Storage(settings))
    second = submit(client, renditions=[{"name": "web"}])
    assert second["outputs"][0]["id"] != first["outputs"][0]["id"]
    assert second["stage"] == "decoder"
    assert submit(client)["outputs"][0]["cached"]


def test_a_redecode_makes_other_files(client: FlaskClient, db: Database, settings: ApiSettings) -> None:
    """Of a finished layout; what is left out is as it was."""
    job = submit(client, format="webp", format_options={"max_bytes": 9000}, renditions=[{"name": "web", "size": "32x32"}])
    draw(db, Storage(settings))
    again = client.post(f"/v1/jobs/{job['id']}/redecode", json={"steps": 9}).get_json()
    for name in ("format_options", "renditions"):
        assert again["params"][name] == job["params"][name]
    other = client.post(f"/v1/jobs/{job['id']}/redecode", json={"size": "64x64", "renditions": [{"name": "x"}]}).get_json()
    assert other["params"]["renditions"][0] | {"size": "64x64", "name": "x"} == other["params"]["renditions"][0]


def test_pictures_that_expire(client: FlaskClient, db: Database, settings: ApiSettings) -> None:
    """The time is counted from the end of the job."""
    job = submit(client, expires_in=3600)
    assert (job["params"]["expires_in"], job["expires_at"]) == (3600, None)
    draw(db, Storage(settings))
    job = client.get(f"/v1/jobs/{job['id']}").get_json()
    assert job["expires_at"] > job["completed_at"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"preset": "myspace"}, "preset"),
        ({"preset": "square"}, "preset"),  # larger than this model draws
        ({"preset": "square", "size": "64x64"}, "preset"),
        ({"preset": "square", "width": 64, "height": 64}, "preset"),
        ({"format_options": {"max_bytes": 9000}}, "format_options.max_bytes"),
        ({"format": "jpeg", "format_options": {"max_bytes": 1}}, "format_options.max_bytes"),
        ({"format": "jpeg", "format_options": {"max_bytes": 10**22}}, "format_options.max_bytes"),
        ({"renditions": [{"name": "a"}, {"name": "a"}]}, "renditions"),
        ({"renditions": [{"name": "A"}]}, "renditions.0.name"),
        ({"renditions": [{"name": "../x"}]}, "renditions.0.name"),
        ({"renditions": [{"name": "thumb256"}]}, "renditions.0.name"),
        ({"renditions": [{"size": "1x1"}]}, "renditions.0.name"),
        ({"renditions": [{"name": "a", "size": "5000x1"}]}, "renditions.0.size"),
        ({"renditions": [{"name": "a", "size": "0x1"}]}, "renditions.0.size"),
        ({"renditions": [{"name": "a", "size": "1x1", "preset": "square"}]}, "renditions.0.size"),
        ({"renditions": [{"name": "a", "format_options": {"quality": 5}}]}, "renditions.0.format_options.quality"),
        ({"renditions": [{"name": "a", "fit": "squash"}]}, "renditions.0.fit"),
        ({"renditions": [{"name": f"a{i}"} for i in range(9)]}, "renditions"),
        ({"expires_in": 5}, "expires_in"),
        ({"expires_in": "3600"}, "expires_in"),
    ],
)
def test_wrong_files(refusing: FlaskClient, fields: dict[str, Any], param: str) -> None:
    """Each is refused with the field that holds it."""
    assert_problem(refusing.post("/v1/jobs", json={"prompt": "a fox", **fields}), 400, "invalid_request", param)
