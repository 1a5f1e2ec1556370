"""
The result files of batches, as they are stored and as they are read. Knows JSON lines; knows no route.

Stored lines name objects of ours by key, under `STORED`; every read makes URLs that are good for an hour, or the pictures themselves.
So a file of 50,000 pictures is small, and its links never end before it does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from services.api.openai.answers import read_base64
from services.api.parts import Parts
from shared.storage import PRESIGN_S, StorageMissingError

STORED = "glmq_stored"
"""Member of a stored datum: `{key, as, bytes}`."""


def read_output(parts: Parts, data: bytes) -> Iterator[bytes]:
    """The lines of a result file with links that work now."""
    for line in data.splitlines():
        yield _shown(line, partial(_datum, parts))


def shown_bytes(parts: Parts, data: bytes) -> int:
    """How long a result file is when it is read, as long as its pictures are there: every link is as long as the next one to its object."""
    pictures: list[int] = []

    def measured(datum: dict[str, Any]) -> dict[str, Any]:
        stored = datum.get(STORED)
        if stored is None or stored["as"] == "url":
            return _datum(parts, datum)
        # Not the picture itself: of fifty thousand only the lengths are of interest.
        pictures.append(4 * ((stored["bytes"] + 2) // 3))
        return {"b64_json": "", **{name: value for name, value in datum.items() if name != STORED}}

    lines = sum(len(_shown(line, measured)) for line in data.splitlines())
    return lines + sum(pictures)


def _shown(line: bytes, show: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    record = json.loads(line)
    body = (record.get("response") or {}).get("body") or {}
    if isinstance(body.get("data"), list):
        body["data"] = [show(datum) for datum in body["data"]]
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _datum(parts: Parts, datum: dict[str, Any]) -> dict[str, Any]:
    stored = datum.pop(STORED, None)
    if stored is None:
        return datum
    if stored["as"] == "url":
        return {"url": parts.storage.presign(stored["key"]), "expires_at": int(time.time()) + PRESIGN_S, **datum}
    try:
        with parts.waiting.turn():
            return {"b64_json": read_base64(parts, stored["key"]), **datum}
    except StorageMissingError:
        return {"b64_json": None, **datum}
