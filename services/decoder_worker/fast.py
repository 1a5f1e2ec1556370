"""
The lossy tier: how a `fast` picture skips work, and what it remembers from step to step.

Two savings, each changing the picture a little. Outside an interval of noise levels uncond is left out, and cond alone leads. And where the
first block of the DiT says nearly the same as at its last whole run, the other blocks are not run: what they added then is added again.
Both are decided by the picture alone, and cond and uncond keep their memories apart: diffusers' `FirstBlockCacheHook` has one for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from services.decoder_worker import dit
from services.decoder_worker.dit import Conditioning, Rotary
from services.decoder_worker.references import LayerReferences


@dataclass(frozen=True)
class FastParams:
    """
    How much is skipped.

    Attributes:
        threshold: relative change of the first block's contribution up to which the other blocks are skipped.
        refresh_steps: every so many steps everything is computed and remembered anew. Checkpoints of fast pictures are taken there only,
            so one that is resumed goes on as if nothing had been.
        guidance_from, guidance_to: the sigmas between which there is guidance.
    """

    threshold: float = 0.12
    refresh_steps: int = 5
    guidance_from: float = 0.15
    guidance_to: float = 0.95

    def is_guided(self, sigma: float) -> bool:
        """Is there guidance at this noise level?"""
        return self.guidance_from <= sigma <= self.guidance_to


@dataclass
class BlockMemory:
    """What one of the two passes remembers: what the first block added at the last whole run, and what the others added to that."""

    first_added: Tensor | None = None
    others_added: Tensor | None = None


@dataclass
class FastState:
    """The memory of one fast picture."""

    params: FastParams
    cond: BlockMemory = field(default_factory=BlockMemory)
    uncond: BlockMemory = field(default_factory=BlockMemory)

    def begin_step(self, num_done: int) -> None:
        """Forget everything where the picture is to be computed anew, whether it came here or was resumed here."""
        if num_done % self.params.refresh_steps == 0:
            self.cond, self.uncond = BlockMemory(), BlockMemory()


def predict(
    transformer: Any,
    latents: Tensor,
    conditioning: Conditioning,
    times: Tensor,
    tables: Rotary,
    references: Sequence[LayerReferences] | None,
    state: FastState,
    memory: BlockMemory,
) -> Tensor:
    """`dit.predict` for one picture, skipping all blocks but the first where `memory` will do."""
    blocks = transformer.transformer_blocks
    entered = dit.enter(transformer, latents, conditioning)
    first, glyphs = dit.run_blocks(blocks[:1], entered, conditioning.glyphs, times, tables, references and references[:1])
    added = first - entered
    remembered = memory.first_added if state.params.threshold else None
    if remembered is not None and memory.others_added is not None and _change(added, remembered) < state.params.threshold:
        return dit.leave(transformer, first + memory.others_added, times, latents.shape)
    last, _ = dit.run_blocks(blocks[1:], first, glyphs, times, tables, references and references[1:])
    memory.first_added, memory.others_added = added, last - first
    return dit.leave(transformer, last, times, latents.shape)


def _change(new: Tensor, old: Tensor) -> float:
    """Mean absolute difference over mean absolute value. Reading it waits for the device, once a pass."""
    return float((new - old).abs().mean() / old.abs().mean())
