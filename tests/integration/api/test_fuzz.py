"""
Whatever is sent, the answer is a job or a 4xx problem: never a 5xx, never silence.

What schemathesis does not send: JSON that no schema describes, half characters, bytes that are no JSON, odd keys. The rest is its.
"""

from __future__ import annotations

import json
from typing import Any

from flask.testing import FlaskClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.api.schemas import JobRequest

_SETTINGS = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [
            "auto",
            "64x64",
            "png",
            "refresh",
            "fast",
            "sketch",
            "job.*",
            "job_" + "0" * 26,
            "https://hooks.example/",
            "2100-01-01T00:00:00Z",
            "\0",
            "\ud800",
            "",
        ]
    ),
)
_NAMES = st.sampled_from([*JobRequest.model_fields, "url", "file_id", "job_id", "index", "events", "name", "scale"])
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | _NAMES, inner, max_size=4), max_leaves=8
)

_REQUESTS = st.dictionaries(_NAMES, _VALUES, max_size=6).map(lambda fields: {"prompt": "a fox", **fields})


def assert_no_fault(answer: Any) -> None:
    assert answer.status_code == 202 or 400 <= answer.status_code < 500, answer.get_data(as_text=True)
    if answer.status_code >= 400:
        assert answer.mimetype == "application/problem+json"
        assert answer.get_json(force=True)["status"] == answer.status_code


@_SETTINGS
@given(request=_REQUESTS | _VALUES)
@example(request={"prompt": "a fox", "metadata": {"\ud800": "x"}})
@example(request={"prompt": "a fox", "deadline": "0001-01-01T00:00:00+14:00"})
def test_any_json(client: FlaskClient, request: Any) -> None:
    """Any JSON, mostly of our own fields with values of the wrong kind."""
    assert_no_fault(client.post("/v1/jobs", data=json.dumps(request), content_type="application/json"))


@_SETTINGS
@given(body=st.binary(max_size=200), key=st.text(st.characters(max_codepoint=255), max_size=20))
def test_any_bytes(client: FlaskClient, body: bytes, key: str) -> None:
    """Any body and any Idempotency-Key, as JSON and as multipart."""
    headers = {"Idempotency-Key": "".join(character for character in key if character not in "\r\n")}
    assert_no_fault(client.post("/v1/jobs", data=body, content_type="application/json", headers=headers))
    assert_no_fault(client.post("/v1/jobs", data=b"--b\r\n" + body + b"\r\n--b--\r\n", content_type="multipart/form-data; boundary=b"))
