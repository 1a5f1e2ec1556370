"""
Prompt, grid and source images -> input ids and 3-D positions, as the AR model was trained to see them.

Knows the processor's layout and the model's position rule; computes no net. The positions of the whole generation are laid
out beforehand, so that nothing about a request is left on the shared model, where the reference keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from services.ar_worker.weights import ArModel
from shared.errors import PermanentWorkError
from shared.grid import TOKEN_PX, TokenGrid
from shared.prompt_rules import find_control_token

GridShape = tuple[int, int]
"""token_h, token_w."""


@dataclass(frozen=True)
class ArPrompt:
    """
    All that the net needs to write a grid.

    Attributes:
        input_ids: [1, N] int64; the ids of source images are still placeholders.
        prefill_positions: [3, 1, N] int64: temporal, height and width of each input id.
        decode_positions: [3, 1, T] int64: the same for each id to be written, draft first.
        pixel_values: [patches, channels * patch_px**2] of all sources, None without sources.
        source_grids: [S, 3] int64: 1, token_h and token_w of each source.
    """

    input_ids: Tensor
    prefill_positions: Tensor
    decode_positions: Tensor
    pixel_values: Tensor | None
    source_grids: Tensor

    def to(self, device: torch.device) -> ArPrompt:
        """The same on a device; the tensors themselves where they are there already."""
        return ArPrompt(
            input_ids=_to_device(self.input_ids, device),
            prefill_positions=_to_device(self.prefill_positions, device),
            decode_positions=_to_device(self.decode_positions, device),
            pixel_values=None if self.pixel_values is None else _to_device(self.pixel_values, device),
            source_grids=_to_device(self.source_grids, device),
        )


def build_prompt(model: ArModel, prompt: str, grid: TokenGrid, sources: tuple[Image.Image, ...]) -> ArPrompt:
    """
    Render, tokenise and lay out one request, in host memory.

    Raises:
        PermanentWorkError: `unprocessable_prompt` (control tokens, too long) or `invalid_image`.
    """
    _refuse_control_tokens(model, prompt)
    inputs = _process(model, prompt, grid, sources)
    input_ids = inputs["input_ids"]
    source_grids = inputs["image_grid_thw"][: len(sources)]
    for source, (_, token_h, token_w) in zip(sources, source_grids.tolist(), strict=True):
        # The decoder cuts the same image into patches by its own rule, which agrees only where no rounding happens in either.
        if (token_h * TOKEN_PX, token_w * TOKEN_PX) != (source.height, source.width):
            raise PermanentWorkError(
                "invalid_image",
                f"a source image of {source.height}x{source.width} px (HxW) was not normalised: the two stages would read it differently",
            )
    num_draft_tokens = grid.num_draft_tokens(len(sources))
    length = input_ids.shape[1] + num_draft_tokens + grid.num_tokens
    if length > model.max_positions:
        raise PermanentWorkError(
            "unprocessable_prompt",
            f"the prompt has {input_ids.shape[1]} tokens; with the picture that makes {length}, and the model takes {model.max_positions}",
        )
    # The draft is written first, although the processor lists it second.
    targets = [(grid.draft_h, grid.draft_w), (grid.token_h, grid.token_w)] if num_draft_tokens else [(grid.token_h, grid.token_w)]
    prefill, next_position = prefill_positions(model, input_ids[0], [(h, w) for _, h, w in source_grids.tolist()])
    return ArPrompt(
        input_ids=input_ids,
        prefill_positions=prefill[:, None],
        decode_positions=decode_positions(targets, next_position)[:, None],
        pixel_values=inputs["pixel_values"] if sources else None,
        source_grids=source_grids,
    )


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """On a GPU through pinned memory: a copy from ordinary memory would make the host wait for all that the GPU has queued."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _refuse_control_tokens(model: ArModel, prompt: str) -> None:
    """The model would obey them. The API has looked for those it knows; only the tokenizer knows all."""
    try:
        ids = model.processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    except (TypeError, UnicodeEncodeError) as error:
        raise PermanentWorkError("unprocessable_prompt", "the prompt is not valid Unicode") from error
    found = find_control_token(prompt) or next((model.processor.tokenizer.decode([i]) for i in ids if i in model.control_ids), None)
    if found is not None:
        raise PermanentWorkError("unprocessable_prompt", f"the prompt contains {found}, which the model reads as a command")


def _process(model: ArModel, prompt: str, grid: TokenGrid, sources: tuple[Image.Image, ...]) -> Any:
    """The same call that the reference makes. Source: diffusers pipeline_glm_image.py, generate_prior_tokens."""
    content = [*({"type": "image", "image": source} for source in sources), {"type": "text", "text": prompt}]
    try:
        return model.processor.apply_chat_template(
            [[{"role": "user", "content": content}]],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": False, "target_h": grid.height_px, "target_w": grid.width_px},
        )
    except ValueError as error:
        # The image processor's own limits. Without sources there is nothing it could object to.
        if not sources:
            raise
        raise PermanentWorkError("invalid_image", f"the model refuses a source image: {error}") from error


def prefill_positions(model: ArModel, input_ids: Tensor, source_grids: list[GridShape]) -> tuple[Tensor, int]:
    """
    Positions of the prompt: text counts on in all three axes; a source image stands on its own rows and columns.

    Args:
        input_ids: [N] int64.
    Returns:
        [3, N] int64, and the position after the last one.
    Source: transformers modeling_glm_image.py, get_rope_index.
    """
    starts = (input_ids == model.image_start_token_id).nonzero().flatten().tolist()
    ends = (input_ids == model.image_end_token_id).nonzero().flatten().tolist()
    parts, position, done = [], 0, 0
    # The last start token has no end: the grid to be written follows it. zip() leaves it to the text.
    for start, end, (token_h, token_w) in zip(starts, ends, source_grids, strict=False):
        num_text = start + 1 - done
        parts += [_text_positions(position, num_text), _grid_positions(position + num_text, token_h, token_w)]
        position += num_text + max(token_h, token_w)
        done = end
    parts.append(_text_positions(position, len(input_ids) - done))
    return torch.cat(parts, dim=1), position + len(input_ids) - done


def decode_positions(grids: list[GridShape], position: int) -> Tensor:
    """
    Positions of the ids to be written, grid after grid.

    Returns:
        [3, T] int64.
    """
    parts = []
    for token_h, token_w in grids:
        parts.append(_grid_positions(position, token_h, token_w))
        position += max(token_h, token_w)
    return torch.cat(parts, dim=1)


def _text_positions(start: int, length: int) -> Tensor:
    return torch.arange(start, start + length).expand(3, -1)


def _grid_positions(start: int, token_h: int, token_w: int) -> Tensor:
    """[3, token_h * token_w]: one moment, `token_h` rows, `token_w` columns, all counted from `start`."""
    rows = torch.arange(token_h).repeat_interleave(token_w)
    columns = torch.arange(token_w).repeat(token_h)
    return start + torch.stack([torch.zeros_like(rows), rows, columns])
