"""A job in Replicate's words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.prediction import STATUSES, logs, model_path, prediction, prediction_body, stream_token, tenant_of_token, version_id
from shared.sealing import Sealer
from shared.states import JobStatus
from shared.webhooks import MAX_BODY_BYTES

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def document(**changes: Any) -> dict[str, Any]:
    return {
        "id": "job_1",
        "status": "running",
        "model": {"name": "zai-org/GLM-Image", "revision": "abc"},
        "input": {"prompt": "a fox"},
        "outputs": [{"url": None}],
        "progress": {"phase": "denoise", "done": 5, "total": 50},
        "error": None,
        "usage": {"images": 0},
        "created_at": "2026-11-26T12:00:00.000Z",
        "started_at": "2026-11-26T12:00:01.000Z",
        "completed_at": None,
        **changes,
    }


def test_every_status_is_one_that_clients_know() -> None:
    """Five words, whatever statuses we have; `aborted` is none of them."""
    assert set(STATUSES) == set(JobStatus)
    assert set(STATUSES.values()) == {"starting", "processing", "succeeded", "failed", "canceled"}


@pytest.mark.parametrize(
    ("name", "path"), [("zai-org/GLM-Image", ("zai-org", "GLM-Image")), ("miniature", ("glmq", "miniature")), ("/a/b/c", ("b", "c"))]
)
def test_model_path(name: str, path: tuple[str, str]) -> None:
    """The hub's names, or ours."""
    assert model_path(name) == path


def test_versions_can_be_written_in_a_path() -> None:
    """No colon, which separates a version from its model."""
    assert version_id("sha256:0123+lora:4567") == "0123-lora-4567"


def test_logs_hold_the_progress() -> None:
    """In the form that both clients parse; before the start there are none."""
    assert logs(document()) == "denoise\n10%|█         | 5/50\n"
    assert logs(document(progress={"phase": "upload", "done": 1, "total": 1})).endswith("100%|██████████| 1/1\n")
    assert logs(document(progress={"phase": "draft", "done": 0, "total": 0})).endswith("0%|          | 0/1\n")
    assert logs(document(started_at=None)) == ""


def test_outputs_only_when_all_are_there() -> None:
    """A prediction has all its outputs or none."""
    shown = prediction(document(outputs=[{"url": "https://a"}, {"url": None}]), None, "https://x", "t")
    assert (shown["output"], shown["status"], shown["metrics"]) == (None, "processing", {})
    done = document(status="succeeded", outputs=[{"url": "https://a"}], completed_at="2026-11-26T12:00:03.500Z", usage={"images": 1})
    shown = prediction(done, {"name": "replicate", "input": {"prompt": "b"}}, "https://x", "t")
    assert (shown["output"], shown["input"]) == (["https://a"], {"prompt": "b"})
    assert shown["metrics"] == {"image_count": 1, "total_time": 3.5, "predict_time": 2.5}
    assert prediction(done, {"name": "openai"}, "https://x", "t")["input"] == {"prompt": "a fox"}


def test_a_large_body_goes_without_its_input() -> None:
    """Receivers take 20 kB."""
    shown = prediction(document(input={"prompt": "界" * 8000}), None, "https://x", "t")
    body = prediction_body(shown)
    assert len(body) < MAX_BODY_BYTES
    assert json.loads(body)["input"] == {}


def test_stream_tokens() -> None:
    """A token opens one prediction until it ends; whatever is changed in it, it opens nothing."""
    tag, other = Sealer(KEY).tag, Sealer(KEY[::-1].replace("=", "") + "=").tag
    token = stream_token(tag, "ten_1", "job_1", 1000)
    assert tenant_of_token(tag, token, "job_1", 999) == "ten_1"
    assert tenant_of_token(tag, token, "job_1", 1001) is None
    assert tenant_of_token(tag, token, "job_2", 999) is None
    assert tenant_of_token(other, token, "job_1", 999) is None
    for wrong in (
        "",
        ".",
        "..",
        token[:-1],
        token + "0",
        token.replace("1000", "9000"),
        token.replace("ten_1", "ten_2"),
        "é.ten_1.é",
        "1e9.a.b",
    ):
        assert tenant_of_token(tag, wrong, "job_1", 999) is None, wrong
