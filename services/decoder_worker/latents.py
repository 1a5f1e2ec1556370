"""
What a picture's latents start from and are led by: seeded noise, and the token grid on the DiT's patch grid.

Knows shapes and ids; no model. Everything that could make an embedding look-up run out of its table is refused here, because on a
GPU that ends the whole process and not one request.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shared.errors import TokenGridError
from shared.grid import TokenGrid


def starting_noise(
    seed: int, grid: TokenGrid, num_channels: int, vae_scale_factor: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """
    Draw the noise that a picture begins as.

    Always from a CPU generator, so one seed gives one picture on every device; the reference does the same when it is handed a
    CPU generator. Drawn in the model's dtype, as in the reference: float32 noise rounded to bfloat16 is another picture.

    Returns:
        [1, C, H, W] with H and W in latent pixels (8 image pixels each).
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, num_channels, grid.height_px // vae_scale_factor, grid.width_px // vae_scale_factor)
    return torch.randn(shape, generator=generator, dtype=dtype).to(device)


def check_token_ids(rows: list[list[int]], grid: TokenGrid, codebook_size: int) -> Tensor:
    """
    Turn the rows of a token grid into ids, or say what is wrong with them.

    Returns:
        [1, token_h * token_w] int64, row-major.
    Raises:
        TokenGridError: the shape is not the grid's, or an id is not in the codebook.
    """
    widths = {len(row) for row in rows}
    if len(rows) != grid.token_h or widths != {grid.token_w}:
        found = f"{len(rows)}x{'/'.join(str(width) for width in sorted(widths)) or 0}"
        raise TokenGridError("artifact_mismatch", f"the token grid is {found}, the size needs {grid.token_h}x{grid.token_w}")
    for token_id in (token_id for row in rows for token_id in row):
        if not 0 <= token_id < codebook_size:
            raise TokenGridError("artifact_mismatch", f"token id {token_id} is not in the codebook of {codebook_size}")
    return torch.tensor(rows, dtype=torch.int64).view(1, -1)


def upsample_prior_tokens(token_ids: Tensor, grid: TokenGrid) -> Tensor:
    """
    Repeat each id over 2x2, from the 32-pixel token grid to the 16-pixel patch grid.

    Args:
        token_ids: [B, token_h * token_w] int64, row-major.
    Returns:
        [B, 4 * token_h * token_w] int64, one id per DiT patch.
    Raises:
        TokenGridError: the id count does not match the grid. Not retried: the same seed fails again.
    Source: diffusers pipeline_glm_image.py, _upsample_token_ids.
    """
    if token_ids.shape[1] != grid.num_tokens:
        raise TokenGridError("artifact_mismatch", f"{token_ids.shape[1]} token ids for a grid of {grid.num_tokens}")
    rows = token_ids.view(-1, grid.token_h, grid.token_w)
    return rows.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).flatten(1)
