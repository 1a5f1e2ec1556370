"""
Is a prompt too long for the model, for certain? Knows no tokenizer: only what the AR worker tells of its own.

A bound from below: what passes may still be too long, and then its job fails with the same code.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.api.field_errors import FieldError, InvalidFieldsError
from shared.checkpoint import ModelInfo
from shared.lifecycle.new_job import NewJob


def check_prompt_length(job: NewJob, info: ModelInfo) -> None:
    """
    Raises:
        InvalidFieldsError: `unprocessable_prompt`; no worker has room for so many tokens.
    """
    num_picture = job.grid.num_tokens + job.grid.num_draft_tokens(len(job.sources))
    if info.max_tokens is None or not info.token_bytes:
        return
    least = least_tokens(job.prompt, info.token_bytes)
    if least + num_picture > info.max_tokens:
        raise InvalidFieldsError(
            [
                FieldError(
                    ("prompt",),
                    "too_many_tokens",
                    f"prompt: takes {least} tokens or more, and beside the {num_picture} of a picture of this size there is room for"
                    f" {max(0, info.max_tokens - num_picture)}; letters of other scripts than Latin, and emoji, take several each",
                    "unprocessable_prompt",
                )
            ]
        )


def least_tokens(text: str, token_bytes: Sequence[int]) -> int:
    """
    How many tokens a text takes at least.

    Args:
        token_bytes: of characters of 1, 2, 3 and 4 bytes, the most bytes that one token holds.
    """
    if text.isascii():
        return -(-len(text) // token_bytes[0])
    counts = [0, 0, 0, 0]
    for letter in text:
        counts[(letter > "\x7f") + (letter > "\u07ff") + (letter > "\uffff")] += 1
    return max(-(-count * size // most) for size, (count, most) in enumerate(zip(counts, token_bytes, strict=True), 1))
