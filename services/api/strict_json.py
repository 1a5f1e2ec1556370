"""
JSON as RFC 8259 means it, from hostile hands: no NaN, no doubled keys, no number or depth that hurts, no text that cannot be stored.

Pure; knows bytes and values, not what they mean.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

from services.api.field_errors import FieldError, InvalidFieldsError, Path
from shared.errors import RequestError

_MAX_DEPTH = 32
_MAX_DIGITS = 40
"""Beyond any number we take; int() of a million digits takes minutes."""
_EXACT = 2**53
"""Up to here a float is the number that was written."""


def parse_object(data: bytes) -> dict[str, Any]:
    """
    Read a JSON object.

    Raises:
        RequestError: `invalid_request`; names the place or the key that is wrong.
    """
    try:
        value = json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_int=_integer, parse_float=_number, parse_constant=_constant
        )
    except UnicodeDecodeError:
        raise RequestError("invalid_request", "the JSON is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise RequestError("invalid_request", f"the JSON is malformed: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, dict):
        raise RequestError("invalid_request", 'the JSON must be an object, such as {"prompt": "a red fox"}')
    check_text(value)
    return value


def check_text(value: object, path: Path = ()) -> None:
    """
    Refuse what no column and no UTF-8 answer can hold: NUL characters and halves of surrogate pairs, in keys and values.

    Raises:
        InvalidFieldsError, RequestError
    """
    if len(path) > _MAX_DEPTH:
        raise _too_deep()
    if isinstance(value, str):
        if not is_storable(value):
            raise InvalidFieldsError([FieldError(path, "invalid_text", f"{'.'.join(map(str, path))}: {_UNSTORABLE}")])
    elif isinstance(value, dict):
        for key, item in value.items():
            if not is_storable(key):
                raise InvalidFieldsError([FieldError(path, "invalid_text", f"a key of the JSON {_UNSTORABLE}")])
            check_text(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_text(item, (*path, index))


def is_storable(text: str) -> bool:
    """Can Postgres hold this text?"""
    return _UNSTORABLE_CHARACTER.search(text) is None


_UNSTORABLE_CHARACTER = re.compile("[\\x00\\ud800-\\udfff]")
_UNSTORABLE = "may not hold NUL characters or unpaired surrogates"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        double = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise RequestError("invalid_request", f"the JSON has the key {double[:40]!a} twice in one object")
    return members


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise RequestError("invalid_request", f"the JSON holds a number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float | int:
    """A number with a point or an exponent; a whole one as such, because JSON Schema tells 1.0 and 1 apart no more than JavaScript does."""
    value = float(text)
    if math.isinf(value):
        raise RequestError("invalid_request", f"the JSON holds a number that is too large: {text[:_MAX_DIGITS]}")
    return int(value) if value.is_integer() and abs(value) <= _EXACT else value


def _constant(text: str) -> NoReturn:
    raise RequestError("invalid_request", f"{text} is not a JSON number")


def _too_deep() -> RequestError:
    return RequestError("invalid_request", f"the JSON is nested deeper than {_MAX_DEPTH} levels")
