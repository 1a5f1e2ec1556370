"""
Quotation marks as a reader sees them: which mark opens, which closes, and which is an apostrophe or an inch mark. Pure.

Time is linear in the prompt, whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_PAIRED = (("“„‟", "”“"), ("«", "»"), ("‹", "›"), ("「", "」"), ("『", "』"), ("〝", "〞〟"), ("﹁", "﹂"), ("﹃", "﹄"))
"""Marks that tell opening from closing: what opens, and what closes. „ is closed by “ or ”, whichever comes."""

_ELISION = re.compile(r"'(?:\d|em\b|tis\b|twas\b|cause\b|til\b|bout\b|round\b)|‘\d", re.IGNORECASE)
_OPENS_AFTER = frozenset("([{<-–—/:=,.;!?&+*_|~")
_CLOSES_BEFORE = frozenset(")]}>-–—/:=,.;!?&+*_|~…")
_MARKS = frozenset("'\"＂“”„‟«»‹›「」『』〝〞〟﹁﹂﹃﹄‘’‚")
# Chinese, Japanese and Korean write no spaces around quotations.
_UNSPACED = re.compile("[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")

_SINGLE = frozenset("'‘’")
_NEVER = 1000.0


@dataclass(frozen=True)
class Pair:
    """A quotation: where its marks stand in the prompt."""

    start: int
    end: int

    def text(self, prompt: str) -> str:
        """What is between the marks."""
        return prompt[self.start + 1 : self.end]

    def contains(self, position: int) -> bool:
        """Does `position` stand between the marks?"""
        return self.start < position < self.end


@dataclass(frozen=True)
class Marks:
    """
    The quotation marks of a prompt.

    Attributes:
        pairs: quotations in the order of the prompt, none inside another.
        apostrophes: straight apostrophes and feet marks.
        inches: straight double marks after a number.
        strays: marks that open what is never closed, or close what was never opened.
        nested: marks of quotations inside others.
        wrapper: the quotation that all of the prompt is, others inside it; people paste prompts so, and it is no text to draw.
        is_ambiguous: another reading is as good.
    """

    pairs: tuple[Pair, ...]
    apostrophes: tuple[int, ...]
    inches: tuple[int, ...]
    strays: tuple[int, ...]
    nested: tuple[int, ...]
    wrapper: Pair | None
    is_ambiguous: bool


def find_marks(prompt: str) -> Marks:
    """Read the quotation marks of a prompt."""
    pairs: list[Pair] = []
    strays: list[int] = []
    for openers, closers in _PAIRED:
        # German books have »…«, where others have «…».
        is_turned = openers == "«" and -1 < prompt.find("»") < (prompt.find("«") + 1 or len(prompt) + 1) - 1
        found, left = _match(prompt, closers, openers) if is_turned else _match(prompt, openers, closers)
        pairs += found
        strays += left
    double = _choose(prompt, '"', '"', _double_cost)
    wide = _choose(prompt, "＂", "＂", _double_cost)
    single = _choose(prompt, "'", "'", _single_cost)
    curly = _choose(prompt, "‘‚", "’‘", _single_cost)
    for choice in (double, wide, single, curly):
        pairs += choice.pairs
    outer, nested, wrapper = _outermost(prompt, pairs)
    inches, lone = _part(double.plain, lambda position: prompt[position - 1 : position].isdigit())
    # Of full-width ones, too; the reference takes none of those for a quotation mark.
    _, wide_lone = _part(wide.plain, lambda position: prompt[position - 1 : position].isdigit())
    apostrophes, unclosed = _part(single.plain, lambda position: _is_apostrophe(prompt, position))
    curly_unclosed = [position for position in curly.plain if not _is_apostrophe(prompt, position)]
    return Marks(
        pairs=outer,
        apostrophes=tuple(apostrophes),
        inches=tuple(inches),
        strays=tuple(sorted([*strays, *lone, *wide_lone, *unclosed, *curly_unclosed])),
        nested=nested,
        wrapper=wrapper,
        is_ambiguous=any(choice.is_tied for choice in (double, wide, single, curly)),
    )


def _match(prompt: str, openers: str, closers: str) -> tuple[list[Pair], list[int]]:
    """Match like brackets; an opening mark that also closes („…“) does so where a „ is open."""
    pairs: list[Pair] = []
    strays: list[int] = []
    stack: list[int] = []
    for position in _positions(prompt, openers + closers):
        mark = prompt[position]
        closes = mark in closers and bool(stack) and (mark not in openers or prompt[stack[-1]] == "„")
        if closes:
            pairs.append(Pair(stack.pop(), position))
        elif mark in openers:
            stack.append(position)
        else:
            strays.append(position)
    return pairs, strays + stack


@dataclass(frozen=True)
class _Choice:
    pairs: list[Pair]
    plain: list[int]
    is_tied: bool


@dataclass(frozen=True)
class _Cost:
    """How odd a mark would be in each role."""

    opens: float
    closes: float
    plain: float


def _choose(prompt: str, openers: str, closers: str, cost_of: Callable[[str, int], _Cost]) -> _Choice:
    """
    Give each mark the role that makes the prompt least odd as a whole: opening and closing marks alternate, the others are plain.

    The cheapest way through two states, outside and inside a quotation; a way is kept as its cost, how many are as cheap, and whence.
    """
    positions = _positions(prompt, openers + closers)
    outside, inside = (0.0, 1), (_NEVER, 0)
    steps: list[tuple[bool, bool]] = []
    for position in positions:
        cost, mark = cost_of(prompt, position), prompt[position]
        opens = outside[0] + (cost.opens if mark in openers else _NEVER)
        closes = inside[0] + (cost.closes if mark in closers else _NEVER)
        # Inside, a mark that could end the quotation is less likely to be plain.
        stays_out, stays_in = outside[0] + cost.plain, inside[0] + cost.plain * 1.5
        steps.append((closes < stays_out, opens < stays_in))
        outside, inside = _cheaper(outside, stays_out, inside, closes), _cheaper(inside, stays_in, outside, opens)
    pairs, plain, end, is_outside = [], [], -1, True
    for position, (came_by_closing, came_by_opening) in zip(reversed(positions), reversed(steps), strict=True):
        if is_outside and came_by_closing:
            end, is_outside = position, False
        elif not is_outside and came_by_opening:
            pairs.append(Pair(position, end))
            is_outside = True
        else:
            plain.append(position)
    return _Choice(pairs[::-1], plain[::-1], is_tied=outside[1] > 1)


def _cheaper(stay: tuple[float, int], stay_cost: float, move: tuple[float, int], move_cost: float) -> tuple[float, int]:
    if stay_cost == move_cost:
        return stay_cost, stay[1] + move[1]
    return (stay_cost, stay[1]) if stay_cost < move_cost else (move_cost, move[1])


def _double_cost(prompt: str, position: int) -> _Cost:
    before, after = _around(prompt, position)
    opens = 3.0 if not _may_open_after(before) else 1.0 if _is_space(after) else 0.0
    closes = 3.0 if not _may_close_before(after) else 1.0 if _is_space(before) else 0.0
    return _Cost(opens, closes, plain=1.0 if before.isdigit() else 4.0)


def _single_cost(prompt: str, position: int) -> _Cost:
    before, after = _around(prompt, position)
    joins = _is_word(before) and _is_word(after)
    if joins:
        return _Cost(opens=4.0, closes=4.0, plain=0.0)
    if letter := _letter_within(prompt, position):
        # So likely to be plain that they do not part a quotation around them: 'plan 'B' now', and more so 'Drum 'n' Bass'.
        plain = 0.4 if letter in "nN" else 1.0
        return _Cost(opens=0.0 if _is_word(after) else 4.0, closes=0.0 if _is_word(before) else 3.0, plain=plain)
    if _is_word(before):
        # The dogs' toys, 6' tall; rockin' is rarer.
        return _Cost(opens=4.0, closes=0.0, plain=1.0 if before in "sSxXzZ" or before.isdigit() else 2.0)
    if _is_word(after):
        return _Cost(opens=0.0, closes=3.0, plain=1.0 if _ELISION.match(prompt, position) else 3.0)
    opens = 1.0 if _may_open_after(before) and not _is_space(after) else 2.0
    closes = 1.0 if _may_close_before(after) and not _is_space(before) else 2.0
    return _Cost(opens, closes, plain=4.0)


def _letter_within(prompt: str, position: int) -> str | None:
    """The single letter around which this mark and another one stand, or None."""
    for first in (position - 2, position):
        if first < 0 or prompt[first] not in _SINGLE or prompt[first + 2 : first + 3] not in _SINGLE:
            continue
        letter, outside = prompt[first + 1], (_around(prompt, first)[0], _around(prompt, first + 2)[1])
        if _is_word(letter) and not any(map(_is_word, outside)):
            return letter
    return None


def _outermost(prompt: str, pairs: Sequence[Pair]) -> tuple[tuple[Pair, ...], tuple[int, ...], Pair | None]:
    """The quotations that are inside no other, the marks of the rest, and the wrapper."""
    first, last = len(prompt) - len(prompt.lstrip()), len(prompt.rstrip()) - 1
    ordered = sorted(pairs, key=lambda pair: pair.start)
    wrapper = None
    if len(ordered) > 1 and (ordered[0].start, ordered[0].end) == (first, last):
        wrapper, *ordered = ordered
    outer: list[Pair] = []
    nested: list[int] = []
    for pair in ordered:
        if outer and pair.start < outer[-1].end:
            nested += [pair.start, pair.end]
        else:
            outer.append(pair)
    return tuple(outer), tuple(sorted(nested)), wrapper


def _is_apostrophe(prompt: str, position: int) -> bool:
    """Of a mark that is part of no quotation: does it belong to a word, or is its partner missing?"""
    belongs = _is_word(_around(prompt, position)[0]) or _ELISION.match(prompt, position) is not None
    return belongs or _letter_within(prompt, position) is not None


def _part(positions: Sequence[int], belongs: Callable[[int], bool]) -> tuple[list[int], list[int]]:
    return [position for position in positions if belongs(position)], [position for position in positions if not belongs(position)]


def _positions(prompt: str, marks: str) -> list[int]:
    return [found.start() for found in re.finditer(f"[{marks}]", prompt)]


def _around(prompt: str, position: int) -> tuple[str, str]:
    return prompt[position - 1 : position] if position else "", prompt[position + 1 : position + 2]


def _is_word(character: str) -> bool:
    return character.isalnum() and not _UNSPACED.match(character)


def _is_space(character: str) -> bool:
    return not character or character.isspace()


def _may_open_after(before: str) -> bool:
    return _is_space(before) or before in _OPENS_AFTER or before in _MARKS or bool(_UNSPACED.match(before))


def _may_close_before(after: str) -> bool:
    return _is_space(after) or after in _CLOSES_BEFORE or after in _MARKS or bool(_UNSPACED.match(after))
