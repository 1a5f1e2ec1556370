"""
The AR engine: prompts in, token grids out, on a thread of its own.

Knows tensors and no jobs: no database, no queue, no store, no logs. What surrounds it hands in callables for progress and for
stopping, and gets a Future back. One grid at a time for now; what a grid needs between two tokens (`kv_cache.GridCache`,
`sampling.TokenSampler`, positions) belongs to the grid alone, so that the loop can come to serve several.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from services.ar_worker.kv_cache import GridCache
from services.ar_worker.prompt import ArPrompt, build_prompt
from services.ar_worker.sampling import TokenSampler
from services.ar_worker.weights import ArModel
from shared.engine import CheckStop, Progress, SerialEngine
from shared.grid import TokenGrid


@dataclass(frozen=True)
class GridRequest:
    """
    Everything that decides a token grid.

    `sources` are RGB images with sides of whole tokens (32 pixels), in the checkpoint's range; with any of them no draft is written.
    """

    prompt: str
    grid: TokenGrid
    seed: int
    temperature: float
    top_p: float
    sources: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class GridResult:
    """`token_ids`: token_h rows of token_w ids; `source_token_ids`: the same of each source image, one id per 32x32 pixels."""

    token_ids: list[list[int]]
    source_token_ids: tuple[list[list[int]], ...]


class ArEngine(SerialEngine[GridRequest, GridResult]):
    """
    Writes grids. Phases of progress are `draft` and `grid`, told after every token; stopping is asked before every one.

    A request fails with PermanentWorkError when its prompt or sources cannot be used.
    """

    def __init__(self, model: ArModel) -> None:
        super().__init__("AR engine", "ar_oom")
        self._model = model

    def run(self, request: GridRequest, on_progress: Progress, check_stop: CheckStop) -> GridResult:
        """Write one grid."""
        return write_grid(self._model, request, on_progress, check_stop)


def write_grid(model: ArModel, request: GridRequest, on_progress: Progress, check_stop: CheckStop) -> GridResult:
    """
    Write one token grid on the calling thread.

    Args:
        check_stop: raises when the work is to stop.
    """
    grid, num_draft = request.grid, request.grid.num_draft_tokens(len(request.sources))
    num_tokens = num_draft + grid.num_tokens
    with torch.inference_mode():
        check_stop()
        sampler = TokenSampler(model.rules, request.temperature, request.top_p, request.seed)
        prompt = build_prompt(model, request.prompt, grid, request.sources)
        check_stop()
        source_ids = tokenize_sources(model, prompt)
        check_stop()
        cache = GridCache(model.num_layers, prompt.input_ids.shape[1] + num_tokens)
        logits = forward(model, fill_placeholders(model, prompt.input_ids, source_ids), prompt.prefill_positions, cache)
        # On the device until the end: reading each id would make the host wait for it.
        token_ids = torch.empty(num_tokens, dtype=torch.int64, device=model.device)
        for i in range(num_tokens):
            check_stop()
            # The reference also writes an end token, which nobody reads; here the last id of the grid is the last.
            if i:
                logits = forward(model, token_ids[None, i - 1 : i], prompt.decode_positions[:, :, i - 1 : i], cache)
            token_ids[i : i + 1] = sampler.draw(logits)
            if i < num_draft:
                on_progress("draft", i + 1, num_draft)
            else:
                on_progress("grid", i + 1 - num_draft, grid.num_tokens)
        return GridResult(
            token_ids=token_ids[num_draft:].view(grid.token_h, grid.token_w).tolist(),
            source_token_ids=tuple(ids.tolist() for ids in source_ids),
        )


def tokenize_sources(model: ArModel, prompt: ArPrompt) -> list[Tensor]:
    """
    The codes of the source images, from one pass of the vision tower for all of them.

    Returns:
        per source [token_h, token_w] int64. They are both a result and, in the prompt, what the model sees of the source.
    """
    if prompt.pixel_values is None:
        return []
    # By the tower itself: what get_image_features() wraps its result in changes between versions.
    features = model.net.model.visual(prompt.pixel_values.to(model.dtype), grid_thw=prompt.source_grids).pooler_output
    ids = model.net.get_image_tokens(features, prompt.source_grids)
    shapes = prompt.source_grids[:, 1:].tolist()
    return [part.view(h, w) for part, (h, w) in zip(ids.split([h * w for h, w in shapes]), shapes, strict=True)]


def fill_placeholders(model: ArModel, input_ids: Tensor, source_ids: list[Tensor]) -> Tensor:
    """[1, N] int64: the prompt, with the sources' codes where the processor left room for them."""
    if not source_ids:
        return input_ids
    return input_ids.masked_scatter(input_ids == model.image_token_id, torch.cat([ids.flatten() for ids in source_ids]))


def forward(model: ArModel, input_ids: Tensor, positions: Tensor, cache: GridCache) -> Tensor:
    """
    Run ids [1, N] at positions [3, 1, N] after what is cached.

    Returns:
        [1, vision_vocab_size]: the logits of what follows the last of them.
    """
    # Past GlmImageModel.forward, which keeps positions of "the" running generation on the module.
    language_model = model.net.model.language_model
    hidden = language_model(
        inputs_embeds=language_model.embed_tokens(input_ids), position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    logits: Tensor = model.net.lm_head(hidden[:, -1:])[:, -1]
    return logits
