"""Prompts as a reader sees them, and what the model gets so that it draws just that."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.quoting.reading import MAX_TEXT_BYTES, UnquotableTextError, read_prompt
from shared.quoting.reference import glyph_texts

_MARKS = st.text(alphabet=st.sampled_from("'\"＂“”‘’„«»『』「」〝〟 an5s字.,"), max_size=60)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a „Hallo“ sign", ["Hallo"]),
        ("a „Hallo” sign", ["Hallo"]),
        ("a «bonjour» sign", ["bonjour"]),
        ("a »Angebot« sign", ["Angebot"]),
        ("a ‘hello’ sign", ["hello"]),
        ("a ‘don’t’ sign", ["don’t"]),
        ("一张『你好』海报", ["你好"]),
        ("一张写着＂你好＂和＂再见＂的海报", ["你好", "再见"]),
        ("a ＂full＂ sign and a 5＂ pipe", ["full"]),
        ("〝春〟と﹁夏﹂と﹃秋﹄", ["春", "夏", "秋"]),
        ("a “hello” sign", ["hello"]),
        ('a "hello" sign', ["hello"]),
        ("a 'hello' sign", ["hello"]),
        ("a sign that says 'rock 'n' roll'", ["rock 'n' roll"]),
        ("'Rock 'n' Roll' and 'Drum 'n' Bass'", ["Rock 'n' Roll", "Drum 'n' Bass"]),
        ("a sign that says ‘rock ’n’ roll’", ["rock ’n’ roll"]),
        ("a shirt with 'plan 'B''", ["plan 'B'"]),
        ("the dogs' 'A' team and 'B'", ["A", "B"]),
        ("say 'a' and the dogs' names", ["a"]),
        ("一张「你好」海报", ["你好"]),
        ("it's a dog's \"B\" sign", ["B"]),
        ("the dogs' toys and the cats' food", []),
        ("a sign that says 'Don't stop'", ["Don't stop"]),
        ("a sign that reads 'Joe's Bar' and 'Tom's Diner'", ["Joe's Bar", "Tom's Diner"]),
        ("“Don't” and “can't”", ["Don't", "can't"]),
        ("the Smiths' sign 'OPEN' and James' \"CLOSED\"", ["OPEN", "CLOSED"]),
        ('a 5" pipe', []),
        ('a 5"x7" print', []),
        ('a 5" x 7" print', []),
        ('"Route 66" and a 5" pipe', ["Route 66"]),
        ('a label "a 5" pipe"', ['a 5" pipe']),
        ("a man, 6' tall, with a 5' pole", []),
        ("a sign saying \"He said 'hi' twice\"", ["He said 'hi' twice"]),
        ("'a poster that says \"SALE\"'", ["SALE"]),
        ('海报，标题"春"，副标题“四月”', ["春", "四月"]),
        ("a class of '99 reunion banner", []),
        ("", []),
    ],
)
def test_reads_as_a_person_does(prompt: str, texts: list[str]) -> None:
    """Every style of quotation works, and apostrophes and inch marks are what they are."""
    assert Counter(read_prompt(prompt).glyph_texts) == Counter(texts)


@pytest.mark.parametrize("prompt", ["a cat", "a \"B\" and “C” and 'D' 「E」", "it's a cat", 'a 5" pipe', "a “two\nlines” sign"])
def test_a_prompt_without_traps_stays(prompt: str) -> None:
    """Where the reference's parser finds what a reader does, prompt, texts and their order are the reference's."""
    reading = read_prompt(prompt)
    assert reading.prompt == prompt
    assert list(reading.glyph_texts) == glyph_texts(prompt)
    assert reading.is_reference
    assert not reading.notices


@pytest.mark.parametrize(
    ("prompt", "rewritten"),
    [
        ("a „Hallo“ sign", "a “Hallo” sign"),
        ("一张『你好』海报", "一张「你好」海报"),
        ("一张＂你好＂海报", "一张“你好”海报"),
        ("〝春〟と﹁夏﹂", "「春」と「夏」"),
        ("it's a dog's \"B\"", 'it’s a dog’s "B"'),
        ('a 5" x 7" print', "a 5″ x 7″ print"),
        ("a sign that says 'Don't stop'", 'a sign that says "Don\'t stop"'),
        ("“Don't” and “can't”", "“Don't” and “can't”"),
    ],
)
def test_rewrites_only_marks(prompt: str, rewritten: str) -> None:
    """Traps are mended by other marks where that can be proved to help; otherwise the prompt stays."""
    assert read_prompt(prompt).prompt == rewritten


@pytest.mark.parametrize(
    ("prompt", "code", "is_fixed"),
    [
        ("it's a dog's \"B\"", "apostrophe", True),
        ("rock 'n' roll", "apostrophe", False),
        ('a 5" x 7" print', "inch_mark", True),
        ("a «bonjour» sign", "unsupported_quotes", True),
        ("a ＂full＂ sign", "unsupported_quotes", True),
        ("a ＂full sign", "unclosed_quote", False),
        ("a sign saying \"He said 'hi' twice\"", "nested_quotes", True),
        ("'a poster that says \"SALE\"'", "nested_quotes", True),
        ('a sign that says "hello', "unclosed_quote", False),
        ("a sign that says hello", "unquoted_text", False),
        ("一张写着你好的海报", "unquoted_text", False),
        ("a “he\u200bllo” sign", "invisible_characters", False),
        (f'a "{"x" * (MAX_TEXT_BYTES + 1)}" sign', "text_too_long", False),
    ],
)
def test_says_what_may_surprise(prompt: str, code: str, is_fixed: bool) -> None:
    """A notice for each trap, with its place, and whether it was mended."""
    notice = next(notice for notice in read_prompt(prompt).notices if notice.code == code)
    assert notice.is_fixed is is_fixed
    assert notice.message
    assert notice.position is not None
    assert 0 <= notice.position < len(prompt)


@given(_MARKS | st.text(max_size=40))
def test_reference_mode_is_the_reference(prompt: str) -> None:
    """With the reference's parser nothing is changed, whatever the prompt."""
    reading = read_prompt(prompt, parser="reference")
    assert (reading.prompt, list(reading.glyph_texts), reading.is_reference) == (prompt, glyph_texts(prompt), True)


@given(_MARKS, st.lists(_MARKS.filter(str.strip), max_size=4))
def test_texts_are_drawn_exactly(prompt: str, texts: list[str]) -> None:
    """Whatever they hold: each text that was sent apart is among the glyph texts, as often as it was sent, and nothing is added."""
    alone, together = read_prompt(prompt), read_prompt(prompt, texts)
    wanted = Counter(texts) | Counter(alone.glyph_texts)
    assert Counter(together.glyph_texts) == wanted
    assert all(text in together.prompt for text in texts)


@given(_MARKS, st.lists(_MARKS.filter(str.strip), max_size=3))
def test_a_reading_says_truly_whose_it_is(prompt: str, texts: list[str]) -> None:
    """`is_reference` is a promise: the reference's own pipeline, given the prompt, draws the same texts in the same order."""
    reading = read_prompt(prompt, texts)
    if reading.is_reference:
        assert list(reading.glyph_texts) == glyph_texts(reading.prompt)


@pytest.mark.parametrize("prompt", ["it's a dog's \"B\" and 'x", '«a» and "b', "a sign \"He said 'hi'\" “"])
def test_nothing_is_mended_for_sure_beside_a_lone_mark(prompt: str) -> None:
    """Where a mark has no partner, no warning says that the picture has what a reader expects."""
    notices = read_prompt(prompt).notices
    assert len(notices) > 1
    assert "unclosed_quote" in {notice.code for notice in notices}
    assert not any(notice.is_fixed for notice in notices)


@pytest.mark.parametrize(
    ("texts", "prompt"),
    [
        (["SALE"], 'a poster, with the text "SALE"'),
        (["SALE", "50 %"], 'a poster, with the text "SALE" and "50 %"'),
        (["a", "b", "c"], 'a poster, with the text "a", "b" and "c"'),
        (['a 5" pipe'], 'a poster, with the text “a 5" pipe”'),
    ],
)
def test_texts_are_placed(texts: list[str], prompt: str) -> None:
    """In marks that the reference's parser reads back, none of which the text itself has."""
    reading = read_prompt("a poster.", texts)
    assert reading.prompt == prompt
    assert list(reading.glyph_texts) == texts
    assert reading.is_reference


def test_a_text_that_is_quoted_already_is_not_placed_again() -> None:
    """Once in the prompt is enough."""
    assert read_prompt('a "SALE" poster', ["SALE"]).prompt == 'a "SALE" poster'


def test_reference_mode_cannot_take_every_text() -> None:
    """It has only the prompt to tell the model by, and says which text is too much for that."""
    assert read_prompt("a poster", ["A"], "reference").glyph_texts == ("A",)
    with pytest.raises(UnquotableTextError) as caught:
        read_prompt("a poster", ["A", "He said \"hi\" and 'ho' “hu” 「he」"], "reference")
    assert caught.value.index == 1


@pytest.mark.parametrize("letters", ["'", '"', "“", "‘", "„", "「", "'a ", '"5', "“a” "])
def test_a_prompt_of_marks_alone_is_read_in_no_time(letters: str) -> None:
    """A prompt of the greatest length made of marks is read within a fraction of a second."""
    started = time.process_time()
    read_prompt((letters * 8000)[:8000], ["\"x\" 'y'"] * 16)
    assert time.process_time() - started < 2
