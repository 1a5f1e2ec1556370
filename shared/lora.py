"""Which LoRA adapters a request wants, and how strongly. Pure: what an adapter is, the GPU workers know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LORA_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""What an adapter may be called: it names a folder and stands in URLs and logs."""


@dataclass(frozen=True, order=True)
class LoraChoice:
    """One adapter: `name` is that of its folder in `GLMQ_LORA_DIR`, `scale` multiplies its effect (1 as trained, 0 off)."""

    name: str
    scale: float = 1.0


Lora = tuple[LoraChoice, ...]
"""The adapters of a request, sorted by name; empty for the bare model. Requests share a batch only if theirs are equal."""


def lora_from_json(value: Iterable[dict[str, Any]]) -> Lora:
    """The adapters as a row or a request holds them, in the one order that makes equal choices equal."""
    return tuple(sorted(LoraChoice(str(item["name"]), float(item.get("scale", 1.0))) for item in value))


def lora_to_json(lora: Lora) -> list[dict[str, Any]]:
    """What `lora_from_json` reads."""
    return [{"name": choice.name, "scale": choice.scale} for choice in lora]
