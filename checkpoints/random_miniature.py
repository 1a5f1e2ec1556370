"""
A random-weight miniature of GLM-Image: the published folder layout, the real classes, small configs, weights from one seed.

It draws coloured noise, but every input counts (prompt, glyph texts, prior tokens, sources, seeds), so a wrong turn anywhere in
the pipeline shows as different tokens or pixels. Nothing is downloaded. Knows nothing about workers or jobs.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, GlmImagePipeline, GlmImageTransformer2DModel
from transformers import (
    ByT5Tokenizer,
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    GlmImageProcessor,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil
from transformers.utils.logging import disable_progress_bar

from checkpoints.published import NUM_SPARE, byte_tokenizer, chat_template, scheduler

MAX_PX = 512
"""Largest side of a picture and of a source."""

MIN_SOURCE_PX = 64

_GLMQ_JSON = {
    "name": "random-miniature",
    "steps": 8,
    "guidance_scale": 1.5,
    "default_height_px": 256,
    "default_width_px": 256,
    "max_px": MAX_PX,
}
"""What `shared/checkpoint.py` reads: settings that suit this checkpoint better than the published ones."""


@dataclass(frozen=True)
class Widths:
    """How wide and deep the nets are; the defaults are as small as tests want them. Token grids hold int16: at most 32,768 codes."""

    codebook: int = 256
    ar_hidden: int = 64
    ar_layers: int = 2
    ar_head_dim: int = 16
    ar_ff: int = 128
    dit_layers: int = 2
    dit_heads: int = 4
    dit_head_dim: int = 16

    @property
    def vision_vocabulary(self) -> int:
        return self.codebook + NUM_SPARE


TINY = Widths()


def build(folder: Path, widths: Widths = TINY) -> Path:
    """
    Build the miniature in `folder`, unless it is there already, and return `folder`.

    The folder appears whole: several processes may build at once and the first to finish wins.

    Raises:
        FileExistsError: `folder` holds something else.
    """
    if (folder / "glmq.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, for a rename only works within one file system.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(unfinished, widths)
        unfinished.chmod(0o755)  # mkdtemp lets only its owner in
        unfinished.rename(folder)
    except OSError as error:
        if not (folder / "glmq.json").is_file():
            raise FileExistsError(f"{folder} cannot become the miniature: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(folder: Path, widths: Widths) -> None:
    with _quiet_global_rng():
        pipeline = GlmImagePipeline(
            tokenizer=ByT5Tokenizer(),
            processor=processor(widths),
            text_encoder=_text_encoder(),
            vision_language_encoder=_vision_language_encoder(widths),
            vae=_vae(),
            transformer=_transformer(widths),
            scheduler=scheduler(),
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / "glmq.json").write_text(json.dumps(_GLMQ_JSON, indent=2) + "\n")


@contextmanager
def _quiet_global_rng() -> Iterator[None]:
    """Building a net draws from the global generator; leave it as it was found."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _tokenizer(widths: Widths) -> PreTrainedTokenizerFast:
    """Bytes as text ids."""
    return byte_tokenizer(widths.codebook, is_vision_added=True)


def processor(widths: Widths = TINY) -> GlmImageProcessor:
    """Bytes as text ids behind the codes, and sources of up to `MAX_PX`."""
    images = GlmImageImageProcessorPil(
        patch_size=16, merge_size=1, temporal_patch_size=1, size={"shortest_edge": MIN_SOURCE_PX**2, "longest_edge": MAX_PX**2}
    )
    return GlmImageProcessor(image_processor=images, tokenizer=_tokenizer(widths), chat_template=chat_template(widths.codebook))


def _vision_language_encoder(widths: Widths) -> GlmImageForConditionalGeneration:
    tokenizer = _tokenizer(widths)
    pad_id, eos_id = tokenizer.pad_token_id, widths.codebook + 1
    hidden, head_dim = widths.ar_hidden, widths.ar_head_dim
    vision_hidden = 64
    text = {
        "vocab_size": len(tokenizer),
        "vision_vocab_size": widths.vision_vocabulary,
        "hidden_size": hidden,
        "intermediate_size": widths.ar_ff,
        "num_hidden_layers": widths.ar_layers,
        "num_attention_heads": hidden // head_dim,
        "num_key_value_heads": 2,
        # An 8,000-character prompt of 4-byte characters, a 512 px picture and some sources.
        "max_position_embeddings": 65536,
        # The sections add up to head_dim * partial_rotary_factor / 2.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [head_dim // 8, head_dim // 16, head_dim // 16],
        },
        "pad_token_id": pad_id,
        "eos_token_id": eos_id,
    }
    vision = {"depth": 2, "hidden_size": vision_hidden, "num_heads": 4, "image_size": MAX_PX, "patch_size": 16, "intermediate_size": 128}
    config = GlmImageConfig(
        text_config=text,
        vision_config=vision,
        vq_config={"embed_dim": 32, "num_embeddings": widths.codebook, "latent_channels": vision_hidden},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        image_start_token_id=widths.codebook,
        image_end_token_id=eos_id,
    )
    model = GlmImageForConditionalGeneration(config)
    # Logits wide enough that temperature and top_p matter, flat enough that seeds do.
    _fill(model, seed=1, gains={"lm_head": 2.0, "position_embedding": 0.3})
    model.generation_config.update(
        do_sample=True,
        temperature=0.9,
        top_p=0.75,
        top_k=widths.vision_vocabulary,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        # A trained model ends a picture only when it is full; random weights need to be told.
        suppress_tokens=list(range(widths.codebook, widths.vision_vocabulary)),
    )
    return model


def _text_encoder() -> T5EncoderModel:
    config = T5Config(
        vocab_size=384, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    )
    model = T5EncoderModel(config)
    # The relative bias is all that tells T5 the order of letters; T5 does not divide by sqrt(d_kv), so the queries are small.
    _fill(model, seed=2, gains={"relative_attention_bias": 1.5, ".q.": 0.3})
    return model


def _transformer(widths: Widths) -> GlmImageTransformer2DModel:
    model = GlmImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=widths.dit_layers,
        attention_head_dim=widths.dit_head_dim,
        num_attention_heads=widths.dit_heads,
        text_embed_dim=64,
        time_embed_dim=64,
        condition_dim=16,
        prior_vq_quantizer_codebook_size=widths.codebook,
    )
    # Attention is what carries glyph texts and sources: a few tokens beside many, so it speaks up.
    _fill(model, seed=3, gains={"attn1.to_v": 2.0, "attn1.to_out": 2.0})
    return model


def _vae() -> AutoencoderKL:
    model = AutoencoderKL(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        # Far from 0 and 1, so that leaving them out shows.
        latents_mean=[round(0.3 * math.sin(channel), 4) for channel in range(16)],
        latents_std=[round(1.0 + 0.4 * math.cos(channel), 4) for channel in range(16)],
    )
    # Pixels mostly inside -1..1: a clipped pixel would hide a difference.
    _fill(model, seed=4, gains={"decoder.conv_out": 0.8})
    return model


def _fill(net: torch.nn.Module, seed: int, gains: dict[str, float]) -> None:
    """
    Draw every parameter: matrices and kernels keep the scale of what passes through, norms are one, biases small.

    Each tensor has a generator of its own, seeded by its name, so no library's order of creation matters.

    Args:
        gains: part of a parameter's name -> standard deviation (embeddings), or factor on 1/sqrt(fan-in) (matrices, kernels).
    """
    for module_name, module in net.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{parameter_name}"
            values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed << 32 | zlib.crc32(name.encode())))
            if parameter.ndim == 1:
                values = 1 + 0.1 * values if parameter_name == "weight" else 0.1 * values
            else:
                values *= next((gain for part, gain in gains.items() if part in name), 1.0)
                if not isinstance(module, torch.nn.Embedding):
                    values /= math.sqrt(parameter[0].numel())
            with torch.no_grad():
                parameter.copy_(values)
    net.eval()


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m checkpoints.random_miniature DIR", file=sys.stderr)
        return 2
    disable_progress_bar()
    print(build(Path(arguments[0])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
