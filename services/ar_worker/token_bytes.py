"""How much text one token of a tokenizer holds at most, so that the API can tell without one that a prompt is too long."""

from __future__ import annotations

from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode


def token_bytes(tokenizer: Any) -> tuple[int, ...]:
    """
    Of characters that take 1, 2, 3 and 4 bytes in UTF-8, the most bytes that any token holds. Empty: this tokenizer does not work on bytes.

    Args:
        tokenizer: a fast one of transformers.
    """
    if tokenizer.backend_tokenizer.normalizer is not None:
        return ()  # what it makes of a text may be shorter
    values = {letter: value for value, letter in bytes_to_unicode().items()}
    added = tokenizer.get_added_vocab()
    most = [1, 1, 1, 1]
    for token in tokenizer.get_vocab():
        if token in added:
            continue
        try:
            held = _count(bytes(values[letter] for letter in token))
        except KeyError:
            return ()
        most = [max(pair) for pair in zip(most, held, strict=True)]
    return tuple(most)


def _count(data: bytes) -> list[int]:
    """Bytes by the length of the character that they are of. Those of one that began in the token before may be of any."""
    begun = next((index for index, value in enumerate(data) if value & 0xC0 != 0x80), len(data))
    counts = [0, begun, begun, begun]
    kind = 0
    for value in data[begun:]:
        if value & 0xC0 != 0x80:
            kind = (value >= 0xC0) + (value >= 0xE0) + (value >= 0xF0)
        counts[kind] += 1
    return counts
