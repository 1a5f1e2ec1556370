"""
What a step of the DiT costs, in floating-point operations. Pure.

Knows the architecture's formula and two numbers of a checkpoint; no tensors and no seconds. Good enough to order pictures by: the VAE
and the encoding of references are left out, for they are a few steps' worth at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DitSize:
    """The depth and width of a DiT."""

    num_layers: int
    width: int

    @classmethod
    def from_config(cls, config: Any) -> DitSize:
        """Read both from a diffusers transformer config."""
        return cls(int(config.num_layers), int(config.num_attention_heads * config.attention_head_dim))

    def forward_flops(self, num_patches: int, num_glyph_tokens: int, num_reference_tokens: int) -> float:
        """One call of the DiT: its matrix products over image and glyph tokens, and their attention to one another and to references."""
        num_tokens = num_patches + num_glyph_tokens
        products = 2 * num_tokens * self.num_layers * 12 * self.width**2
        attention = 4 * self.num_layers * self.width * num_tokens * (num_tokens + num_reference_tokens)
        return float(products + attention)

    def step_flops(self, num_patches: int, num_glyph_tokens: int, num_reference_tokens: int, *, is_guided: bool) -> float:
        """One step of one picture: cond, and with guidance uncond, which has one glyph token and reads no references."""
        uncond = self.forward_flops(num_patches, 1, 0) if is_guided else 0.0
        return self.forward_flops(num_patches, num_glyph_tokens, num_reference_tokens) + uncond
