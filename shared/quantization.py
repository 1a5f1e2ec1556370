"""
Weights of a net in 8 bits, through torchao. For GPU workers only: needs torch.

Weight-only: a layer multiplies in the net's own dtype with weights that are widened on the way. That halves what is kept and, where
reading weights is what takes the time, what is read; it computes nothing faster. Knows no net: the caller says which layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from shared.errors import StartupError

_FP8_CAPABILITY = (8, 9)
"""Ada and Hopper are the first whose kernels read fp8; before, and on the CPU, it would only lose precision."""


def quantize_linears(net: nn.Module, method: str, device: torch.device, is_wanted: Callable[[str], bool]) -> None:
    """
    Quantise linear layers in place, one scale per row; each moves to the device just before, so that they never lie there whole.

    Args:
        method: `int8` or `fp8`.
        is_wanted: tells by its name whether a linear layer is to be quantised.
    Raises:
        StartupError: torchao is missing, or the device cannot do it.
    """
    if method == "fp8" and not _reads_fp8(device):
        raise StartupError(f"GLMQ_QUANTIZATION=fp8 needs a cuda device of compute capability 8.9 or newer, not {device}")
    config, quantize = _torchao(method)
    quantize(net, config, filter_fn=lambda module, name: isinstance(module, nn.Linear) and is_wanted(name), device=device)


def _reads_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and bool(torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY)


def _torchao(method: str) -> tuple[Any, Callable[..., None]]:
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise StartupError(f"GLMQ_QUANTIZATION={method} needs torchao. Run: pip install 'torchao>=0.18,<0.19'") from error
    # Inductor's settings belong to the whole process.
    configs = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}
    return configs[method](set_inductor_config=False), quantize_
