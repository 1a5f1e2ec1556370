"""Settings of the AR worker, beside those of every GPU worker."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.settings import WorkerSettings

CompileMode = Literal["off", "static", "compile", "cuda_graphs"]
"""
How a decode step is run.

off: over the live rows, up to their longest length. static: over all slots, up to the next power of two above it, so that all
shapes come again. compile: the same through torch.compile. cuda_graphs: the same, recorded once per length and replayed.

A product of another number of rows may be summed in another order. In float32 that has never changed an id; in bfloat16 it does, so
there a grid is the same beside all neighbours only where every step is over all slots.
"""

DecodeChoice = Literal["auto", "off", "static", "compile", "cuda_graphs"]
"""`auto`: what is exact on the device, and quickest of that."""


class ArWorkerSettings(WorkerSettings):
    """What only the AR worker reads."""

    ar_slots: int = Field(
        default=0, ge=0, le=1024, description="Grids written at once. 0: as many as memory has room for, up to 64 on cuda and 32 on cpu."
    )
    ar_cache_tokens: int = Field(
        default=0,
        ge=0,
        le=1 << 20,
        description="Longest prompt and picture together, in tokens; each slot keeps room for as many. 0: what the checkpoint takes, or"
        " what fits into memory.",
    )
    ar_checkpoint_tokens: int = Field(
        default=240,
        ge=1,
        le=1 << 20,
        description="Tokens between two checkpoints of a grid. When a worker dies, so many are computed twice, and those that were written"
        " while the last checkpoint was being stored.",
    )
    ar_decode: DecodeChoice = Field(
        default="auto",
        description="How a decode step runs. `off`: over the live grids alone; in bfloat16 a grid's ids then depend on how many are live."
        " `static`: over all slots, in shapes that come again. `compile`: the same through torch.compile. `cuda_graphs`: the same,"
        " recorded and replayed; for cuda. `auto`: `cuda_graphs` on cuda; elsewhere `off`, or `static` in bfloat16.",
    )
    ar_prefill_tokens: int = Field(
        default=1024,
        ge=1,
        le=1 << 20,
        description="Prompt tokens read between two decode steps, after which further requests wait a step: less holds those who write up"
        " less, more fills the slots faster.",
    )
