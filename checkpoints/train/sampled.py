"""Grids that the AR model samples by itself, judged against the posters that were asked for."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import torch
from diffusers import GlmImagePipeline
from transformers import GlmImageForConditionalGeneration

from checkpoints.train.codes import CODES, codes
from checkpoints.train.networks import processor
from checkpoints.train.posters import CELL_PX, Grid, Poster
from checkpoints.train.prompts import sample_poster
from checkpoints.train.rows import Size
from checkpoints.train.wordings import prompt_for


def judge(grid: Grid, poster: Poster) -> dict[str, float]:
    """
    What of the poster is right in a grid of codes, 0 or 1 each.

    `rows` is which part of the text marks which row; `exact` is every cell.
    """
    said, truth = ([[dict(CODES[code]) if code < len(CODES) else {} for code in row] for row in g.tolist()] for g in (grid, codes(poster)))

    def told(cells: list[list[dict[str, str | int | bool]]], feature: str) -> set[str | int | bool]:
        return {cell[feature] for row in cells for cell in row if feature in cell}

    def decorated(cells: list[list[dict[str, str | int | bool]]]) -> list[object]:
        return [cell.get("kind") if cell.get("kind") not in ("plain", "text") else "" for row in cells for cell in row]

    def rows(cells: list[list[dict[str, str | int | bool]]]) -> set[tuple[int, object]]:
        return {(i, cell["part"]) for i, row in enumerate(cells) for cell in row if "part" in cell}

    return {
        "background": float(told(said, "background") == {poster.background}),
        "colour": float(told(said, "colour") == told(truth, "colour")),
        "decoration": float(decorated(said) == decorated(truth)),
        "gradient": float(told(said, "gradient") == told(truth, "gradient")),
        "rows": float(rows(said) == rows(truth)),
        "exact": float((grid == codes(poster)).all()),
    }


def write_grids(net: GlmImageForConditionalGeneration, prompts: list[str], size: Size, seed: int) -> Grid:
    """Codes (B, rows, columns) as the pipeline samples them."""
    pipeline = GlmImagePipeline(
        tokenizer=None, processor=processor(), text_encoder=None, vision_language_encoder=net, vae=None, transformer=None, scheduler=None
    )
    state = torch.get_rng_state()
    try:
        with torch.inference_mode():
            ids, _, _ = pipeline.generate_prior_tokens(
                prompt=prompts,
                height=CELL_PX * size[0],
                width=CELL_PX * size[1],
                device=torch.device("cpu"),
                generator=torch.Generator().manual_seed(seed),
            )
    finally:
        torch.set_rng_state(state)
    grids: Grid = ids.view(len(prompts), 2 * size[0], 2 * size[1])[:, ::2, ::2].numpy()
    return grids


def check(net: GlmImageForConditionalGeneration, sizes: Iterable[Size], count: int, seed: int) -> dict[str, float]:
    """Mean of `judge` over `count` posters of each size, sampled."""
    rng = random.Random(f"check {seed}")
    results = []
    for size in sizes:
        posters = [sample_poster(rng, *size) for _ in range(count)]
        grids = write_grids(net, [prompt_for(rng, poster) for poster in posters], size, rng.randrange(2**31))
        results += [judge(grid, poster) for grid, poster in zip(grids, posters, strict=True)]
    return {name: float(np.mean([result[name] for result in results])) for name in results[0]}
