"""Adapters as people make them: by peft, on the nets of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import GlmImageTransformer2DModel
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GlmImageForConditionalGeneration


def bare_net(checkpoint: Path, half: str) -> Any:
    """The net that adapters of this half (`ar` or `decoder`) are for."""
    if half == "ar":
        net = GlmImageForConditionalGeneration.from_pretrained(checkpoint / "vision_language_encoder", dtype=torch.float32)
    else:
        net = GlmImageTransformer2DModel.from_pretrained(checkpoint / "transformer", torch_dtype=torch.float32)
    return net.eval().requires_grad_(False)


def randomise(net: nn.Module) -> None:
    """An adapter begins with B = 0, which does nothing."""
    for name, parameter in net.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)


def write_adapter(checkpoint: Path, half: str, folder: Path, config: LoraConfig) -> None:
    """Save an adapter with random weights in peft's format as `folder/<half>`."""
    adapted = get_peft_model(bare_net(checkpoint, half), config)
    randomise(adapted)
    adapted.save_pretrained(folder / half)
    (folder / half / "README.md").unlink(missing_ok=True)
