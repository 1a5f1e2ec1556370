"""Glyph embeddings, compared with the reference's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from services.decoder_worker.glyph import glyph_embeds
from services.decoder_worker.weights import DecoderModel
from shared.cost import num_glyph_tokens
from shared.quoting.reference import glyph_texts


@pytest.mark.parametrize(
    "prompt",
    [
        "nothing quoted",
        'one "word"',
        'two "words" of "unlike length"',
        "three 'a' “bcd” and 「日本語の文字」",
        'an empty "" and a "full" one',
        'a long "' + "text " * 600 + '" beside a "short"',
        'emoji "🎉🎈"',
    ],
)
@torch.inference_mode()
def test_equals_the_reference(model: DecoderModel, reference: Any, prompt: str) -> None:
    """No, one, an even and an odd number of texts, other scripts and over-long texts are encoded as the reference does, bit for bit."""
    texts = glyph_texts(prompt)
    ours = glyph_embeds(model.tokenizer, model.text_encoder, texts)
    assert torch.equal(ours, reference._get_glyph_embeds([prompt]))
    # What predictions count without a tokenizer.
    assert ours.shape[1] == num_glyph_tokens(texts)


@torch.inference_mode()
def test_order_of_letters_counts(model: DecoderModel) -> None:
    """Swapping two letters changes the embedding."""
    ab, ba = (glyph_embeds(model.tokenizer, model.text_encoder, [text]) for text in ("ab", "ba"))
    assert (ab - ba).abs().max() > 1e-3


@torch.inference_mode()
def test_a_prompt_made_to_exhaust_memory_is_encoded_in_parts(model: DecoderModel) -> None:
    """A long text beside very many short ones (hundreds of GiB if padded to one length) gives what each text alone gives."""
    texts = ["long " * 400, *["x"] * 4000]
    together = glyph_embeds(model.tokenizer, model.text_encoder, texts)
    long, short = (glyph_embeds(model.tokenizer, model.text_encoder, [text]) for text in (texts[0], "x"))
    assert torch.allclose(together, torch.cat([long, *[short] * 4000], dim=1), atol=1e-5)
