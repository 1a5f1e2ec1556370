"""The miniature's networks: GLM-Image's own classes with small configs, untrained, and how the training starts them."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, GlmImageTransformer2DModel
from tokenizers import Regex, pre_tokenizers
from transformers import (
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    GlmImageProcessor,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil

from checkpoints.published import NUM_SPARE, byte_tokenizer, chat_template
from checkpoints.train.codes import CODEBOOK_SIZE

LATENT_CHANNELS = 16
GLYPH_DIM = 128
DIT_DIM = 192
DIT_LAYERS = 6


def glyph_encoder() -> T5EncoderModel:
    """ByT5's byte ids (byte + 3) -> embeddings (B, bytes + 1, 128)."""
    net = T5EncoderModel(
        T5Config(
            vocab_size=384,
            d_model=GLYPH_DIM,
            d_kv=32,
            d_ff=384,
            num_layers=4,
            num_heads=4,
            relative_attention_num_buckets=64,
            relative_attention_max_distance=128,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            tie_word_embeddings=False,
        )
    )
    # The relative bias is all that tells T5 the order of letters, and its own start is too flat to be noticed.
    torch.nn.init.normal_(net.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight, std=1.5)
    return net


def transformer() -> GlmImageTransformer2DModel:
    net = GlmImageTransformer2DModel(
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=DIT_LAYERS,
        # QK norm bounds a logit by the root of the head's width: 8 of 64 lets one key stand out among 300.
        attention_head_dim=64,
        num_attention_heads=DIT_DIM // 64,
        text_embed_dim=GLYPH_DIM,
        time_embed_dim=128,
        condition_dim=32,
        prior_vq_quantizer_codebook_size=CODEBOOK_SIZE,
    )
    for block in net.transformer_blocks:
        torch.nn.init.zeros_(block.norm1.linear.weight)
        torch.nn.init.zeros_(block.norm1.linear.bias)
    for layer in (net.norm_out.linear, net.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return net


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 112),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        # Many small groups would take each channel's mean, and with it the colours, out of every picture.
        norm_num_groups=1,
        sample_size=256,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


# ---------------------------------------------------------------- the AR model

VISION_VOCAB_SIZE = CODEBOOK_SIZE + NUM_SPARE

MIN_SOURCE_PX, MAX_SOURCE_PX = 64, 256
"""Sides of a source picture that keep their size on the way to the vision tower."""

SAMPLING = {"temperature": 0.2, "top_p": 0.9}
"""Measured: everything is fixed by the prompt, and another seed changes the picture in the DiT."""

LAYOUT_WORDS = (
    "red blue green yellow orange purple teal black white pink navy gray grey a an the and or of on in at to it its it's with by for "
    "from this that which into as is be should one poster posters sign banner card flyer label picture image cover ad design "
    "billboard page placard leaflet notice board panel print graphic artwork simple bold clean modern plain solid bright minimal "
    "small nice big large dark light deep pale create make design draw please want generate show me give i need would like can you my "
    "our word words text title phrase line lines letter letters lettering type says say saying reads read reading written write "
    "writes spelling printed set placed put sits stands bearing carrying featuring titled called headline slogan caption message "
    "heading colour color coloured colored background backdrop ground gradient shaded shading fading fades top bottom centre center "
    "middle centred centered upper lower part half very near up down high low above below under over across edge around round border "
    "bordered frame framed outline bar stripe strip rule band thin thick background's change replace turn use move new instead leave "
    "keep everything else same all no without just only"
).split()
"""Words that are one token each outside quotes, in lower case or with a capital. Any other word is spelled."""

_QUOTED = r""" ?(?:'[^']*'|"[^"]*"|“[^“”]*”|「[^「」]*」)"""
_PIECES = r"""\A ?['"“「]| ?(?:[A-Za-z]+(?:'[a-z]+)?|[0-9]+)(?!.*['"”」]\z)|."""
_BYTE_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def tokenizer() -> PreTrainedTokenizerFast:
    """
    Bytes and layout words.

    Quoted text stays one token a byte, and a space that stands alone occurs (but for odd signs) only in it: so the number of words
    of a poster is one more than the number of these tokens.
    """
    space = "Ġ"  # the byte-level name of a space
    spellings = [spelling for word in LAYOUT_WORDS for spelling in (word, word.capitalize()) if len(spelling) > 1]
    wholes = [*dict.fromkeys(spellings), *(str(number) for number in range(10, 65))]
    quotes = ["'", '"', *(_byte_level(sign) for sign in "“”「」")]
    words = [*wholes, *quotes[2:], *(space + word for word in (*wholes, *quotes, *_BYTE_LETTERS))]
    return byte_tokenizer(
        CODEBOOK_SIZE,
        words=words,
        merges=[(space, letter) for letter in _BYTE_LETTERS],
        ignore_merges=True,
        split=[pre_tokenizers.Split(Regex(_QUOTED), "isolated"), pre_tokenizers.Split(Regex(_PIECES), "isolated")],
        # The codes are plain vocabulary: no text spells them, and 13,000 added tokens would be 3 MB of JSON.
        is_vision_added=False,
    )


def _byte_level(sign: str) -> str:
    [(piece, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(sign)
    return str(piece)


def processor() -> GlmImageProcessor:
    """One token is 32 px of a source."""
    images = GlmImageImageProcessorPil(
        patch_size=16, merge_size=1, temporal_patch_size=1, size={"shortest_edge": MIN_SOURCE_PX**2, "longest_edge": MAX_SOURCE_PX**2}
    )
    return GlmImageProcessor(image_processor=images, tokenizer=tokenizer(), chat_template=chat_template(CODEBOOK_SIZE))


def vision_language_encoder() -> GlmImageForConditionalGeneration:
    text = tokenizer()
    end_id, hidden, vision_hidden = CODEBOOK_SIZE + 1, 192, 128
    config = GlmImageConfig(
        text_config={
            "vocab_size": len(text),
            "vision_vocab_size": VISION_VOCAB_SIZE,
            "hidden_size": hidden,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": hidden // 64,
            "num_key_value_heads": hidden // 64,
            # An 8,000-character prompt of 4-byte characters, a picture and some sources.
            "max_position_embeddings": 65536,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000.0,
                "partial_rotary_factor": 1.0,
                # The sections go round the three axes, so each gets high and low frequencies; three long ones would leave
                # the width with frequencies that cannot tell one cell from the next.
                "mrope_section": [2] * 16,
            },
            "pad_token_id": text.pad_token_id,
            "eos_token_id": end_id,
        },
        vision_config={
            # A cell must know how many lines of text stand above it.
            "depth": 3,
            "hidden_size": vision_hidden,
            "num_heads": 4,
            "image_size": MAX_SOURCE_PX // 2,
            "patch_size": 16,
            "intermediate_size": 384,
        },
        vq_config={"embed_dim": 64, "num_embeddings": CODEBOOK_SIZE, "latent_channels": vision_hidden},
        image_token_id=text.convert_tokens_to_ids("<|image|>"),
        image_start_token_id=CODEBOOK_SIZE,
        image_end_token_id=end_id,
    )
    net = GlmImageForConditionalGeneration(config)
    net.generation_config.update(
        do_sample=True,
        **SAMPLING,
        top_k=0,
        eos_token_id=end_id,
        pad_token_id=text.pad_token_id,
        # A picture ends when it is full.
        suppress_tokens=list(range(CODEBOOK_SIZE, VISION_VOCAB_SIZE)),
    )
    return net
