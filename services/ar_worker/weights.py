"""
The AR half of a checkpoint -> the net and its processor on a device, or a clear refusal to start.

Knows the published folder layout and the library versions that work. Loads vision_language_encoder and processor, never the
decoder half; from local safetensors only, so that loading runs no code of the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GlmImageForConditionalGeneration, GlmImageProcessor

from services.ar_worker.sampling import SamplingRules
from shared.errors import StartupError
from shared.net_loading import choose_device, choose_dtype, load_net, load_part

_PROVED_TRANSFORMERS = "5.17.0"
"""What glmq's tokens are proved against. 5.0 has the first GLM-Image; 5.18 changed what image features look like (MODEL.md section 0)."""


@dataclass(frozen=True)
class ArModel:
    """
    The AR net with its processor, and what the engine asks them for again and again.

    Attributes:
        control_ids: ids that a prompt's own text must not contain: vision ids and every special token.
        max_positions: longest sequence, prompt and generated ids together.
    """

    net: Any
    processor: Any
    rules: SamplingRules
    control_ids: frozenset[int]
    codebook_size: int
    image_token_id: int
    image_start_token_id: int
    image_end_token_id: int
    max_positions: int
    num_layers: int
    device: torch.device
    dtype: torch.dtype


def check_versions(transformers_version: str = transformers.__version__) -> None:
    """
    Refuse a transformers that has no GLM-Image or another one than this worker was written for.

    Raises:
        StartupError: with the command that installs the proved version.
    """
    major, minor = (int(part) for part in transformers_version.split(".")[:2])
    if not (5, 0) <= (major, minor) <= (5, 17):
        raise StartupError(
            f"transformers {transformers_version} does not fit the AR worker: 5.0 to 5.17 do, {_PROVED_TRANSFORMERS} is proved."
            f" Run: pip install transformers=={_PROVED_TRANSFORMERS}"
        )


def load_ar_model(checkpoint_path: Path, device: str = "auto", dtype: str = "auto") -> ArModel:
    """
    Load the AR half from a folder in the published layout.

    Args:
        device: `auto` (cuda where there is one, else cpu) or a torch device.
        dtype: `auto` (bfloat16 on cuda, float32 elsewhere), `float32` or `bfloat16`.
    Raises:
        StartupError: a wrong version, a missing or broken part, or sampling settings that the engine does not know.
    """
    check_versions()
    # Bars drawn with carriage returns would end up between the worker's structured log lines.
    transformers.utils.logging.disable_progress_bar()
    on_device = choose_device(device)
    in_dtype = choose_dtype(dtype, on_device)
    processor = load_part(GlmImageProcessor, checkpoint_path / "processor")
    net = load_net(GlmImageForConditionalGeneration, checkpoint_path / "vision_language_encoder", on_device, in_dtype)
    return _describe(net, processor, on_device, in_dtype)


def _describe(net: Any, processor: Any, device: torch.device, dtype: torch.dtype) -> ArModel:
    config, text_config, tokenizer = net.config, net.config.text_config, processor.tokenizer
    codebook_size = config.vq_config.num_embeddings
    for fits, sentence in (
        (codebook_size <= 2**15, "the codebook has more ids than the int16 of a token grid can name"),
        (codebook_size <= text_config.vision_vocab_size, "the codebook is larger than the vision vocabulary"),
        (processor.image_token_id == config.image_token_id, "tokenizer and model differ in the image token"),
        (tokenizer.bos_token_id == config.image_start_token_id, "tokenizer and model differ in the image start token"),
        (config.image_start_token_id >= codebook_size, "the image start token is a code"),
    ):
        if not fits:
            raise StartupError(f"the parts of the checkpoint do not fit: {sentence}")
    special_ids = {*tokenizer.all_special_ids, *tokenizer.added_tokens_encoder.values()}
    return ArModel(
        net=net,
        processor=processor,
        rules=SamplingRules.read(net.generation_config, codebook_size, text_config.vision_vocab_size, device),
        control_ids=frozenset(special_ids | set(range(text_config.vision_vocab_size))),
        codebook_size=codebook_size,
        image_token_id=config.image_token_id,
        image_start_token_id=config.image_start_token_id,
        image_end_token_id=config.image_end_token_id,
        max_positions=text_config.max_position_embeddings,
        num_layers=text_config.num_hidden_layers,
        device=device,
        dtype=dtype,
    )
