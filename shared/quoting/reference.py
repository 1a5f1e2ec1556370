"""
The glyph texts of a prompt: what stands in quotation marks, to be drawn letter by letter. Pure.

Knows four kinds of quotation marks and nothing about bytes, tokens or embeddings. Every pattern excludes its own opening mark
from the text between, so no prompt, however hostile, makes a search longer than the prompt.
"""

from __future__ import annotations

import re

# Source: diffusers pipeline_glm_image.py, `get_glyph_texts`. The model was trained with these patterns in this order, so the
# order and the straight apostrophe (which makes a glyph text of `it's a dog's`) are part of the model, not faults to mend here.
_PATTERNS = (
    re.compile(r"'([^']*)'"),
    re.compile(r"“([^“”]*)”"),
    re.compile(r'"([^"]*)"'),
    re.compile(r"「([^「」]*)」"),
)


def glyph_texts(prompt: str) -> list[str]:
    """
    Find the texts that a prompt asks to be drawn.

    Returns:
        All texts in '…', then all in “…”, then in "…", then in 「…」; inside one kind in the order of the prompt. Empty
        quotations count. An empty list when nothing is quoted.
    """
    return [text for pattern in _PATTERNS for text in pattern.findall(prompt)]
