"""diffusers' own pipeline around nets that a worker has loaded."""

from __future__ import annotations

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, GlmImagePipeline

from services.ar_worker.weights import ArModel
from services.decoder_worker.weights import DecoderModel


def pipeline_of(ar: ArModel, decoder: DecoderModel) -> Any:
    """The reference, with the very nets of both halves and whatever was done to them, and the published schedule."""
    pipeline = GlmImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear", base_shift=0.25, max_shift=0.75),
        vae=decoder.vae,
        tokenizer=decoder.tokenizer,
        processor=ar.processor,
        text_encoder=decoder.text_encoder,
        vision_language_encoder=ar.net,
        transformer=decoder.transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
