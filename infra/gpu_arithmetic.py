"""
What the published model needs of a GPU, by arithmetic: memory, floors of time, and how many decoders one AR worker feeds.

Plain numbers from the shapes of the published configuration, compared in a test with the nets' own classes. What was measured, on an H100
with random weights of these shapes, says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.grid import PATCH_PX, TOKEN_PX, TokenGrid

PROMPT_TOKENS = 150
GLYPH_TOKENS = 64
STEPS = 50
"""Of the examples: a prompt of a few sentences, a few quoted words, the published number of steps."""

WIDTH = 4096
HEAD_WIDTH = 128
AR_LAYERS, AR_KV_HEADS, AR_FF = 40, 2, 13_696
VISION_VOCAB, AR_VOCAB = 16_512, 168_064
DIT_LAYERS = 30

AR_LAYER_WEIGHTS = AR_LAYERS * (2 * WIDTH**2 + 2 * WIDTH * AR_KV_HEADS * HEAD_WIDTH + 3 * WIDTH * AR_FF)
"""Query and output, key and value, and the three of the feed-forward: what is quantised."""

AR_STEP_WEIGHTS = AR_LAYER_WEIGHTS + VISION_VOCAB * WIDTH
"""Read for one token of each slot: the layers and the vision head. Of the embeddings only rows are."""

AR_WEIGHTS = 10_114_000_000
VISION_TOWER_WEIGHTS = 1_160_000_000
DIT_WEIGHTS = 6_926_882_880
DIT_BLOCK_WEIGHTS = DIT_LAYERS * 12 * WIDTH**2
"""Attention and feed-forward: what is quantised."""

VAE_WEIGHTS = 406_100_643
GLYPH_ENCODER_WEIGHTS = 218_000_000
LARGEST_LAYER_WEIGHTS = 4 * WIDTH**2

KV_BYTES_PER_TOKEN = AR_LAYERS * 2 * AR_KV_HEADS * HEAD_WIDTH * 2
REFERENCE_BYTES_PER_PATCH = DIT_LAYERS * 2 * WIDTH * 2

VAE_MAPS_BYTES_PER_PX = 3 * 512 * 2
"""What `vae.decode` itself keeps at its peak, in bfloat16: three maps of 512 channels at full size. Counted on the class."""

VAE_BYTES_PER_PX = 4870
"""Peak of `vae.decode` in bfloat16, with what cuDNN takes for its convolutions. Measured, the same at 256 to 2048 pixels square."""

DIT_BYTES_PER_PATCH = 15.5 * WIDTH * 2
"""
Peak of one pass of the DiT in bfloat16, without the scores, which flash kernels do not keep. Counted on the class; measured, it was a tenth
less.
"""

CONTEXT_BYTES = 1.0e9
"""CUDA context, kernels and workspaces. Guess, unmeasured."""

REFERENCE_CACHE_BYTES = 1 << 30
"""What the decoder keeps for pictures to come unless told otherwise (`GLMQ_REFERENCE_CACHE_BYTES`)."""

GB = 1e9


@dataclass(frozen=True)
class Gpu:
    """Peak figures of a GPU: dense bfloat16 FLOP/s and bytes/s of its memory."""

    flops: float
    bandwidth: float


H100 = Gpu(flops=990e12, bandwidth=3.35e12)
"""H100 SXM, as its data sheet says."""


@dataclass(frozen=True)
class Efficiency:
    """Shares of the GPU's peak that are reached: of its bandwidth by the AR model, of its FLOP/s by the decoder."""

    ar: float
    decoder: float


IDEAL = Efficiency(1.0, 1.0)
REACHED = Efficiency(0.4, 0.42)
"""
Measured, without the reading of prompts: 64 rows halfway to 1024 pixels square, draws included; the DiT at 1024 pixels square, where it is
0.30 at 512 and 0.46 at 2048. vLLM reaches 0.65 to 0.77 of the bandwidth on comparable nets.
"""


def num_ar_tokens(side_px: int) -> int:
    """Tokens that are written for a square picture from text: draft and grid."""
    grid = TokenGrid(side_px // TOKEN_PX, side_px // TOKEN_PX)
    return grid.num_draft_tokens(0) + grid.num_tokens


def num_patches(side_px: int) -> int:
    """Image tokens of the DiT."""
    return (side_px // PATCH_PX) ** 2


def kv_bytes(side_px: int) -> int:
    """Keys and values of one slot at the end of its picture."""
    return (PROMPT_TOKENS + num_ar_tokens(side_px)) * KV_BYTES_PER_TOKEN


def ar_bytes(*, eight_bit: bool = False, offload: str = "off") -> float:
    """Weights of the AR worker on its GPU."""
    away = VISION_TOWER_WEIGHTS if offload == "idle" else 0
    return 2.0 * (AR_WEIGHTS - away) - (AR_LAYER_WEIGHTS if eight_bit else 0)


def decoder_bytes(*, eight_bit: bool = False, offload: str = "off") -> float:
    """Weights of the decoder worker on its GPU while it denoises."""
    if offload == "all":
        return 2.0 * LARGEST_LAYER_WEIGHTS
    always = 2.0 * DIT_WEIGHTS - (DIT_BLOCK_WEIGHTS if eight_bit else 0)
    return always if offload == "idle" else always + 2.0 * (VAE_WEIGHTS + GLYPH_ENCODER_WEIGHTS)


def decoder_work_bytes(side_px: int) -> float:
    """What one picture needs beside the weights, at the worst moment: denoising, or the VAE that follows."""
    return max(DIT_BYTES_PER_PATCH * num_patches(side_px), VAE_BYTES_PER_PX * side_px**2)


def reference_bytes(side_px: int) -> int:
    """Keys and values of a source image of this size, kept while pictures read them."""
    return num_patches(side_px) * REFERENCE_BYTES_PER_PATCH


def slots_that_fit(card_gb: float, side_px: int, *, eight_bit: bool) -> int:
    """AR slots beside the weights on a card of so many GB."""
    return max(0, int((card_gb * GB - ar_bytes(eight_bit=eight_bit) - CONTEXT_BYTES) // kv_bytes(side_px)))


def ar_image_s(side_px: int, slots: int, gpu: Gpu = H100) -> float:
    """Least seconds of an AR GPU per picture when all slots are taken: every token's share of a step, and the prompt's prefill."""
    tokens = num_ar_tokens(side_px) + 1  # the reference also writes an end token
    context = PROMPT_TOKENS + tokens / 2
    step_bytes = 2 * AR_STEP_WEIGHTS + slots * context * KV_BYTES_PER_TOKEN
    step_flops = slots * (2 * AR_STEP_WEIGHTS + 4 * WIDTH * AR_LAYERS * context)
    prefill_s = PROMPT_TOKENS * 2 * AR_STEP_WEIGHTS / gpu.flops
    return tokens * max(step_bytes / gpu.bandwidth, step_flops / gpu.flops) / slots + prefill_s


def decoder_step_flops(side_px: int) -> float:
    """One denoising step with guidance: the DiT with the glyphs, and without."""
    return sum(_dit_flops(num_patches(side_px) + text) for text in (GLYPH_TOKENS, 1))


def _dit_flops(tokens: int) -> float:
    return 2.0 * tokens * DIT_BLOCK_WEIGHTS + 4.0 * DIT_LAYERS * WIDTH * tokens**2


def decoder_image_s(side_px: int, gpu: Gpu = H100) -> float:
    """Least seconds of a decoder GPU per picture."""
    return STEPS * decoder_step_flops(side_px) / gpu.flops


def decoders_per_ar(side_px: int, slots: int, efficiency: Efficiency) -> float:
    """Decoder GPUs that one AR GPU keeps busy."""
    return (decoder_image_s(side_px) / efficiency.decoder) / (ar_image_s(side_px, slots) / efficiency.ar)
