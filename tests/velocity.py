"""What a DiT says of one fixed input, to be compared with another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def velocity(transformer: Any) -> Tensor:
    """[1, 16, 8, 12]; the same numbers go in whenever it is called."""
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        result: Tensor = transformer(
            hidden_states=torch.randn(1, 16, 8, 12, generator=generator),
            encoder_hidden_states=torch.randn(1, 5, transformer.config.text_embed_dim, generator=generator),
            prior_token_id=torch.randint(0, 256, (1, 24), generator=generator),
            prior_token_drop=torch.zeros(1, 24, dtype=torch.bool),
            timestep=torch.full((1,), 500.0),
            target_size=torch.tensor([[64.0, 96.0]]),
            crop_coords=torch.zeros(1, 2),
            return_dict=False,
        )[0]
        return result
