"""Links are letter for letter those that boto3 would make."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from unittest.mock import patch

import boto3
import pytest
from botocore.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.s3_signature import LinkSigner

NOW = datetime(2026, 11, 26, 3, 4, 5, tzinfo=UTC)
ACCESS, SECRET, REGION = "AKIAEXAMPLE", "s/ecret+key", "eu-west-3"


def expected(endpoint: str, key: str, expires_s: int, name: str | None, now: datetime = NOW) -> str:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS,
        aws_secret_access_key=SECRET,
        region_name=REGION,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    saved = {"ResponseContentDisposition": f'attachment; filename="{name}"'} if name else {}
    with patch("botocore.auth.get_current_datetime", lambda remove_tzinfo=True: now.replace(tzinfo=None)):
        return client.generate_presigned_url("get_object", Params={"Bucket": "b-1", "Key": key, **saved}, ExpiresIn=expires_s)


def made(endpoint: str, key: str, expires_s: int, name: str | None, now: datetime = NOW) -> str:
    query = {"response-content-disposition": f'attachment; filename="{name}"'} if name else {}
    return LinkSigner(endpoint, "b-1", REGION, ACCESS, SECRET).link(key, expires_s, query, now)


def sorted_query(url: str) -> tuple[str, list[str]]:
    """The order of the arguments is no part of a link."""
    path, _, query = url.partition("?")
    return path, sorted(query.split("&"))


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:8333", "https://s3.example", "https://s3.example:443", "http://s3.example:80/", "https://s3.example/under/"],
)
@pytest.mark.parametrize("name", [None, "a cat (1)&~.png"])
def test_as_boto3_signs(endpoint: str, name: str | None) -> None:
    """Whatever the endpoint looks like."""
    assert sorted_query(made(endpoint, "t/ten_1/j/a b+c.png", 3600, name)) == sorted_query(
        expected(endpoint, "t/ten_1/j/a b+c.png", 3600, name)
    )


@settings(max_examples=25, deadline=None)
@given(
    key=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(lambda key: not key.startswith("/")),
    expires_s=st.integers(1, 604_800),
)
def test_any_key(key: str, expires_s: int) -> None:
    """Any name an object can have."""
    url = "http://127.0.0.1:8333"
    assert sorted_query(made(url, key, expires_s, None)) == sorted_query(expected(url, key, expires_s, None))


def test_every_day_has_its_key() -> None:
    """Days are those of UTC, and the day before is not signed with the key of today."""
    signer = LinkSigner("http://h", "b-1", REGION, ACCESS, SECRET)
    for days in (0, 1, 2, 0):
        now = (NOW + timedelta(days=days)).astimezone(timezone(timedelta(hours=-8)))
        assert sorted_query(signer.link("k", 60, {}, now)) == sorted_query(expected("http://h", "k", 60, None, now.astimezone(UTC)))
