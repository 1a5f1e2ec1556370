"""One more file of the same picture: what a customer asked for, as rows keep it. Pure; draws and encodes nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Fit = Literal["cover", "contain", "fill"]
"""How a picture gets into another aspect: cut, put on white, or stretched."""


@dataclass(frozen=True)
class Rendition:
    """
    Attributes:
        quality: 1..100 of jpeg and webp; None for the format's default.
        max_bytes: the most that the file may have; the quality is lowered until it fits.
    """

    name: str
    height_px: int
    width_px: int
    format: str
    quality: int | None = None
    max_bytes: int | None = None
    fit: Fit = "cover"

    def to_json(self) -> dict[str, Any]:
        """As a row keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Rendition:
        """What `to_json` made."""
        return cls(**value)
