"""Control tokens are found in prompts, and ordinary text passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.prompt_rules import find_control_token


@pytest.mark.parametrize(
    "token",
    ["<sop>", "<eop>", "<|image|>", "<|dit_token_0|>", "<|dit_token_16384|>", "<|endoftext|>", "<|user|>", "[MASK]", "[gMASK]", "[sMASK]"],
)
def test_every_control_token_is_found_wherever_it_stands(token: str) -> None:
    """A control token is found at the start, inside a word and at the end of a prompt."""
    assert find_control_token(token) == token
    assert find_control_token(f"a cat{token}on a mat") == token
    assert find_control_token(f"一只猫 {token}") == token


def test_the_first_control_token_is_reported() -> None:
    """The caller is shown the token that comes first."""
    assert find_control_token("A cat<eop> and <sop>9 9") == "<eop>"


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "A cat",
        'A sign that says "50 < 60 | 70 > 65"',
        "let y = x |> f <| g",
        "a <| f |> b",
        "[mask] and [image] and <image> and <b>bold</b>",
        "<|",
        "|>",
        "<||>",
        "猫「こんにちは」🐈‍⬛",
    ],
)
def test_ordinary_text_passes(prompt: str) -> None:
    """Pipes, angle brackets and square brackets are welcome in prompts."""
    assert find_control_token(prompt) is None


def test_every_special_token_of_the_miniature_is_found(miniature: Path) -> None:
    """The list covers every special token of a tokenizer with the published special tokens."""
    tokenizer = json.loads((miniature / "processor" / "tokenizer.json").read_text())
    tokens = [token["content"] for token in tokenizer["added_tokens"]]
    assert len(tokens) > 256
    assert [token for token in tokens if find_control_token(token) != token] == []
