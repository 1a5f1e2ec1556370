"""Posters and edits at random, and the plain English that asks for them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from checkpoints.train.codes import CODES, codes
from checkpoints.train.posters import CHARACTERS, COLOURS, PAIRS, Decoration, Position, Poster, lines, usual_text_colour

# ---------------------------------------------------------------- sampling

WORDS = (
    "open sale coffee hello world music fresh grand city park summer winter spring autumn festival night market street food dream big "
    "stay calm good vibes only love peace happy new year party live rock blues cinema book shop club tea house pizza sushi grill bar "
    "cafe flower garden health yoga run fast slow stop go exit enter push pull welcome home sweet travel paris rome beach ocean river "
    "lake forest sky star moon sun rain snow wind fire water earth space rocket today now here free entry gift card half price best deal "
    "top ten news daily times week month zone quiet please thank you all day the of and we are your our hot cold ice cream red blue "
    "green black white special offer soon limited time buy one get two kids family menu lunch dinner fish chips beer wine art show game "
    "team win join us order online class school sport fitness studio repair service car wash books toys shoes hats"
).split()
"""Training words. The evaluation's are others; `tests/unit/checkpoints` compares the two lists."""

_PUNCTUATION = ".,!?&'-:;"


def _word(rng: random.Random, longest: int) -> str:
    kind = rng.random()
    if kind < 0.4:
        word = rng.choice(WORDS)
    elif kind < 0.85:
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(1, longest)))
    elif kind < 0.93:
        word = "".join(rng.choice("0123456789") for _ in range(rng.randint(1, min(4, longest))))
    else:
        word = "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(1, longest)))
    word = rng.choice([word.upper(), word.upper(), word, word.capitalize()])[:longest]
    if len(word) < longest and rng.random() < 0.12:
        word += rng.choice("!!.,?:;")
    elif len(word) > 2 and rng.random() < 0.1:
        at = rng.randrange(1, len(word) - 1)
        word = word[:at] + rng.choice(_PUNCTUATION) + word[at + 1 :]
    return word


def sample_text(rng: random.Random, half_line: int, rows: int, words: int | None = None) -> str:
    """A text that fits `rows` lines of `2 * half_line` characters, of `words` words if they fit."""
    longest = 2 * half_line
    words = words or rng.choices([1, 2, 3, 4, 5, 6], [36, 28, 16, 9, 6, 5])[0]
    while True:
        fitting = (longest - 1) // 2 if words > 3 else longest
        if fitting >= 1:
            pick = min(fitting, rng.choice([4, 6, 8, 10, 12]))
            text = " ".join(_word(rng, pick) for _ in range(words))
            # A quote that the pipeline's patterns would cut short, or a pair of apostrophes, is no text of one line.
            if text.count("'") <= 1 and all(len(line) <= longest for _, line in lines(text, rows)):
                return text
        words = max(1, words - 1) if rng.random() < 0.5 or fitting < 1 else words


def sample_poster(rng: random.Random, rows: int, columns: int, words: int | None = None) -> Poster:
    """A poster of this size. `words` of text if they fit; by default any number, sometimes none."""
    background, colour = rng.choice(PAIRS)
    if rng.random() < 0.3:
        colour = usual_text_colour(background)
    decorations: list[Decoration] = ["none"]
    if rows >= 3:
        decorations += ["bar above", "bar below"]
    if rows >= 3 and columns >= 4:
        decorations += ["border", "border"]
    decoration = rng.choice(decorations) if rng.random() < 0.6 else "none"
    poster = Poster(rows, columns, background, colour, "", rng.choice(("top", "centre", "bottom")), decoration, rng.random() < 0.25)
    if words is None and rng.random() < 0.04:
        return poster
    poster = replace(poster, text=sample_text(rng, poster.half_line, poster.last_row - poster.first_row, words))
    if poster.gradient and all(("kind", "plain") not in CODES[code] for code in codes(poster).flat):
        poster = replace(poster, gradient=False)  # no plain cell would show it
    return poster


# ---------------------------------------------------------------- prompts

_QUOTES = (("'", "'"), ("'", "'"), ('"', '"'), ("“", "”"), ("「", "」"))

_NOUNS = ["poster"] * 6 + ["sign", "banner", "card", "flyer", "label", "picture", "image", "cover", "ad", "design", "billboard", "page"]
_ADJECTIVES = [""] * 10 + ["simple ", "bold ", "clean ", "modern ", "plain ", "bright ", "minimal ", "small ", "nice "]
_OPENINGS = ["", "", "", "", "Create ", "Make ", "Design ", "Draw ", "Please make ", "I want ", "Generate ", "Show me "]
_CARRIERS = {
    1: ["with the word {}", "with the text {}", "that says {}", "saying {}", "reading {}", "with {}", "which says {}", "with the title {}"],
    2: [
        "with the words {}",
        "with the text {}",
        "that says {}",
        "saying {}",
        "reading {}",
        "with {}",
        "which says {}",
        "with the words {} on it",
    ],
}
_COLOURINGS = ["in {}", "in {}", "in {}", "in {} letters", "in {} text", "in {} type", "written in {}", "in {} lettering", "in bold {}"]
_POSITIONS = {
    "top": ["at the top", "at the top", "on top", "near the top", "at the very top", "with the text at the top", "in the upper part"],
    "bottom": ["at the bottom", "at the bottom", "near the bottom", "with the text at the bottom", "in the lower part"],
    "centre": ["in the centre", "in the center", "in the middle", "centred", "centered", "with the text in the middle"],
}
_DECORATIONS = {
    "border": ["with a border", "and a border", "with a border around it", "with a frame", "framed by a border", "with a {fg} border"],
    "bar above": ["with a bar above", "with a bar at the top", "with a line above", "and a bar on top", "with a {fg} bar above"],
    "bar below": ["with a bar below", "with a bar at the bottom", "with a line below", "with a bar", "and a bar", "with a {fg} bar below"],
    "none": [""],
}


def _spelled(rng: random.Random, colour: str) -> str:
    return "grey" if colour == "gray" and rng.random() < 0.5 else colour


def quote(rng: random.Random, text: str) -> str:
    opening, closing = rng.choice([pair for pair in _QUOTES if pair[0] not in text])
    return f"{opening}{text}{closing}"


def write_prompt(rng: random.Random, poster: Poster) -> str:
    """
    A prompt in plain English for this poster, all of it: what is not said has one meaning.

    Not said: text colour -> the background's usual one; position -> centre; decoration -> none.
    """
    quoted = quote(rng, poster.text) if poster.text else ""
    background = _spelled(rng, poster.background)
    colour = _spelled(rng, poster.colour)
    if poster.colour != usual_text_colour(poster.background):
        say_colour = True
    else:
        say_colour = rng.random() < 0.5
        if say_colour and rng.random() < 0.06:  # a wish that could not be read
            unreadable = [name for name in COLOURS if (poster.background, name) not in PAIRS and name != poster.background]
            colour = _spelled(rng, rng.choice(unreadable)) if unreadable else colour
    gradient = "gradient " if poster.gradient else rng.choice([""] * 8 + ["plain ", "solid "])
    say_position = poster.text and (poster.position != "centre" or rng.random() < 0.3)
    position = rng.choice(_POSITIONS[poster.position]) if say_position else ""
    decoration = rng.choice(_DECORATIONS[poster.decoration]).format(fg=colour)
    noun, adjective, opening = rng.choice(_NOUNS), rng.choice(_ADJECTIVES), rng.choice(_OPENINGS)
    ground = f"{gradient}{background}" if rng.random() < 0.85 or not gradient else f"{background} {gradient.strip()}"
    if poster.gradient and rng.random() < 0.2:
        ground = rng.choice([f"{background} gradient", f"gradient {background}"])
    carrier = rng.choice(_CARRIERS[min(2, len(poster.text.split(" ")))]).format(quoted)
    colouring = rng.choice(_COLOURINGS).format(colour) if say_colour else ""
    shape = rng.random()
    if not quoted:
        ink = f" {rng.choice(['in', 'with'])} {colour}" if poster.decoration != "none" and say_colour else ""
        parts = [
            f"{opening}a {adjective}{ground} {rng.choice(['background', noun])}{rng.choice(['', ' without text', ' with no text'])}{ink}"
        ]
    elif shape < 0.45:
        parts = [f"{opening}a {adjective}{ground} {noun} {carrier}", colouring]
    elif shape < 0.6:
        parts = [f"{opening}a {adjective}{noun} {carrier}", colouring, f"on a {ground} background"]
    elif shape < 0.72:
        ink = f", {colour} text" if say_colour else ""
        parts = [f"{ground} background{ink}, {quoted}"]
    elif shape < 0.84:
        parts = [f"{quoted}", colouring, f"on a {ground} {rng.choice(['background', noun])}"]
    elif shape < 0.92:
        parts = [
            f"{opening}a {adjective}{noun} with a {ground} background and",
            f"the {colour} text {quoted}" if say_colour else f"the text {quoted}",
        ]
    else:
        parts = [f"{opening}a {ground} {noun},", f"{colour} text {quoted}" if say_colour else f"text {quoted}"]
    extras = [extra for extra in (position, decoration) if extra]
    rng.shuffle(extras)
    comma = rng.random() < 0.4
    text = " ".join(part for part in parts if part)
    for extra in extras:
        text += f", {extra}" if comma else f" {extra}"
    if text.startswith("a ") and rng.random() < 0.85:
        text = "A" + text[1:]
    elif rng.random() < 0.15 and text[0].isalpha():
        text = text[0].lower() + text[1:]
    return text + rng.choice(["", "", "."])


# ---------------------------------------------------------------- edits


@dataclass(frozen=True)
class Edit:
    """An instruction about `source`, and the poster that follows it. `text` is what the instruction quotes, or empty."""

    source: Poster
    target: Poster
    instruction: str
    text: str


def sample_edit(rng: random.Random, rows: int, columns: int) -> Edit:
    source = sample_poster(rng, rows, columns, words=rng.choices([1, 2, 3, 4, 5], [36, 28, 18, 10, 8])[0])
    kind = rng.choices(["text", "background", "colour", "position"], [45, 30, 15, 10])[0]
    if kind == "text":
        text = sample_text(rng, source.half_line, source.last_row - source.first_row)
        verb = rng.choice(
            [
                "replace the text with {}",
                "replace the text with {}",
                "replace the words with {}",
                "change the text to {}",
                "change the words to {}",
                "make it say {}",
                "set the text to {}",
                "the text should say {}",
            ]
        )
        return Edit(source, replace(source, text=text), _sentence(rng, verb.format(quote(rng, text))), text)
    if kind == "background":
        background = rng.choice([name for name in COLOURS if name != source.background])
        colour = source.colour if (background, source.colour) in PAIRS else usual_text_colour(background)
        verb = rng.choice(
            [
                "make the background {}",
                "make the background {}",
                "change the background to {}",
                "change the background colour to {}",
                "turn the background {}",
                "use a {} background",
                "set the background to {}",
            ]
        )
        return Edit(
            source, replace(source, background=background, colour=colour), _sentence(rng, verb.format(_spelled(rng, background))), ""
        )
    if kind == "colour":
        choices = [text for ground, text in PAIRS if ground == source.background and text != source.colour]
        colour = rng.choice(choices)
        verb = rng.choice(
            [
                "make the text {}",
                "make the text {}",
                "change the text colour to {}",
                "change the text color to {}",
                "turn the text {}",
                "use {} letters",
                "write it in {}",
            ]
        )
        return Edit(source, replace(source, colour=colour), _sentence(rng, verb.format(_spelled(rng, colour))), "")
    position: Position = rng.choice([name for name in ("top", "centre", "bottom") if name != source.position])
    verb = rng.choice(["move the text to the {}", "put the text at the {}", "move the words to the {}"])
    # A text that moves is quoted, for it is drawn anew.
    said = rng.choice(["middle", "centre", "center"]) if position == "centre" else position
    instruction = verb.format(said) + f", {quote(rng, source.text)}"
    return Edit(source, replace(source, position=position), _sentence(rng, instruction), source.text)


def _sentence(rng: random.Random, text: str) -> str:
    return (text[0].upper() + text[1:] if rng.random() < 0.4 else text) + rng.choice(["", "", "."])
