"""`glmq batch`: tables become items, and items requests that a service takes."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.batch import parse_defaults, read_items, run_batch
from cli.client import ApiError, Client
from tests.unit.cli.test_client import Service
from tests.unit.cli.test_client import service as service

SEALED = {"id": "bat_1", "sealed": True}


def write(tmp_path: Path, name: str, text: str) -> Path:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return file


def test_a_table(tmp_path: Path) -> None:
    """Cells are what their columns say; empty ones are left to the service; rows without a name have their number."""
    table = '\ufeffcustom_id,prompt,n,guidance_scale,metadata.sku\nmug,"A mug, red",2,1.5,17\n,"A ""pot""",,,\n'
    assert read_items(write(tmp_path, "shop.csv", table)) == [
        {"custom_id": "mug", "prompt": "A mug, red", "n": 2, "guidance_scale": 1.5, "metadata": {"sku": "17"}},
        {"custom_id": "2", "prompt": 'A "pot"'},
    ]


def test_json_lines(tmp_path: Path) -> None:
    """As they are; blank lines count, as in an editor."""
    file = write(tmp_path, "shop.jsonl", '{"prompt": "a"}\n\n{"custom_id": "x", "prompt": "b"}\n')
    assert read_items(file) == [{"custom_id": "1", "prompt": "a"}, {"custom_id": "x", "prompt": "b"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,n\ncat,two\n", "row 1: n should be a number"),
        ("a.csv", "prompt\ncat,2\n", "row 1 has more cells"),
        ("a.csv", 'prompt\n"cat\n', "unexpected end of data"),
        ("a.jsonl", "{\n", "line 1 is no JSON"),
        ("a.jsonl", "[]\n", "line 1 is no JSON object"),
        ("a.jsonl", "\n", "has no items"),
    ],
)
def test_mistakes(tmp_path: Path, name: str, text: str, message: str) -> None:
    """Told with the line, before anything is sent."""
    with pytest.raises(ApiError, match=message):
        read_items(write(tmp_path, name, text))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_defaults(text: str) -> None:
    """An object, or nothing is sent."""
    assert parse_defaults('{"size": "64x64"}') == {"size": "64x64"}
    with pytest.raises(ApiError, match="--defaults is no JSON"):
        parse_defaults(text)


def test_from_file_to_zip(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces that a request may have, under a key that the content gives; then it is watched and fetched, and failures are told."""
    monkeypatch.setattr("cli.batch._AT_ONCE", 2)
    monkeypatch.setattr("cli.batch._POLL_S", 0.0)
    running: dict[str, Any] = {"status": "in_progress", "request_counts": {"completed": 1, "failed": 0}}
    failed = {"custom_id": "3", "status": "failed", "error": {"message": "too long"}}
    for body in ({"id": "bat_1", "sealed": False}, {}, {}, {}, running):
        service.answer(body)
    service.answer({"status": "completed", "request_counts": {"completed": 2, "failed": 1}})
    service.answer({"data": [failed]})
    service.answer(b"PK")
    file = write(tmp_path, "shop.csv", "prompt\na\nb\nc\n")
    told = StringIO()
    with Client(service.url, "key") as client:
        assert run_batch(client, file, tmp_path / "shop.zip", {"size": "64x64"}, Console(file=told)) == 1
        assert (tmp_path / "shop.zip").read_bytes() == b"PK"
        assert "3 failed: too long" in told.getvalue()
        keys = [service.asked[0][2]["Idempotency-Key"]]
        assert [(path, len(json.loads(body).get("items", []))) for _, path, _, body in service.asked[:4]] == [
            ("/v1/batches", 0),
            ("/v1/batches/bat_1/append", 2),
            ("/v1/batches/bat_1/append", 1),
            ("/v1/batches/bat_1/seal", 0),
        ]
        # Once more: no item is sent again, and what failed is tried.
        service.asked.clear()
        service.answer(SEALED)
        service.answer(SEALED)
        service.answer({"status": "completed", "request_counts": {"completed": 3, "failed": 0}})
        service.answer({"data": []})
        service.answer(b"PK2")
        assert run_batch(client, file, tmp_path / "shop.zip", {"size": "64x64"}, Console(file=told)) == 0
        assert [command for command, *_ in service.asked] == ["POST", "POST", "GET", "GET", "GET"]
        assert [service.asked[0][2]["Idempotency-Key"]] == keys


def test_a_zip_that_is_refused(service: Service, tmp_path: Path) -> None:
    """Leaves no file of its name."""
    service.answer({"detail": "there is no such batch"}, 404)
    with Client(service.url, "key") as client, pytest.raises(ApiError, match="no such batch"):
        client.save("/v1/batches/bat_1/export.zip", tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
