"""
A prompt and the texts to draw in it -> what the engines get, and what the customer should know about it. Pure.

The model draws what the reference's parser finds. Where a reader would find the same, the prompt stays as it is. Where not, and
other quotation marks or apostrophes make the reference's parser find what a reader does, the prompt gets those. Where nothing does,
the texts go to the decoder beside the prompt.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.quoting.marks import Marks, Pair, find_marks
from shared.quoting.reference import glyph_texts

MAX_TEXT_BYTES = 2047
"""Of one text in UTF-8; the glyph encoder cuts the rest. Source: diffusers, `max_sequence_length`, less the end mark."""

GlyphParser = Literal["auto", "reference"]
"""Who reads the quotation marks: a reader, or the reference's patterns as they are."""

Quotes = tuple[str, str]
"""An opening and a closing mark."""

_ENGLISH, _CURLY, _CORNER, _SINGLE = ('"', '"'), ("“", "”"), ("「", "」"), ("'", "'")
_KNOWN: tuple[Quotes, ...] = (_ENGLISH, _CURLY, _CORNER, _SINGLE)
"""The quotation marks of the reference, the least mistakable first."""
_NEAREST = dict.fromkeys("“„‟«»‹›‘‚＂", _CURLY) | dict.fromkeys("「『〝﹁﹃", _CORNER)
_MAX_EXCERPT = 80

# Zero-width and joining characters, the soft hyphen, direction marks, variation selectors of text, tags, private use.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\x01-\x08\x0b-\x1f\x7f-\x9f]"
)
_ASKS_FOR_TEXT = re.compile(
    r"\b(?:says|saying|reads|reading|titled|entitled|labell?ed|captioned|inscribed|spells|spelling|lettered"
    r"|with the (?:words?|text|title|headline|caption|slogan|phrase|lettering))\b\W{0,3}\w|写着|寫著|标题为|标题是|文字为|と書かれた",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Notice:
    """
    Something about the texts of a prompt that may not be as its writer thinks.

    Attributes:
        position: of the mark or text, in characters of the prompt as sent; None where it is about a text that was sent apart.
        is_fixed: the picture will have what a reader expects; otherwise it is up to the writer.
    """

    code: str
    message: str
    text: str | None = None
    position: int | None = None
    is_fixed: bool = False


@dataclass(frozen=True)
class Reading:
    """
    What the engines get.

    Attributes:
        prompt: as sent, or with other marks, and with the texts that were sent apart.
        glyph_texts: what is drawn letter by letter, in the order in which the decoder reads it.
        is_reference: the reference's parser finds just these texts in `prompt`.
    """

    prompt: str
    glyph_texts: tuple[str, ...]
    is_reference: bool
    notices: tuple[Notice, ...]


class UnquotableTextError(ValueError):
    """A text cannot be put into the prompt so that the reference's parser finds it. `index`: which one."""

    def __init__(self, index: int) -> None:
        super().__init__(f"text {index} cannot be quoted so that the reference's parser reads it back")
        self.index = index


def read_prompt(prompt: str, texts: Sequence[str] = (), parser: GlyphParser = "auto") -> Reading:
    """
    Find the texts to draw in a prompt, and place those that were sent apart.

    Args:
        texts: to be drawn exactly, besides those that the prompt quotes; one that it quotes already is not placed again.
    Raises:
        UnquotableTextError: only with `parser="reference"`, which has no other way for a text than the prompt.
    """
    marks = find_marks(prompt)
    meant = [pair.text(prompt) for pair in marks.pairs]
    by_reference = glyph_texts(prompt)
    # Two readings as good as each other: nothing can be proved, so the model's own stands.
    follows_reference = parser == "reference" or marks.is_ambiguous
    if follows_reference:
        meant = by_reference
    written, is_proved = (prompt, True) if follows_reference else _write(prompt, marks, meant)
    wanted = _left_over(texts, meant)
    if parser == "reference":
        for index, text in enumerate(texts):
            if text in wanted and _quote(written, [text], meant) is None:
                raise UnquotableTextError(index)
    placed = _quote(written, wanted, meant) if is_proved else None
    if parser == "reference" and placed is None:
        raise UnquotableTextError(next(index for index, text in enumerate(texts) if text in wanted))
    found = [*meant, *wanted]
    final = placed if placed is not None else _append(written, [f'"{text}"' for text in wanted])
    is_reference = Counter(glyph_texts(final)) == Counter(found)
    notices = _notices(prompt, texts, marks, meant, by_reference, is_followed=follows_reference)
    return Reading(final, tuple(glyph_texts(final) if is_reference else found), is_reference, tuple(notices))


def _write(prompt: str, marks: Marks, meant: Sequence[str]) -> tuple[str, bool]:
    """The prompt as the reference's parser has to see it, with as little changed as will do; and whether it then finds what is meant."""
    wanted = Counter(meant)
    for candidate in _candidates(prompt, marks):
        if Counter(glyph_texts(candidate)) == wanted:
            return candidate, True
    return prompt, False


def _candidates(prompt: str, marks: Marks) -> Iterator[str]:
    yield prompt
    known = {index: quotes for index, pair in enumerate(marks.pairs) if (quotes := _nearest(prompt, pair)) is not None}
    yield _rewrite(prompt, marks, known, is_plain=True)
    yield _rewrite(prompt, marks, known, is_plain=False)
    outside = "".join(prompt[start:end] for start, end in _gaps(prompt, marks.pairs))
    free = {index: _free_quotes(pair.text(prompt), outside) for index, pair in enumerate(marks.pairs)}
    yield _rewrite(prompt, marks, {index: quotes for index, quotes in free.items() if quotes is not None}, is_plain=False)


def _nearest(prompt: str, pair: Pair) -> Quotes | None:
    """The known marks that are most like those of `pair`; None if they are known."""
    written = (prompt[pair.start], prompt[pair.end])
    return None if written in _KNOWN else _NEAREST[written[0]]


def _free_quotes(text: str, outside: str) -> Quotes | None:
    """Marks that occur neither in the text nor, single, around the quotations."""
    return next((quotes for quotes in _KNOWN if not set(quotes) & set(text) and (quotes != _SINGLE or "'" not in outside)), None)


def _gaps(prompt: str, pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    starts = [0, *(pair.end + 1 for pair in pairs)]
    return list(zip(starts, [*(pair.start for pair in pairs), len(prompt)], strict=True))


def _rewrite(prompt: str, marks: Marks, quotes: dict[int, Quotes], *, is_plain: bool) -> str:
    """Other marks around quotations; and unless `is_plain`, apostrophes and inch marks outside of them as what they are."""
    letters = list(prompt)
    for index, (opening, closing) in quotes.items():
        pair = marks.pairs[index]
        letters[pair.start], letters[pair.end] = opening, closing
    if not is_plain:
        inside = _inside(marks.pairs, len(prompt))
        for position in marks.apostrophes:
            if not inside[position]:
                letters[position] = "′" if prompt[position - 1 : position].isdigit() else "’"
        for position in marks.inches:
            if not inside[position]:
                letters[position] = "″"
    return "".join(letters)


def _inside(pairs: Sequence[Pair], length: int) -> bytearray:
    inside = bytearray(length)
    for pair in pairs:
        inside[pair.start : pair.end + 1] = b"\x01" * (pair.end + 1 - pair.start)
    return inside


def _left_over(texts: Sequence[str], meant: Sequence[str]) -> list[str]:
    """The texts that the prompt does not quote already."""
    quoted = Counter(meant)
    left = []
    for text in texts:
        if quoted[text]:
            quoted[text] -= 1
        else:
            left.append(text)
    return left


def _quote(prompt: str, texts: Sequence[str], meant: Sequence[str]) -> str | None:
    """The prompt with the texts in marks that the reference's parser reads back exactly; None if there are none such."""
    if not texts:
        return prompt
    wanted = Counter([*meant, *texts])
    chosen = [_free_quotes(text, prompt) or _KNOWN[0] for text in texts]
    for quotes in (chosen, *([kind] * len(texts) for kind in _KNOWN)):
        candidate = _append(prompt, [opening + text + closing for (opening, closing), text in zip(quotes, texts, strict=True)])
        if Counter(glyph_texts(candidate)) == wanted:
            return candidate
    return None


def _append(prompt: str, quoted: Sequence[str]) -> str:
    """As people write it: `a poster, with the text "A", "B" and "C"`."""
    if not quoted:
        return prompt
    listed = quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
    return f"{prompt.rstrip().removesuffix('.')}, with the text {listed}"


def _notices(
    prompt: str, texts: Sequence[str], marks: Marks, meant: Sequence[str], by_reference: Sequence[str], *, is_followed: bool
) -> Iterator[Notice]:
    readers = [pair.text(prompt) for pair in marks.pairs]
    is_trap = Counter(readers) != Counter(by_reference)
    # With a mark that has no partner nobody knows how a reader would read it.
    is_sure = not is_followed and not marks.strays
    is_fixed = is_trap and is_sure
    outcome = "It is drawn as a reader would read it."
    if is_followed:
        outcome = "The model reads it as quotation marks."
    elif marks.strays:
        outcome = "Another mark has no partner, so it may be read wrongly."
    # `rock 'n' roll` reads as a quotation for everybody who does not know it.
    taken = [pair.start for pair in marks.pairs if pair.text(prompt).lower() == "n" and prompt[pair.start] == "'"]
    if suspects := [*(marks.apostrophes if is_trap else ()), *taken]:
        message = f"An apostrophe can be taken for a quotation mark. {outcome}"
        yield _at(prompt, suspects[0], "apostrophe", message, is_fixed)
    if is_trap and marks.inches:
        at = marks.inches[0]
        yield _at(prompt, at, "inch_mark", f"An inch mark can be taken for a quotation mark. {outcome}", is_fixed)
    for pair in marks.pairs:
        if _nearest(prompt, pair) is not None:
            known = "They are written as marks that it knows." if not is_followed else "What they hold is not drawn as text."
            message = f"The model does not know the quotation marks {prompt[pair.start]}…{prompt[pair.end]}. {known}"
            yield _at(prompt, pair.start, "unsupported_quotes", message, is_sure)
            break
    if marks.nested:
        at = marks.nested[0]
        one = (
            "The whole outer text is drawn, and the inner one not once more."
            if not is_followed
            else "The model may draw the inner text twice."
        )
        yield _at(prompt, at, "nested_quotes", f"There are quotation marks inside a quotation. {one}", is_sure)
    if marks.wrapper is not None:
        effect = "They are not drawn." if not is_followed else "The model draws all of it."
        yield _at(prompt, marks.wrapper.start, "nested_quotes", f"The whole prompt stands in quotation marks. {effect}", is_sure)
    if marks.strays:
        yield _at(prompt, marks.strays[0], "unclosed_quote", "A quotation mark has no partner; nothing is drawn because of it.", False)
    if not texts and not meant and (asked := _ASKS_FOR_TEXT.search(prompt)):
        message = "The prompt seems to ask for text, but quotes none. Put the words into quotation marks, or send them as text."
        yield Notice("unquoted_text", message, asked.group()[:_MAX_EXCERPT], asked.start())
    yield from _text_notices(prompt, [*dict.fromkeys([*meant, *texts])])


def _text_notices(prompt: str, found: Sequence[str]) -> Iterator[Notice]:
    for text in found:
        position = prompt.find(text)
        where = None if position < 0 or not text else position
        if invisible := _INVISIBLE.search(text):
            message = f"The text holds the invisible character U+{ord(invisible.group()):04X}, which may be drawn as something."
            yield Notice("invisible_characters", message, text[:_MAX_EXCERPT], where)
        if len(text.encode()) > MAX_TEXT_BYTES:
            message = f"The text has {len(text.encode())} bytes; the model reads the first {MAX_TEXT_BYTES}."
            yield Notice("text_too_long", message, text[:_MAX_EXCERPT], where)


def _at(prompt: str, position: int, code: str, message: str, is_fixed: bool) -> Notice:
    excerpt = prompt[max(0, position - _MAX_EXCERPT // 4) : position + _MAX_EXCERPT // 4]
    return Notice(code, message, excerpt, position, is_fixed)
