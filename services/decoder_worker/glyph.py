"""
Glyph texts -> glyph embeddings: the text prefix that tells the DiT how to spell.

Knows the byte tokenizer, the glyph encoder and the reference's padding habits; not where the texts come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from shared.cost import MAX_GLYPH_TOKENS

_MAX_ATTENTION_PAIRS = 4 * MAX_GLYPH_TOKENS**2
"""Most (texts x longest x longest) encoded at once: 0.4 GiB of scores in byt5-small's 6 heads, far above any honest prompt."""


def glyph_token_rows(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """
    Token ids of each text, as they are encoded; no text stands for one empty text.

    Source: diffusers pipeline_glm_image.py, `_get_glyph_embeds`.
    """
    rows: list[list[int]] = tokenizer(list(texts) or [""], max_length=MAX_GLYPH_TOKENS, truncation=True).input_ids
    # The reference takes the parity of the *number of texts*, where the length of a text may have been meant. The model was
    # trained so: an even number of texts gets one pad before each.
    prefix = [tokenizer.pad_token_id] * ((len(rows) + 1) % 2)
    return [prefix + row for row in rows]


def glyph_embeds(tokenizer: Any, text_encoder: Any, texts: Sequence[str]) -> Tensor:
    """
    Encode the texts one by one and join them.

    Returns:
        [1, S, text_embed_dim], S the bytes, end marks and pads of all texts.
    """
    rows = glyph_token_rows(tokenizer, texts)
    return torch.cat([_encode(text_encoder, group, tokenizer.pad_token_id) for group in _row_groups(rows)]).unsqueeze(0)


def _encode(text_encoder: Any, rows: list[list[int]], pad_token_id: int) -> Tensor:
    """[sum of row lengths, text_embed_dim]: the rows padded on the right, encoded together, and the padding dropped again."""
    longest = max(len(row) for row in rows)
    input_ids = torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in rows], device=text_encoder.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=text_encoder.device)
    return text_encoder(input_ids, attention_mask=mask).last_hidden_state[mask.bool()]


def _row_groups(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    """
    Split the texts, in order, where encoding them together would take too much memory.

    The reference encodes all at once. A prompt of one long quotation and thousands of empty ones would then need hundreds of GiB;
    such a prompt alone is split, and differs from the reference by rounding (texts never see one another).
    """
    group: list[list[int]] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row))
        if group and (len(group) + 1) * longest**2 > _MAX_ATTENTION_PAIRS:
            yield group
            group, longest = [], len(row)
        group.append(row)
    yield group
