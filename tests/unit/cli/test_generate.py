"""`glmq generate` up to the request, and where its files go."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cli.client import ApiError, Client
from cli.generate import Wish, generate


def test_only_what_was_asked_for_is_sent() -> None:
    """What the person left open is left to the service, but the format follows the file's name."""
    assert Wish("a cat", Path("cat.png")).request() == {"prompt": "a cat", "n": 1, "format": "png"}
    assert Wish("a cat", Path("cat.JPG"), "64x32", 0, 4, 2).request() == {
        "prompt": "a cat",
        "size": "64x32",
        "seed": 0,
        "steps": 4,
        "n": 2,
        "format": "jpeg",
    }


def test_an_unknown_format_is_told() -> None:
    """A name that asks for a format which is not made is refused before anything is sent."""
    with pytest.raises(ApiError, match=r"cat\.gif is none of"):
        Wish("a cat", Path("cat.gif")).request()


def test_several_images_get_numbers() -> None:
    """One image keeps the name, several are numbered from 1."""
    assert Wish("a cat", Path("a/cat.png")).file(0) == Path("a/cat.png")
    assert [Wish("a cat", Path("a/cat.png"), num_images=2).file(index) for index in (0, 1)] == [Path("a/cat-1.png"), Path("a/cat-2.png")]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (Wish("a cat", Path("cat.png"), sources=(Path("/nonexistent.png"),)), "no such file: /nonexistent.png"),
        (Wish("a cat", Path("/nonexistent/cat.png")), "no such folder: /nonexistent"),
    ],
)
def test_paths_are_looked_at_first(wish: Wish, message: str) -> None:
    """A job whose result could not be saved, or whose source is not there, is not submitted."""
    with Client("http://127.0.0.1:1", "key") as client, pytest.raises(ApiError, match=message):
        generate(client, wish, Console(file=StringIO()))
