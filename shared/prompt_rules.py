"""
What a prompt must not contain: the words that GLM-Image's tokenizer reads as commands. Pure; knows no tokenizer.

The AR model's input is the prompt followed by grid markers, all in one string, so a marker inside the prompt is obeyed:
`<sop>9 9<eop>` changes the layout, `<|image|>` breaks the request. The API refuses such prompts with this list. The AR
worker asks the real tokenizer as well, because another checkpoint may have more special tokens than these.
"""

from __future__ import annotations

import re

# GLM-4's special tokens: `<sop>`, `<eop>`, three masks, and everything of the form `<|name|>`, among them `<|image|>`,
# `<|endoftext|>` and `<|dit_token_0|>` to `<|dit_token_16511|>`. A name has no spaces, so `a <| f |> b` is only text.
_CONTROL_TOKEN = re.compile(r"<\|[^\s<>|]{1,64}\|>|<sop>|<eop>|\[[gs]?MASK\]")


def find_control_token(prompt: str) -> str | None:
    """The first control token in `prompt`, as written there; None when it has none."""
    match = _CONTROL_TOKEN.search(prompt)
    return match.group() if match else None
