"""The random-weight miniature as the decoder's own nets, and as the reference pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import GlmImagePipeline

from services.decoder_worker.engine import DecoderEngine
from services.decoder_worker.weights import DecoderModel, load_decoder_model


@pytest.fixture(scope="session")
def model(miniature: Path) -> DecoderModel:
    return load_decoder_model(miniature, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def reference(miniature: Path) -> Any:
    """diffusers' pipeline with the decoder half only."""
    pipeline = GlmImagePipeline.from_pretrained(miniature, vision_language_encoder=None, processor=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def engine(model: DecoderModel) -> Iterator[DecoderEngine]:
    engine = DecoderEngine(model)
    engine.start()
    yield engine
    engine.close()
