"""
The pictures of a batch -> a zip, made while it is sent: one picture and one entry are in memory, and the names of all.

Names come from custom ids, which are whatever a customer wrote: none of them leads out of the folder that somebody unpacks into, or is
another's on a file system that takes two spellings for one.
"""

from __future__ import annotations

import io
import json
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from services.api.parts import Parts
from shared.lifecycle.batch_reads import Outcome
from shared.storage import StorageMissingError

MANIFEST = "manifest.jsonl"
_MAX_NAME = 100
"""Letters of a custom id: with index, rendition and ending, any file system takes them."""
_IN_MEMORY = 1 << 20
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
"""Which Windows takes for devices, whatever their ending."""


def zip_pictures(parts: Parts, outcomes: Iterator[Outcome]) -> Iterator[bytes]:
    """
    The bytes of the zip.

    Args:
        outcomes: of items that have ended.
    """
    sink = _Sink()
    names = _Names()
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as manifest, zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for outcome in outcomes:
            files = []
            for picture in _pictures(outcome):
                try:
                    with parts.waiting.turn():
                        data = parts.storage.get(picture["storage_key"])
                except StorageMissingError:
                    files.append({**_told(picture), "name": None})
                    continue
                name = names.take(outcome, picture)
                archive.writestr(_entry(name, outcome), data)
                files.append({**_told(picture), "name": name})
                yield sink.take()
            manifest.write(_manifest_line(outcome, files))
        manifest.seek(0)
        with archive.open(zipfile.ZipInfo(MANIFEST), "w", force_zip64=True) as entry:
            while data := manifest.read(_IN_MEMORY):
                entry.write(data)
                yield sink.take()
    yield sink.take()


class _Sink(io.RawIOBase):
    """What was written and not sent yet. Not seekable, so that the archive does without."""

    def __init__(self) -> None:
        super().__init__()
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken


class _Names:
    """Gives out each name once."""

    def __init__(self) -> None:
        self._given = {_folded(MANIFEST)}

    def take(self, outcome: Outcome, picture: dict[str, Any]) -> str:
        """The name of a picture's file."""
        ending = "jpg" if picture["format"] == "jpeg" else picture["format"]
        part = "_".join(str(part) for part in (picture["index"], picture["rendition"]) if part is not None)
        stem = safe_stem(outcome.custom_id)
        name = f"{stem}_{part}.{ending}"
        # Two custom ids that differ only in what names cannot hold; lines differ.
        if _folded(name) in self._given:
            name = f"{stem}_{part}~{outcome.line}.{ending}"
        self._given.add(_folded(name))
        return name


def safe_stem(custom_id: str) -> str:
    """The beginning of a file name that says a custom id, with letters, digits and `-_.` only."""
    text = unicodedata.normalize("NFC", custom_id)
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in text)
    # Neither hidden nor `..`, and no longer than a file system has room for, in bytes.
    stem = kept.lstrip(".").encode()[:_MAX_NAME].decode(errors="ignore") or "item"
    return f"_{stem}" if stem.partition(".")[0].casefold() in _RESERVED else stem


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _pictures(outcome: Outcome) -> Iterator[dict[str, Any]]:
    if outcome.document is None or outcome.status != "succeeded":
        return
    for output in outcome.document["outputs"]:
        yield {**output, "rendition": None}
        for rendition in output["renditions"]:
            if rendition["storage_key"] is not None:
                yield {**rendition, "index": output["index"], "rendition": rendition["name"]}


def _told(picture: dict[str, Any]) -> dict[str, Any]:
    return {name: picture[name] for name in ("index", "rendition", "width", "height", "sha256")}


def _entry(name: str, outcome: Outcome) -> zipfile.ZipInfo:
    ended = datetime.fromisoformat((outcome.document or {})["completed_at"])
    return zipfile.ZipInfo(name, (ended.year, ended.month, ended.day, ended.hour, ended.minute, ended.second))


def _manifest_line(outcome: Outcome, files: list[dict[str, Any]]) -> bytes:
    document = outcome.document
    error = outcome.error if document is None else document["error"]
    record = {
        "custom_id": outcome.custom_id,
        "line": outcome.line,
        "status": outcome.status,
        "job_id": None if document is None else document["id"],
        "error": None if error is None else {name: error.get(name) for name in ("code", "message")},
        "files": files,
    }
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
