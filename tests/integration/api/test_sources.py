"""Reference images: by upload, URL, file id and earlier result, normalised once and stored once."""

from __future__ import annotations

import hashlib
import io
import json
import socket
from collections.abc import Callable, Iterator

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from PIL import Image
from sqlalchemy import text

from services.api.parts import Parts
from services.api.settings import ApiSettings
from shared.db import Database
from shared.storage import Storage
from shared.sweep import sweep
from tests.fakes import ScriptedServer
from tests.integration.api.conftest import Account, assert_problem, client_of, count_rows, finish_jobs, png, post_multipart
from tests.ledger import query

Serve = Callable[[bytes], ScriptedServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers on loopback (which the operator allows here) that answer with these bytes."""
    servers: list[ScriptedServer] = []

    def start(answer: bytes) -> ScriptedServer:
        def send(connection: socket.socket, request: str) -> None:
            connection.sendall(answer)

        servers.append(ScriptedServer(send))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def file_ids(job: dict[str, dict[str, list[dict[str, str]]]]) -> list[str]:
    return [image["file_id"] for image in job["params"]["images"]]


def test_every_kind_of_source_in_order(client: FlaskClient, db: Database, settings: ApiSettings, account: Account, serve: Serve) -> None:
    """URL, earlier result, file id and uploads keep their order; the bytes in S3 are RGB PNG under a key made here."""
    first = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()
    finish_jobs(db, Storage(settings), account.tenant_id, png(64, 64, "blue"))
    uploaded = post_multipart(client, {"request": json.dumps({"prompt": "a fox"}), "image": (png(64, 96, "green"), "../../etc/x.png")})
    assert uploaded.status_code == 202, uploaded.get_json()
    [green] = file_ids(uploaded.get_json())

    request = {
        "prompt": "a fox",
        "size": "auto",
        "images": [
            {"url": serve(ok(png(100, 200, "red"))).url + "/red.png?token=secret"},
            {"job_id": first["id"], "index": 0},
            {"file_id": green},
        ],
    }
    answer = post_multipart(client, {"request": json.dumps(request), "image[]": [(png(64, 64, "black"), "a"), (png(64, 64, "white"), "b")]})
    job = answer.get_json()
    assert answer.status_code == 202, job
    keys = {
        row[0]: (row[1], row[2]) for row in db.run(lambda session: session.execute(text("SELECT id, storage_key, sha256 FROM file")).all())
    }
    colours = []
    for file_id in file_ids(job):
        key, sha256 = keys[file_id]
        data = Storage(settings).get(key)
        assert key.startswith(f"t/{account.tenant_id}/sources/{sha256}/")
        assert hashlib.sha256(data).hexdigest() == sha256
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            assert image.width % 32 == image.height % 32 == 0
            colours.append(image.getpixel((5, 5)))
    assert colours == [(255, 0, 0), (0, 0, 255), (0, 128, 0), (0, 0, 0), (255, 255, 255)]
    # "auto" is the size of the first source, as both stages see it.
    assert job["params"]["size"] == "192x96"
    assert job["progress"]["phase"] == "grid"


def test_same_picture_is_stored_once(client: FlaskClient, db: Database) -> None:
    """A picture that was sent before keeps its id; only whom it belongs to matters, not its name."""
    parts = {"request": json.dumps({"prompt": "a fox", "seed": 1}), "image": (png(), "a.png")}
    jobs = [post_multipart(client, parts).get_json() for _ in range(2)]
    assert file_ids(jobs[0]) == file_ids(jobs[1])
    assert count_rows(db)["file"] == 1


def test_same_picture_outlives_the_deletion_of_another_job(client: FlaskClient, db: Database, parts: Parts) -> None:
    """A picture that is sent again while the one of a deleted job is still to be removed from the store stays there."""
    sent = {"request": json.dumps({"prompt": "a fox", "seed": 1}), "image": (png(), "a.png")}
    first = post_multipart(client, sent).get_json()
    assert client.delete(f"/v1/jobs/{first['id']}").status_code == 200
    assert post_multipart(client, sent).status_code == 202
    sweep(db, parts.storage)
    ((key,),) = query(db, "SELECT storage_key FROM file")
    assert parts.storage.get(key)


def test_foreign_sources_are_unknown(
    client: FlaskClient, app: APIFlask, stranger: Account, db: Database, settings: ApiSettings, account: Account
) -> None:
    """Another tenant's file or result cannot be used, nor told from one that never was; an unfinished image neither."""
    job = post_multipart(client, {"request": json.dumps({"prompt": "a fox"}), "image": (png(), "a.png")}).get_json()
    unfinished = client.post("/v1/jobs", json={"prompt": "a fox", "images": [{"job_id": job["id"]}]})
    assert_problem(unfinished, 400, "invalid_request", "images.0")
    finish_jobs(db, Storage(settings), account.tenant_id, png(64, 64))
    other = client_of(app, stranger.keys["admin"])
    before = count_rows(db)
    for foreign, unknown in (
        ({"file_id": file_ids(job)[0]}, {"file_id": "file_" + "0" * 26}),
        ({"job_id": job["id"]}, {"job_id": "job_" + "0" * 26}),
    ):
        details = [
            assert_problem(other.post("/v1/jobs", json={"prompt": "a fox", "images": [image]}), 400, "invalid_request", "images.0")[
                "detail"
            ]
            for image in (foreign, unknown)
        ]
        assert details[0] == details[1]
    assert count_rows(db) == before


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 422, "input_fetch_failed"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n", 400, "forbidden_address"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://inside.example/\r\n\r\n", 400, "forbidden_address"),
        (b"nonsense", 422, "input_fetch_failed"),
        (ok(b"<html>"), 415, "unsupported_media"),
        (ok(png()[:100]), 400, "invalid_image"),
    ],
)
def test_bad_urls_are_problems(client: FlaskClient, db: Database, serve: Serve, answer: bytes, status: int, code: str) -> None:
    """Whatever a foreign server answers, the client hears which image it was, and nothing is stored, good images included."""
    images = [{"url": serve(ok(png())).url}, {"url": serve(answer).url}]
    body = assert_problem(client.post("/v1/jobs", json={"prompt": "a fox", "images": images}), status, code, "images.1.url")
    assert body["errors"][0]["pointer"] == "#/images/1/url"
    assert not any(count_rows(db).values())


def test_all_images_together_have_one_deadline(client: FlaskClient, db: Database) -> None:
    """Servers that never answer cost the whole budget once, not once each."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        body = assert_problem(
            client.post("/v1/jobs", json={"prompt": "a fox", "images": [{"url": url}] * 5}), 422, "input_fetch_failed", "images.0.url"
        )
    assert body["retryable"]
    assert len(body["errors"]) == 5
    assert not any(count_rows(db).values())


def test_source_of_an_older_checkpoint_is_fitted_again(client: FlaskClient, db: Database, settings: ApiSettings) -> None:
    """A stored source outside the present checkpoint's limits is normalised anew."""
    job = post_multipart(client, {"request": json.dumps({"prompt": "a fox"}), "image": (png(96, 96), "a.png")}).get_json()
    [file_id] = file_ids(job)
    # As if it had been stored for a checkpoint that takes larger sources.
    key = db.run(lambda session: session.scalar(text("SELECT storage_key FROM file")))
    Storage(settings).put(str(key), png(1024, 768), "image/png")
    db.run(lambda session: session.execute(text("UPDATE file SET height_px = 1024, width_px = 768")))
    again = client.post("/v1/jobs", json={"prompt": "a fox", "images": [{"file_id": file_id}]}).get_json()
    assert file_ids(again) != [file_id]
    sizes = db.run(lambda session: {tuple(row) for row in session.execute(text("SELECT height_px, width_px FROM file"))})
    assert sizes == {(1024, 768), (512, 384)}
