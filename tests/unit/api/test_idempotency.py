"""Keys and fingerprints."""

from __future__ import annotations

import pytest

from services.api.idempotency import fingerprint, parse_key
from services.api.request_body import RequestBody, Upload
from shared.errors import RequestError


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("abc", "abc"),
        ('"abc"', "abc"),
        (' "a b" ', "a b"),
        (r'"a\"b\\c"', r"a\"b\c".replace(r"\"", '"')),
        ("8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ("x" * 255, "x" * 255),
    ],
)
def test_keys(header: str | None, expected: str | None) -> None:
    """A structured string and the bare form name the same key."""
    assert parse_key(header) == expected


@pytest.mark.parametrize(
    "header", ["", " ", '""', "x" * 256, '"' + "x" * 256 + '"', "a b", "é", '"é"', '"a', 'a"', '"a"b', r'"a\n"', "a\tb"]
)
def test_malformed_keys(header: str) -> None:
    """Anything else is refused, and the header named."""
    with pytest.raises(RequestError) as caught:
        parse_key(header)
    assert caught.value.param == "Idempotency-Key"


def test_fingerprint_is_of_the_meaning() -> None:
    """Order of keys does not matter; values, types, uploads and their order do."""
    base = fingerprint("r", RequestBody({"a": 1, "b": {"c": 2, "d": 3}}))
    assert fingerprint("r", RequestBody({"b": {"d": 3, "c": 2}, "a": 1})) == base
    one, two = Upload("image.0", b"1"), Upload("image.1", b"2")
    others = [
        fingerprint("s", RequestBody({"a": 1, "b": {"c": 2, "d": 3}})),
        fingerprint("r", RequestBody({"a": 1.0, "b": {"c": 2, "d": 3}})),
        fingerprint("r", RequestBody({"a": True, "b": {"c": 2, "d": 3}})),
        fingerprint("r", RequestBody({"a": 1, "b": {"c": 2, "d": 3}}, (one, two))),
        fingerprint("r", RequestBody({"a": 1, "b": {"c": 2, "d": 3}}, (two, one))),
    ]
    assert len({base, *others}) == 6
