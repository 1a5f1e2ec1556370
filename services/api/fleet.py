"""The GPU workers as predictions see them: how many live, how fast they were lately, and what a job would take of them. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.api.kept import Kept
from shared.cost import DitSize, image_flops, num_ar_tokens
from shared.db import Database
from shared.grid import TokenGrid
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.workers import StageFleet, read_fleet
from shared.quoting.reference import glyph_texts
from shared.states import Stage

_KEPT_S = 3.0
"""As often as workers report; every submit saves two queries."""


@dataclass(frozen=True)
class Fleet:
    """The live workers of both stages."""

    ar: StageFleet
    decoder: StageFleet

    def priced(self, new: NewJob, sources: Sequence[tuple[int, int]]) -> NewJob:
        """
        The job with the seconds that each of its grids and images will take of a worker, where workers have told how fast they are.

        Args:
            sources: height and width of its reference images.
        """
        grid_cost_s = None
        if self.ar.speed is not None:
            grid_cost_s = num_ar_tokens(new.grid, len(sources)) * self.ar.speed.seconds_per_unit
        texts = glyph_texts(new.prompt) if new.glyph_texts is None else new.glyph_texts
        image_cost_s = self.image_seconds(new.grid, new.steps, texts, sources, is_guided=new.guidance_scale > 1)
        if grid_cost_s is None and image_cost_s is None:
            return new
        return replace(new, grid_cost_s=grid_cost_s, image_cost_s=image_cost_s)

    def image_seconds(
        self, grid: TokenGrid, steps: int, texts: Sequence[str], sources: Sequence[tuple[int, int]], *, is_guided: bool
    ) -> float | None:
        """Seconds of a decoder worker that a picture takes; None where none has told how fast it is."""
        if self.decoder.speed is None or self.decoder.model is None or "dit" not in self.decoder.model:
            return None
        dit = DitSize(**self.decoder.model["dit"])
        return image_flops(dit, grid, steps, texts, sources, is_guided=is_guided) * self.decoder.speed.seconds_per_unit


class FleetReader:
    """The fleet as it was a few seconds ago at most. Thread-safe."""

    def __init__(self, db: Database) -> None:
        self._kept = Kept(lambda: Fleet(read_fleet(db, Stage.AR), read_fleet(db, Stage.DECODER)), _KEPT_S)

    def get(self) -> Fleet:
        """Who lives. Raises: DatabaseDownError."""
        return self._kept.get()

    def forget(self) -> None:
        """Ask anew at the next `get`."""
        self._kept.forget()
