"""OpenAI's file routes: what is uploaded comes back byte by byte, to its owner alone."""

from __future__ import annotations

import io
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from services.api.parts import Parts
from shared.db import Database
from shared.lifecycle.files import delete_expired_files
from tests.integration.api.conftest import Account, assert_problem, client_of, count_rows, png
from tests.ledger import execute, query


def upload(client: FlaskClient, data: bytes, name: str = "a.jsonl", **fields: str) -> Any:
    """POST a file as OpenAI's clients do."""
    values = {"purpose": "user_data", **fields}
    boundary, body = encode_multipart({**values, "file": FileStorage(io.BytesIO(data), name)})
    return client.post("/v1/files", data=body, content_type=f"multipart/form-data; boundary={boundary}")


@pytest.mark.parametrize("data", [b"", b"\x00\xff\r\n" * 1000, '{"a": "é"}\n'.encode()])
def test_a_file_comes_back_as_it_was(client: FlaskClient, data: bytes) -> None:
    """Uploaded, described, read and listed; then deleted, and gone."""
    file = upload(client, data, "dir/na\u00efve name.jsonl", purpose="batch").get_json()
    assert file["id"].startswith("file-")
    assert (file["object"], file["bytes"], file["filename"]) == ("file", len(data), "na_ve name.jsonl")
    assert (file["purpose"], file["status"], file["expires_at"]) == ("batch", "processed", None)
    assert client.get(f"/v1/files/{file['id']}").get_json() == file
    content = client.get(f"/v1/files/{file['id']}/content")
    assert content.get_data() == data
    assert content.headers["Content-Disposition"].startswith("attachment")
    assert client.get("/v1/files?purpose=batch").get_json()["data"] == [file]
    assert client.get("/v1/files?purpose=vision").get_json()["data"] == []
    assert client.delete(f"/v1/files/{file['id']}").get_json() == {"id": file["id"], "object": "file", "deleted": True}
    for answer in (client.get(f"/v1/files/{file['id']}"), client.get(f"/v1/files/{file['id']}/content")):
        assert_problem(answer, 404, "not_found")
    assert_problem(client.delete(f"/v1/files/{file['id']}"), 404, "not_found")


def test_pages(client: FlaskClient) -> None:
    """By creation, either way, from where the last page ended even if that file is deleted meanwhile."""
    ids = [upload(client, b"x").get_json()["id"] for _ in range(3)]
    page = client.get("/v1/files?limit=2&order=asc").get_json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[:2], True)
    client.delete(f"/v1/files/{ids[1]}")
    page = client.get(f"/v1/files?after={ids[1]}&order=asc").get_json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[2:], False)
    assert [file["id"] for file in client.get("/v1/files").get_json()["data"]] == [ids[2], ids[0]]


def test_files_expire(client: FlaskClient, db: Database) -> None:
    """After its time a file is not there for its owner, and its object is to be removed."""
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = upload(client, b"x", **fields).get_json()
    assert file["expires_at"] - file["created_at"] == 3600
    execute(db, "UPDATE file SET expires_at = now()")
    assert_problem(client.get(f"/v1/files/{file['id']}"), 404, "not_found")
    assert delete_expired_files(db, 10) == 1
    assert delete_expired_files(db, 10) == 0
    assert query(db, "SELECT prefix FROM doomed_object") == query(db, "SELECT storage_key FROM file")


def test_strangers(client: FlaskClient, app: APIFlask, stranger: Account) -> None:
    """Another tenant's file is not there."""
    file = upload(client, b"x").get_json()
    other = client_of(app, stranger.keys["admin"])
    for path in (f"/v1/files/{file['id']}", f"/v1/files/{file['id']}/content"):
        assert_problem(other.get(path), 404, "not_found")
    assert_problem(other.delete(f"/v1/files/{file['id']}"), 404, "not_found")
    assert other.get("/v1/files").get_json()["data"] == []
    assert_problem(other.get(f"/v1/files?after={file['id']}"), 400, "invalid_request", "after")
    assert client.get(f"/v1/files/{file['id']}").status_code == 200


def test_pictures_can_be_edited(client: FlaskClient, app: APIFlask, stranger: Account, parts: Parts) -> None:
    """An uploaded picture is a reference image by its id, for its owner."""
    file_id = upload(client, png(128, 96), "a.png", purpose="vision").get_json()["id"]
    sent = {"prompt": "night", "images": [{"file_id": file_id}], "background": True}
    job = client.get(f"/v1/jobs/{client.post('/v1/images/edits', json=sent).get_json()['id']}").get_json()
    assert job["params"]["size"] == "96x128"
    other = client_of(app, stranger.keys["submit"])
    assert_problem(other.post("/v1/images/edits", json=sent), 400, "invalid_request", "images.0.file_id")
    text = upload(client, b"no picture", purpose="vision").get_json()["id"]
    answer = client.post("/v1/images/edits", json={**sent, "images": [{"file_id": text}]})
    assert answer.status_code == 415
    assert answer.get_json()["param"] == "images.0.file_id"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"purpose": "source"}, "purpose"),
        ({"porpose": "batch"}, "porpose"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}, "expires_after.seconds"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "x"}, "expires_after.seconds"),
        ({"expires_after": "1"}, "expires_after"),
        ({"file[]": "x"}, "file"),
    ],
)
def test_wrong_uploads(refusing: FlaskClient, fields: dict[str, str], param: str) -> None:
    """Refused by name, and nothing is stored."""
    assert_problem(upload(refusing, b"x", **fields), 400, "invalid_request", param)


def test_what_is_no_upload(refusing: FlaskClient) -> None:
    """JSON, and a form without a file."""
    assert_problem(refusing.post("/v1/files", json={"purpose": "batch"}), 415, "unsupported_media")
    answer = refusing.post("/v1/files", data={"purpose": "batch"}, content_type="multipart/form-data")
    assert_problem(answer, 400, "invalid_request", "file")


def test_too_large(client: FlaskClient, db: Database) -> None:
    """The limit of all bodies holds here too."""
    assert_problem(upload(client, b"x" * (3 << 20)), 413, "payload_too_large")
    assert count_rows(db)["file"] == 0
