"""`glmq batch`: a table of prompts from a file to a zip of pictures. Whatever breaks meanwhile, the same command goes on where it was."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli.client import ApiError, Client, Unreachable

Batch = dict[str, Any]

_AT_ONCE = 1000
"""Items of one request, which has at most so many."""
_AT_ONCE_BYTES = 4 << 20
_POLL_S = 2.0
_PATIENCE_S = 60.0
_SHOWN = 10
"""Failures that are told one by one; the manifest has all of them."""
_ENDED = ("completed", "failed", "cancelled", "expired")
_NUMBERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("n", "seed", "layout_seed", "steps", "width", "height", "expires_in"), int),
    **dict.fromkeys(("guidance_scale", "temperature", "top_p"), float),
}
"""Members of a request that are no texts, as cells of a table have them."""


def read_items(file: Path) -> list[dict[str, Any]]:
    """
    The items of a table (CSV, its first row names the columns) or of JSON lines. Those without a `custom_id` get the number of their line.

    Raises:
        ApiError: a row cannot be read.
    """
    rows = _table(file) if file.suffix.lower() == ".csv" else _lines(file)
    items = [{"custom_id": str(line), **item} for line, item in rows]
    if not items:
        raise ApiError(f"{file.name} has no items")
    return items


def parse_defaults(text: str) -> dict[str, Any]:
    """
    What `--defaults` says.

    Raises:
        ApiError: it is no JSON object.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ApiError(f"--defaults is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ApiError("--defaults is no JSON object")
    return found


def run_batch(client: Client, file: Path, out: Path, defaults: dict[str, Any], console: Console) -> int:
    """
    Have all pictures of a file drawn, and save them as one zip.

    The file's content names the batch: who runs the command again goes on with the one of before, and what failed in it is tried again.

    Returns:
        How many items did not succeed.
    Raises:
        ApiError: refused, or not reachable.
    """
    if not out.absolute().parent.is_dir():
        raise ApiError(f"no such folder: {out.absolute().parent}")
    items = read_items(file)
    content = json.dumps([items, defaults], sort_keys=True).encode()
    key = f"glmq-batch-{hashlib.sha256(content).hexdigest()[:40]}"
    batch = client.post("/v1/batches", {"items": [], "name": file.name[:256], "defaults": defaults}, key)
    path = f"/v1/batches/{batch['id']}"
    if not batch["sealed"]:
        for some in _parts(items):
            client.post(f"{path}/append", {"items": some})
        client.post(f"{path}/seal", {})
    else:
        client.post(f"{path}/retry-failed", {})
    console.print(f"  {batch['id']}")
    batch = _wait(client, path, len(items), console)
    for item in client.get(f"{path}/items", {"status": "failed,canceled,expired", "limit": str(_SHOWN)})["data"]:
        console.print(f"  {item['custom_id']} {item['status']}: {item['error']['message']}")
    client.save(f"{path}/export.zip", out)
    return int(batch["request_counts"]["failed"])


def _table(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # With a byte order mark, as spreadsheets write it, or without.
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        try:
            for number, row in enumerate(reader, 1):
                if None in row:
                    raise ApiError(f"{file.name}: row {number} has more cells than there are columns")
                yield number, _item(f"{file.name}: row {number}", {name: cell for name, cell in row.items() if cell})
        except (csv.Error, UnicodeDecodeError) as error:
            raise ApiError(f"{file.name}: {error}") from None


def _item(where: str, cells: dict[str, str]) -> dict[str, Any]:
    item: dict[str, Any] = {}
    for name, cell in cells.items():
        if name.startswith("metadata."):
            item.setdefault("metadata", {})[name.removeprefix("metadata.")] = cell
            continue
        try:
            item[name] = _NUMBERS.get(name, str)(cell)
        except ValueError:
            raise ApiError(f"{where}: {name} should be a number (got {cell[:40]!r})") from None
    return item


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8") as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except ValueError as error:
                raise ApiError(f"{file.name}: line {number} is no JSON: {error}") from None
            if not isinstance(item, dict):
                raise ApiError(f"{file.name}: line {number} is no JSON object")
            yield number, item


def _parts(items: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The items in pieces that a request may have."""
    part: list[dict[str, Any]] = []
    size = 0
    for item in items:
        length = len(json.dumps(item))
        if part and (len(part) == _AT_ONCE or size + length > _AT_ONCE_BYTES):
            yield part
            part, size = [], 0
        part.append(item)
        size += length
    yield part


def _wait(client: Client, path: str, num_items: int, console: Console) -> Batch:
    """Look at a batch until it is over; a service that restarts meanwhile is waited for."""
    columns = (TextColumn("  {task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("items", total=num_items)
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                batch = client.get(path, {})
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
            else:
                deadline = time.monotonic() + _PATIENCE_S
                counts = batch["request_counts"]
                bar.update(task, completed=counts["completed"] + counts["failed"])
                if batch["status"] in _ENDED:
                    return batch
            time.sleep(_POLL_S)
