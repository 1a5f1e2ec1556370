"""
How long a job may still take: its place in the line, and what is left of its work at the speed that live workers report.

Costs no query of its own: what it knows of the line and of the workers is some seconds old. Knows no HTTP.
"""

from __future__ import annotations

import math
from datetime import datetime
from functools import partial
from typing import Any

from services.api.fleet import Fleet, FleetReader
from services.api.kept import Kept
from shared.cost import num_ar_tokens
from shared.db import Database
from shared.grid import TOKEN_PX, TokenGrid
from shared.lifecycle.line import read_line
from shared.states import JobStatus, Priority, Stage

_KEPT_S = 3.0

Document = dict[str, Any]


class Outlook:
    """The line and the workers as they were a few seconds ago at most. Thread-safe."""

    def __init__(self, db: Database, fleet: FleetReader) -> None:
        self._fleet = fleet
        self._lines = {stage: Kept(partial(read_line, db, stage), _KEPT_S) for stage in Stage}

    def place(self, document: Document) -> dict[str, Any] | None:
        """Where a job that has not begun stands in the line; None for all others."""
        if not _is_in_line(document):
            return None
        seconds = self._seconds_ahead(document)
        return {"lane": document["priority"], "seconds_ahead": None if seconds is None else round(seconds, 1)}

    def remaining_s(self, document: Document) -> float | None:
        """Seconds until a job that is not over has its last image, as far as they can be told."""
        own = work_left_s(document, self._fleet.get())
        place = document["queue"] or self.place(document)
        ahead = 0.0 if place is None else place["seconds_ahead"]
        return None if own is None or ahead is None else ahead + own

    def seconds_ahead(self, stage: Stage, priority: Priority, created_at: datetime) -> float | None:
        """Until work of this age has its turn, if all that is before it is shared among the workers; None if that cannot be told."""
        fleet = self._fleet.get()
        num_workers = (fleet.ar if stage is Stage.AR else fleet.decoder).num_workers
        ahead = self._lines[stage].get().seconds_before(list(Priority).index(priority), created_at)
        return None if ahead is None or not num_workers else ahead / num_workers

    def forget(self) -> None:
        """Ask anew who is in the line."""
        for kept in self._lines.values():
            kept.forget()

    def _seconds_ahead(self, document: Document) -> float | None:
        came_at = datetime.fromisoformat(document["created_at"])
        return self.seconds_ahead(Stage(document["stage"]), Priority(document["priority"]), came_at)


def _is_in_line(document: Document) -> bool:
    return JobStatus(document["status"]) is JobStatus.QUEUED and str(document["progress"]["phase"]) != "awaiting_approval"


def work_left_s(document: Document, fleet: Fleet) -> float | None:
    """What is left of a job's own work, once it has its turn; None if the workers have not told their speed, or a person decides. Pure."""
    params, progress = document["params"], document["progress"]
    phase = progress["phase"]
    undone: float = 1 - progress["done"] / max(1, progress["total"])
    drawn = document["outputs"][0]
    grid = TokenGrid(drawn["generated_height"] // TOKEN_PX, drawn["generated_width"] // TOKEN_PX)
    if phase == "awaiting_approval":
        return None
    if phase in ("vae", "upload"):
        return 0.0
    # Of what size its reference images are is not said there: as large as the picture, perhaps.
    sources = [(drawn["height"], drawn["width"])] * len(params["images"])
    texts = params["glyph_texts"]
    each_s = fleet.image_seconds(grid, params["steps"], texts, sources, is_guided=params["guidance_scale"] > 1)
    if each_s is None or not fleet.decoder.num_workers:
        return None
    images_s: float = math.ceil(params["n"] / fleet.decoder.num_workers) * each_s
    if phase == "denoise":
        return undone * images_s
    if fleet.ar.speed is None:
        return None
    num_tokens = grid.num_tokens if phase == "grid" else num_ar_tokens(grid, len(sources)) - grid.num_tokens
    tokens_left = undone * num_tokens + (grid.num_tokens if phase == "draft" else 0)
    return tokens_left * fleet.ar.speed.seconds_per_turn + images_s
