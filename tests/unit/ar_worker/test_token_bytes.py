"""What the AR worker tells of its tokenizer, and what the API makes of it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from services.api.prompt_length import least_tokens
from services.ar_worker.token_bytes import token_bytes
from services.ar_worker.weights import ArModel

LETTERS = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
WORDS = ("fox", " ", "ñandú", "世界", "🦊", "“open”", "Ж", "a\u0301", "\n", "😀😀")


def byte_level(*merges: tuple[str, str], normalizer: Any = None) -> PreTrainedTokenizerFast:
    """A tokenizer that works on bytes."""
    vocabulary = {**LETTERS, **{a + b: len(LETTERS) + index for index, (a, b) in enumerate(merges)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_letters_and_merges_are_counted_by_the_length_of_their_character() -> None:
    """A token that begins within a character may be of any that has several bytes."""
    assert token_bytes(byte_level()) == (1, 1, 1, 1)
    [(fox, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("🦊")
    tokenizer = byte_level(("f", "o"), ("fo", "x"), (fox[1], fox[2]), (fox[0], fox[1] + fox[2]))
    assert token_bytes(tokenizer) == (3, 2, 2, 3)


def test_a_tokenizer_of_another_kind_tells_nothing() -> None:
    """Neither one that rewrites its text nor one whose tokens are no bytes."""
    assert token_bytes(byte_level(normalizer=normalizers.NFKC())) == ()
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"界": 0, "[UNK]": 1}, "[UNK]")))
    assert token_bytes(words) == ()


@pytest.mark.parametrize("seed", range(20))
def test_no_text_takes_fewer_tokens(ar_model: ArModel, seed: int) -> None:
    """The bound holds for texts of every script, and tells exactly of emoji that the tokenizer has no token for."""
    tokenizer = ar_model.processor.tokenizer
    held = token_bytes(tokenizer)
    text = "".join(random.Random(seed).choices(WORDS, k=50))
    assert 0 < least_tokens(text, held) <= len(tokenizer(text, add_special_tokens=False)["input_ids"])
    emoji = "🦊" * 100
    assert least_tokens(emoji, held) == len(tokenizer(emoji, add_special_tokens=False)["input_ids"])
