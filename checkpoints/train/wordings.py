"""
More ways to ask for a poster than `prompts.write_prompt` knows.

The AR model alone reads prompts; the wider their English here, the more of a customer's English it follows. What is said means the
same as there: colour of the text not said -> the background's usual one; position -> centre; decoration -> none.
"""

from __future__ import annotations

import random

from checkpoints.train.posters import Poster, usual_text_colour
from checkpoints.train.prompts import quote, write_prompt
from checkpoints.train.wear import worn

# What stands more than once is said more often.
_NOUNS = (
    "poster poster poster poster sign banner card flyer label picture image cover ad design billboard page placard leaflet notice "
    "board panel print graphic"
).split()
_ADJECTIVES = "|||||simple |bold |clean |modern |plain |bright |minimal |small |big |large |nice ".split("|")
_OPENINGS = (
    "||||create |make |make me |design |draw |please make |please draw |i want |i need |i would like |generate |show me |give me |"
    "can you make |we need |print "
).split("|")
_TEXT_NOUNS = "text|text|words|word|title|headline|phrase|slogan|line|caption|message|heading|lettering".split("|")
_TEXTS = ("the {n} {q}|the {n} {q}|{q}|{q}|a {n} reading {q}|{n} saying {q}|{n} that says {q}|the {n}: {q}|{n} {q}|{q} as the {n}").split(
    "|"
)
_COLOURED_TEXTS = (
    "{q} in {c}|{q} in {c}|the {n} {q} in {c}|the {n} {q} in {c}|{c} {n} {q}|{c} {n} saying {q}|{c} letters that read {q}|"
    "{c} letters reading {q}|{c} lettering that says {q}|the {c} {n} {q}|{q} in {c} letters|{q} in bold {c} letters|"
    "{q} written in {c}|{q} printed in {c}|{q} in {c} type|{n} in {c} that reads {q}|{q} in the colour {c}|{q} set in {c}|{c} {q}|"
    "{c}-coloured {q}|{n} in {c}: {q}|a {c} {n} that says {q}"
).split("|")
_JOINS = " with | with | with | bearing | carrying | featuring | showing | and |, |, |: | that has ".split("|")
_SAYINGS = (
    " that says | saying | that reads | reading | which says | that should say | with the words | with the text | titled | called "
).split("|")
_GROUNDS = (
    "on a {g} background|on a {g} background|on {g}|against a {g} background|over a {g} background|on a {g} {p}|on {g} paper|"
    "over {g}|on a {g} ground|with a {g} background|on a background of {g}|on a {g} backdrop"
).split("|")
_PLACES = {
    "top": (
        "at the top|at the top|near the top|on top|up top|along the top|in the top part|in the upper half|high up|placed at the top"
    ).split("|"),
    "bottom": (
        "at the bottom|at the bottom|near the bottom|along the bottom|in the bottom part|in the lower half|low down|"
        "placed at the bottom|at the foot"
    ).split("|"),
    "centre": (
        "in the centre|in the center|in the middle|centred|centered|right in the middle|placed in the centre|in the middle of it"
    ).split("|"),
}
_TEXT_PLACES = "the text {at}|text {at}|with the text {at}|with the words {at}|put the text {at}|the words {at}|put it {at}".split("|")
_DECORATIONS = {
    "border": (
        "with a border|a border|with a border|and a border|framed|with a frame|with a {c} border|with a thin border|bordered|"
        "inside a border|a border around it"
    ).split("|"),
    "bar above": (
        "with a bar above|a bar above|with a bar at the top|with a line above|with a stripe above the text|with a {c} bar at the top|"
        "and a bar above it|a line at the top"
    ).split("|"),
    "bar below": (
        "with a bar below|a bar below|with a bar at the bottom|with a line below|underlined with a bar|with a {c} bar at the bottom|"
        "and a bar below it|a line at the bottom"
    ).split("|"),
}


def prompt_for(rng: random.Random, poster: Poster) -> str:
    """A prompt for this poster, as `write_prompt` or in another wording, at times with words that mean nothing to it."""
    prompt = write_prompt(rng, poster) if not poster.text or rng.random() < 0.55 else _reworded(rng, poster)
    return worn(rng, prompt)


def _reworded(rng: random.Random, poster: Poster) -> str:
    quoted, background, colour = quote(rng, poster.text), _spelled(rng, poster.background), _spelled(rng, poster.colour)
    said = poster.colour != usual_text_colour(poster.background) or rng.random() < 0.5
    noun, text_noun = rng.choice(_NOUNS), rng.choice(_TEXT_NOUNS)
    ground, shading = background, ""
    if poster.gradient:
        way = rng.random()
        if way < 0.7:
            ground = rng.choice(["gradient {}", "gradient {}", "{} gradient", "shaded {}", "fading {}"]).format(background)
        else:
            shading = rng.choice([" with a gradient", " with gradient shading", ", gradient"])
    text = rng.choice(_COLOURED_TEXTS if said else _TEXTS).format(n=text_noun, q=quoted, c=colour)
    place = rng.choice(_PLACES[poster.position]) if poster.position != "centre" or rng.random() < 0.3 else ""
    decoration = rng.choice(_DECORATIONS[poster.decoration]).format(c=colour) if poster.decoration != "none" else ""
    extras = [extra for extra in (place, decoration) if extra]
    shape = rng.random()
    adjective, opening = rng.choice(_ADJECTIVES), rng.choice(_OPENINGS)
    if place and rng.random() < 0.4:  # where the text stands is said beside it
        text, extras = f"{text} {place}", extras[1:]
    elif place and rng.random() < 0.4:
        extras[0] = rng.choice(_TEXT_PLACES).format(at=place)
    if shape < 0.35:
        whole = f"{opening}{_article(ground)} {adjective}{ground} {noun}{shading}{rng.choice(_JOINS)}{text}"
    elif shape < 0.45:
        what = rng.choice(
            [
                "{n} in {g}",
                "{n} on {g}",
                "{n} coloured {g}",
                "{n} with a {g} background",
                "{n}, {g} background",
                "{n} whose background is {g}",
            ]
        )
        whole = f"{opening}a {adjective}{what.format(n=noun, g=ground)}{shading}{rng.choice([', ', ' and ', '; ', ' with '])}{text}"
    elif shape < 0.65:
        whole = f"{opening}{text} {rng.choice(_GROUNDS).format(g=ground, p=noun)}{shading}"
    elif shape < 0.75 and not said:
        whole = f"{opening}{_article(ground)} {adjective}{ground} {noun}{shading}{rng.choice(_SAYINGS)}{quoted}"
    elif shape < 0.85:
        tail = rng.choice(
            [
                " in {c}",
                ", text in {c}",
                ", the text in {c}",
                ", {c} letters",
                ", {c} text",
                " with {c} letters",
                ". The text is {c}",
                ", letters {c}",
            ]
        )
        ink = tail.format(c=colour) if said else ""
        whole = f"{opening}{_article(ground)} {adjective}{ground} {noun}{shading}{rng.choice(_SAYINGS)}{quoted}{ink}"
    elif shape < 0.93:
        parts = [rng.choice(["{g} background", "background {g}", "background: {g}", "{g} {p}"]).format(g=ground, p=noun) + shading, text]
        rng.shuffle(parts)
        whole = ", ".join(parts)
    else:
        tail = rng.choice(["The background is {g}", "Use a {g} background", "Make the background {g}", "Background: {g}"]).format(g=ground)
        whole = f"{opening}a {adjective}{noun}{rng.choice(_JOINS)}{text}. {tail}{shading}"
    rng.shuffle(extras)
    for extra in extras:
        whole += rng.choice([" ", ", ", ", ", " and "]) + extra
    if rng.random() < 0.6:
        whole = whole[0].upper() + whole[1:]
    return whole + rng.choice(["", "", "."])


def _spelled(rng: random.Random, colour: str) -> str:
    return "grey" if colour == "gray" and rng.random() < 0.5 else colour


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
