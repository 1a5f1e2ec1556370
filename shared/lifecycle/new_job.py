"""A validated request, as it is submitted: every default and seed filled in. Knows no row."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shared.grid import TokenGrid
from shared.lifecycle.reuse import Cache
from shared.lora import Lora, lora_to_json
from shared.quoting.reference import glyph_texts
from shared.rendition import Rendition
from shared.states import Priority
from shared.trace import TraceContext

NUM_SEEDS = 2**63
"""Seeds are 0 … 2^63-1: what Postgres and both engines can hold."""


@dataclass(frozen=True)
class SourceFile:
    """A stored source image."""

    id: str
    sha256: str


@dataclass(frozen=True)
class NewJob:
    """
    A validated request with every default and seed filled in.

    Attributes:
        height_px, width_px: of the result; `grid` is what the model draws, to be resized if it is another size.
        quality: of the file, as `max_bytes`; `is_fast` is about the drawing.
        renditions: more files of each image.
        expires_in_s: how long the results are kept; None: as long as the limits it is stored with say.
        approval_s: how long drafts wait for the customer's approval; None: they need none.
        glyph_texts: what the pictures are to say; None: what the reference's parser finds in the prompt.
        warnings: about the request, for its writer.
        grid_cost_s: seconds of an AR worker that each grid will take, as far as known; `image_cost_s` is of the decoder.
        redecode_of: the job whose finished layouts are drawn once more. What decides them must be as it is there.
        dialect: what the interface that the request came by needs to answer in its own words.
        trace: which trace of the customer's the request belongs to.
    """

    tenant_id: str
    input: dict[str, Any]
    prompt: str
    height_px: int
    width_px: int
    grid: TokenGrid
    num_images: int
    seed: int
    layout_seed: int
    same_layout: bool
    steps: int
    guidance_scale: float
    temperature: float
    top_p: float
    format: str
    quality: int | None
    sources: tuple[SourceFile, ...]
    model_name: str
    model_revision: str
    priority: Priority = Priority.STANDARD
    webhook: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    custom_id: str | None = None
    deadline: datetime | None = None
    lora: Lora = ()
    is_fast: bool = False
    cache: Cache = Cache.USE
    wants_previews: bool = True
    approval_s: float | None = None
    redecode_of: str | None = None
    glyph_texts: tuple[str, ...] | None = None
    max_bytes: int | None = None
    renditions: tuple[Rendition, ...] = ()
    expires_in_s: int | None = None
    grid_cost_s: float | None = None
    image_cost_s: float | None = None
    warnings: list[dict[str, Any]] = field(default_factory=list)
    batch_id: str | None = None
    dialect: dict[str, Any] | None = None
    trace: TraceContext | None = None

    def predicted_s(self) -> float:
        """Seconds of workers that it takes if nothing of it is there already, as far as known."""
        num_grids = 1 if self.same_layout else self.num_images
        return num_grids * (self.grid_cost_s or 0.0) + self.num_images * (self.image_cost_s or 0.0)

    def params(self) -> dict[str, Any]:
        """What the engines follow, as the customer sees it."""
        return {
            "prompt": self.prompt,
            "glyph_texts": glyph_texts(self.prompt) if self.glyph_texts is None else list(self.glyph_texts),
            "size": f"{self.width_px}x{self.height_px}",
            "n": self.num_images,
            "seed": self.seed,
            "layout_seed": self.layout_seed,
            "same_layout": self.same_layout,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "format": self.format,
            "format_options": {"quality": self.quality, "max_bytes": self.max_bytes},
            "renditions": [_rendition_params(rendition) for rendition in self.renditions],
            "expires_in": self.expires_in_s,
            "quality": "fast" if self.is_fast else "exact",
            "lora": lora_to_json(self.lora),
            "images": [{"file_id": source.id} for source in self.sources],
            "cache": self.cache,
            "approve": self.approval_s is not None,
            "previews": self.wants_previews,
        }


def _rendition_params(rendition: Rendition) -> dict[str, Any]:
    return {
        "name": rendition.name,
        "size": f"{rendition.width_px}x{rendition.height_px}",
        "format": rendition.format,
        "format_options": {"quality": rendition.quality, "max_bytes": rendition.max_bytes},
        "fit": rendition.fit,
    }
