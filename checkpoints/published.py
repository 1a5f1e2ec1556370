"""
What every checkpoint made here has in common with the published GLM-Image: special tokens, tokenizer, chat template, scheduler.

Knows no sizes, no words and no weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import FlowMatchEulerDiscreteScheduler
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

NUM_SPARE = 128
"""Vision ids that are no codes: start, end and 126 spare ones, as in the published 16384 + 128."""

_END_OF_TEXT = "<|endoftext|>"

# GLM-4's special tokens in GLM-4's order; the published ids are these, shifted by the vision vocabulary.
_SPECIAL_TOKENS = [
    *(_END_OF_TEXT, "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>"),
]


def image_ends(num_codes: int) -> tuple[str, str]:
    """The tokens around a source image, the first two after the codes."""
    return f"<|dit_token_{num_codes}|>", f"<|dit_token_{num_codes + 1}|>"


def chat_template(num_codes: int) -> str:
    """Source images as their marker between the image's ends, text as it is."""
    start, end = image_ends(num_codes)
    return (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + start + "<|image|>" + end + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )


def byte_tokenizer(
    num_codes: int,
    *,
    words: Sequence[str] = (),
    merges: Sequence[tuple[str, str]] = (),
    ignore_merges: bool = False,
    split: Sequence[pre_tokenizers.PreTokenizer] = (),
    is_vision_added: bool = False,
) -> PreTrainedTokenizerFast:
    """
    Vision ids first, then bytes and whole words, special ids last, so every Unicode prompt tokenises.

    Args:
        words: tokens of their own beside the bytes, in the byte-level alphabet.
        merges, ignore_merges: of the byte pair encoding.
        split: what parts a text before it becomes bytes.
        is_vision_added: vision ids are added tokens, which a text can spell; else all but the image's ends are plain vocabulary.
    """
    vision_tokens = [f"<|dit_token_{i}|>" for i in range(num_codes + NUM_SPARE)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*vision_tokens, *alphabet, *dict.fromkeys(words), *_SPECIAL_TOKENS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), ignore_merges=ignore_merges))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, to_bytes]) if split else to_bytes
    tokenizer.decoder = decoders.ByteLevel()
    special = [*(vision_tokens if is_vision_added else image_ends(num_codes)), *_SPECIAL_TOKENS]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=image_ends(num_codes)[0],
        eos_token=_END_OF_TEXT,
        pad_token=_END_OF_TEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"},
    )


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The published values."""
    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256, base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )
