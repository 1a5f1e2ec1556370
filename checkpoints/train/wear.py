"""
How a prompt is worn by people: strange words, asides, other capitals. None of it says anything about the poster.

Knows quotation marks, inside of which nothing is touched, and nothing else of what a prompt says.
"""

from __future__ import annotations

import random
import re

from checkpoints.train.networks import LAYOUT_WORDS
from checkpoints.train.posters import COLOURS

_QUOTED = re.compile(r"('[^']*'|\"[^\"]*\"|“[^“”]*”|「[^「」]*」)")

_FILLERS = (
    "really quite very some any lovely pretty cheerful friendly vintage retro classic elegant stylish cute fancy neat square wide "
    "tall crisp shop window wall door street office school kitchen today tomorrow maybe also then there here ok hello thanks kindly "
    "just like about thing piece style look mood feel quality sharp smooth high detailed professional printed digital flat paper "
    "festival event store fair"
).split()
_ASIDES = (
    "for my shop|for the window|for our cafe|for a party|for a school event|please|thanks|in a modern style|for the wall|very simple|"
    "nothing else|no other text|flat design|high quality|clean layout|that looks good|easy to read"
).split("|")


def worn(rng: random.Random, prompt: str) -> str:
    """The prompt with strange words, an aside or other capitals outside its quotes; most prompts stay as they are."""
    parts = _QUOTED.split(prompt)
    if rng.random() < 0.2:
        for _ in range(rng.choice([1, 1, 2, 3])):
            at = 2 * rng.randrange(len(parts) // 2 + 1)
            words = parts[at].split(" ")
            if len(words) > 1:
                words.insert(rng.randrange(1, len(words)), _strange_word(rng))
                parts[at] = " ".join(words)
    if rng.random() < 0.08:
        parts[-1] = parts[-1].rstrip(".") + rng.choice([" ", ", "]) + rng.choice(_ASIDES)
    capitals = rng.random()
    if capitals < 0.04:
        parts[::2] = [re.sub(r"\b[a-z]", lambda letter: letter[0].upper(), part) for part in parts[::2]]
    elif capitals < 0.1:
        parts[::2] = [part.lower() for part in parts[::2]]
    return "".join(parts)


def _strange_word(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(_FILLERS)
    while True:
        word = "".join(rng.choice("etaoinshrdlucmfwypvbgkjqxz") for _ in range(rng.randint(2, 9)))
        if word not in LAYOUT_WORDS and word not in COLOURS:
            return word
