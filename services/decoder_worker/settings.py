"""What the decoder worker reads beside what every GPU worker does."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from shared.lifecycle.previews import MAX_PREVIEWS
from shared.settings import WorkerSettings


class DecoderWorkerSettings(WorkerSettings):
    """Slots, batches, checkpoints, memory, the lossy tier and previews of the decoder engine."""

    decoder_slots: int = Field(default=4, ge=1, le=256, description="Pictures that a decoder worker holds at once.")
    decoder_token_budget: int = Field(
        default=0,
        ge=0,
        le=1 << 20,
        description="Most DiT patches (16x16 pixels each) of the pictures that take a step together; a larger picture goes alone. "
        "In bfloat16 a picture that shares its steps differs in the last bits from itself alone, and from another attempt at it. "
        "0: each alone in bfloat16; in float32 512 on a CPU, 4096 on a GPU.",
    )
    decoder_checkpoint_steps: int = Field(
        default=10,
        ge=0,
        le=1000,
        description="Denoising steps of a picture that are computed twice at most when its worker dies: its checkpoints are a step closer "
        "together, which is taken while one is stored, and for `quality: fast` a multiple of 5. 0: none is kept.",
    )
    vae_tiling: int = Field(
        default=0,
        ge=0,
        le=1 << 30,
        description="Pixels (height times width) above which a picture is decoded in tiles, which saves memory and changes it a little. "
        "0: never.",
    )
    reference_cache_bytes: int = Field(
        default=1 << 30,
        ge=0,
        le=1 << 40,
        description="Device memory, in bytes, for encoded sources and projected prompts of pictures that are done, for those to come. "
        "A source of 1024x1024 pixels takes 2 GB with the published model; whatever this says, it stays while pictures in hand want it.",
    )
    decoder_previews: int = Field(
        default=2, ge=0, le=MAX_PREVIEWS, description="Previews of a picture on its way, where the customer asked for previews. 0: none."
    )
    fast_cache_threshold: float = Field(
        default=0.12,
        ge=0,
        le=1,
        description="For pictures of `quality: fast` alone: relative change of the first block's part up to which the other blocks of the"
        " transformer are skipped. 0: none is. Give all decoder workers the same.",
    )
    fast_guidance_from: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="For pictures of `quality: fast` alone: noise level (1 at the first step, near 0 at the last) below which there is no"
        " guidance, which halves a step. 0: down to the end.",
    )
    fast_guidance_to: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="For pictures of `quality: fast` alone: noise level above which there is no guidance. 1: from the first step on.",
    )
    preview_max_px: int = Field(default=256, ge=32, le=2048, description="Longest side of a preview, in pixels.")

    @model_validator(mode="after")
    def _interval_is_one(self) -> Self:
        if self.fast_guidance_from > self.fast_guidance_to:
            raise ValueError("GLMQ_FAST_GUIDANCE_FROM may not be above GLMQ_FAST_GUIDANCE_TO")
        return self
