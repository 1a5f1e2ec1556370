"""Glyph texts, compared with the reference's own function."""

from __future__ import annotations

import pytest
from diffusers import GlmImagePipeline
from hypothesis import given
from hypothesis import strategies as st

from shared.quoting.reference import glyph_texts

_CORPUS = [
    "",
    "a cat on a mat",
    'a sign that says "OPEN"',
    "a 'small' and a “large” and a \"straight\" and a 「角」",
    "it's a dog's \"B\" then “C” and 'D' 「E」",
    "海报，标题「春の音楽会」，副标题“四月十二日”",
    '"" and “” and 「」 and ' + "''",
    '"unfinished',
    "“outer “inner” tail”",
    "「外「内」尾」",
    '"two\nlines"',
    '"‘curly singles’ are no marks" ‘so’',
    "\"a 'b' c\" '“x”'",
    "rock 'n' roll in the '90s",
    "🎉 \"🎉é\u0301\" '\x00'",
    "'" * 5 + '"' * 7 + "“" * 3 + "「" * 4,
]


def _reference(prompt: str) -> list[str]:
    # The method uses nothing of the pipeline, so none is made.
    texts: list[str] = GlmImagePipeline.get_glyph_texts(None, prompt)[0]
    return texts


@pytest.mark.parametrize("prompt", _CORPUS)
def test_equals_the_reference_on_a_corpus(prompt: str) -> None:
    """Every kind of quotation, nested, empty, unfinished or in a foreign script, gives the texts of the reference."""
    assert glyph_texts(prompt) == _reference(prompt)


@given(st.text(alphabet=st.sampled_from("'\"“”「」 a\n字")) | st.text())
def test_equals_the_reference_on_any_text(prompt: str) -> None:
    """No prompt exists for which the texts or their order differ from the reference's."""
    assert glyph_texts(prompt) == _reference(prompt)


def test_kinds_come_in_the_order_of_the_reference() -> None:
    """Texts are ordered by kind of mark first, and an apostrophe opens a quotation."""
    assert glyph_texts("it's a dog's \"B\" then “C” and 'D' 「E」") == ["s a dog", "D", "C", "B", "E"]


def test_a_prompt_of_marks_alone_is_read_in_no_time() -> None:
    """A prompt of the greatest length made only of opening marks takes no longer than any other."""
    assert glyph_texts("“「" * 4000) == []
