"""
The first preview: a request for a small picture that is drawn from the AR model's draft grid alone.

The draft is there after about 256 tokens, a quarter of the AR stage's time for 1024x1024; it shows the layout, and nothing of it is kept.
"""

from __future__ import annotations

from services.decoder_worker.request import ImageRequest
from shared.grid import TOKEN_PX, TokenGrid

_STEPS = 6
"""Enough to tell what is where, and an eighth of a picture's own steps; taste."""


def draft_request(prompt: str, draft_token_ids: list[list[int]], max_px: int, seed: int = 0) -> ImageRequest:
    """
    A picture of the draft's layout: every n-th token of it, few steps, no guidance, and only when nothing else wants the engine.

    Args:
        draft_token_ids: rows of the draft grid.
        max_px: of its longest side; at most what the model draws. Below one token's side, that side.
        seed: of its noise.
    """
    height, width = len(draft_token_ids), len(draft_token_ids[0])
    scale = min(1.0, max(1, max_px // TOKEN_PX) / max(height, width))
    rows = _spread(height, scale)
    columns = _spread(width, scale)
    return ImageRequest(
        prompt=prompt,
        grid=TokenGrid(len(rows), len(columns)),
        token_ids=[[draft_token_ids[row][column] for column in columns] for row in rows],
        seed=seed,
        steps=_STEPS,
        guidance_scale=1.0,
        is_preview=True,
    )


def _spread(length: int, scale: float) -> list[int]:
    """The indices of a side that is scaled down: the middles of as many equal parts."""
    count = max(1, round(length * scale))
    return [int((index + 0.5) * length / count) for index in range(count)]
