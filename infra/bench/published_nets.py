"""
Nets of the published shapes with random weights, made on their device within a second: time and memory are those of GLM-Image.

What they draw is noise, but every id and pixel of it depends on all that should count. Knows neither checkpoints nor requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, GlmImageTransformer2DModel
from torch import nn
from transformers import ByT5Tokenizer, GlmImageConfig, GlmImageForConditionalGeneration, T5Config, T5EncoderModel
from transformers.initialization import no_init_weights

from checkpoints import random_miniature
from checkpoints.published import NUM_SPARE, scheduler
from services.ar_worker import weights as ar_weights
from services.ar_worker.weights import ArModel
from services.decoder_worker import weights as decoder_weights
from services.decoder_worker.weights import DecoderModel

CODEBOOK = 16_384

_TEXT_VOCABULARY = 168_064


@dataclass(frozen=True)
class Shapes:
    """
    What makes the nets as large as they are; the defaults are the published ones.

    `text_vocabulary`: 0 for as many as the tokenizer has.
    """

    ar_width: int = 4096
    ar_layers: int = 40
    ar_ff: int = 13_696
    text_vocabulary: int = _TEXT_VOCABULARY
    vision_layers: int = 40
    dit_heads: int = 32
    dit_layers: int = 30
    vae_channels: tuple[int, ...] = (128, 512, 1024, 1024)
    glyph_layers: int = 12


PUBLISHED = Shapes()

NARROW = Shapes(256, 2, 512, 0, 1, 2, 2, (32, 32, 32, 32), 1)
"""For a CPU that only wants to know whether all of this runs."""


def ar_model(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> ArModel:
    """The AR half; its tokenizer knows bytes."""
    processor = random_miniature.processor(random_miniature.Widths(codebook=CODEBOOK))
    tokenizer = processor.tokenizer
    text = {
        "vocab_size": shapes.text_vocabulary or len(tokenizer),
        "vision_vocab_size": CODEBOOK + NUM_SPARE,
        "hidden_size": shapes.ar_width,
        "intermediate_size": shapes.ar_ff,
        "num_hidden_layers": shapes.ar_layers,
        "num_attention_heads": shapes.ar_width // 128,
        "num_key_value_heads": 2,
        "max_position_embeddings": 131_072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]},
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": CODEBOOK + 1,
    }
    vision = {"depth": shapes.vision_layers, "hidden_size": 1536, "num_heads": 16, "patch_size": 16, "intermediate_size": 6144}
    config = GlmImageConfig(
        text_config=text,
        vision_config={**vision, "image_size": 2048},
        vq_config={"embed_dim": 2048, "num_embeddings": CODEBOOK, "latent_channels": 1536},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        image_start_token_id=CODEBOOK,
        image_end_token_id=CODEBOOK + 1,
    )
    with made_on(device, dtype), no_init_weights():
        net = GlmImageForConditionalGeneration(config)
    _fill(net)
    net.generation_config.update(
        do_sample=True,
        temperature=0.9,
        top_p=0.75,
        top_k=CODEBOOK + NUM_SPARE,
        eos_token_id=CODEBOOK + 1,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=list(range(CODEBOOK, CODEBOOK + NUM_SPARE)),
    )
    return ar_weights.describe(net, processor, device, dtype)


def decoder_model(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> DecoderModel:
    """The decoder half."""
    glyphs = {"vocab_size": 384, "d_model": 1472, "d_kv": 64, "d_ff": 3584, "num_heads": 6, "feed_forward_proj": "gated-gelu"}
    with made_on(device, dtype):
        parts: dict[str, Any] = {
            "transformer": transformer(shapes),
            "vae": vae(shapes),
            "text_encoder": T5EncoderModel(T5Config(**glyphs, num_layers=shapes.glyph_layers, tie_word_embeddings=False)),
        }
    for net in parts.values():
        _fill(net)
    schedule_params = decoder_weights.check_scheduler(scheduler())
    return decoder_weights.describe(**parts, tokenizer=ByT5Tokenizer(), schedule_params=schedule_params, device=device, dtype=dtype)


def transformer(shapes: Shapes = PUBLISHED) -> GlmImageTransformer2DModel:
    """The DiT, as torch makes it."""
    return GlmImageTransformer2DModel(
        num_layers=shapes.dit_layers, num_attention_heads=shapes.dit_heads, attention_head_dim=128, time_embed_dim=512, condition_dim=256
    )


def vae(shapes: Shapes = PUBLISHED) -> AutoencoderKL:
    """The VAE, as torch makes it, with latents as they are."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=shapes.vae_channels,
        layers_per_block=3,
        latent_channels=16,
        norm_num_groups=32,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
    )


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Nets made here lie on that device; on `meta` they have shapes and no numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _fill(net: nn.Module) -> None:
    """Random weights that keep the scale of what passes through; logits wide enough that temperature and top_p matter."""
    for name, module in net.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 1:
                nn.init.constant_(parameter, float(parameter_name == "weight"))
            else:
                gain = 2.0 if "lm_head" in name else 1.0
                nn.init.normal_(parameter, std=1.0 if isinstance(module, nn.Embedding) else gain / math.sqrt(parameter[0].numel()))
    net.eval().requires_grad_(False)
