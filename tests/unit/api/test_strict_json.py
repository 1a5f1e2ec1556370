"""What the JSON reader takes, and what it says of the rest."""

from __future__ import annotations

import pytest

from services.api.strict_json import check_text, is_storable, parse_object
from shared.errors import RequestError


def test_plain_json_is_read_as_it_is() -> None:
    """Every kind of JSON value arrives unchanged, a byte order mark before it or not."""
    text = '{"a": [1, -2, 0.5, 1e3, true, null, "é\\u4e16\\ud83e\\udd8a"], "b": {"a": {}}}'
    expected = {"a": [1, -2, 0.5, 1000.0, True, None, "é世🦊"], "b": {"a": {}}}
    assert parse_object(text.encode()) == parse_object(text.encode("utf-8-sig")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.0", 1), ("2e1", 20), ("-0.0", 0), ("9007199254740992.0", 2**53), ("1.5", 1.5), ("1e17", 1e17), ("1e-400", 0), ("true", True)],
)
def test_whole_numbers_are_whole_in_any_form(text: str, expected: object) -> None:
    """1.0 is the integer that JSON Schema takes it for, as far as a float tells exactly which."""
    read = parse_object(b'{"a": %s}' % text.encode())["a"]
    assert read == expected
    assert type(read) is type(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[1]", "must be an object"),
        (b'{"a": 1,\n}', "line 2, column 1"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' twice"),
        (b'{"b": {"\\u00e9": 1, "\\u00e9": 1}}', "twice"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": -1e999}', "too large: -1e999"),
        (b'{"a": ' + b"1" * 41 + b"}", "41 digits"),
        (b'{"a": "\xc3"}', "UTF-8"),
        (b"[" * 10_000, "deeper than 32"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "deeper than 32"),
    ],
)
def test_everything_else_is_refused_in_words(text: bytes, words: str) -> None:
    """The refusal says what is wrong and where."""
    with pytest.raises(RequestError, match=words) as caught:
        parse_object(text)
    assert caught.value.code == "invalid_request"
    assert len(caught.value.detail) < 200


@pytest.mark.parametrize(("text", "expected"), [("", True), ("a\n\t\x01é世🦊￿", True), ("a\0", False), ("\ud800", False)])
def test_storable_text(text: str, expected: bool) -> None:
    """Only NUL and unpaired surrogates cannot be stored."""
    assert is_storable(text) is expected


def test_unstorable_text_is_found_anywhere() -> None:
    """The path of the text is named; keys are looked at too."""
    with pytest.raises(RequestError) as caught:
        check_text({"a": ["x", {"b": "\0"}]})
    assert caught.value.param == "a.1.b"
    with pytest.raises(RequestError, match="key"):
        check_text({"a": {"\0": 1}})
