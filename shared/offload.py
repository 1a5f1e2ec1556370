"""
Parts of a net that wait in host memory and visit the GPU only while they run. For GPU workers only: needs torch.

Knows neither nets nor settings.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import nn


def park(module: nn.Module, device: torch.device) -> None:
    """
    Keep the module on the CPU; each call takes it and its inputs to the device, and the module back when it has ended.

    accelerate's own `cpu_offload_with_hook` leaves a module there until another one needs the room. Here that would be the next picture.
    """
    module.to("cpu")
    add_hook_to_module(module, _Visit(device))


class _Visit(ModelHook):  # type: ignore[misc]  # accelerate is Any to mypy
    def __init__(self, device: torch.device) -> None:
        self._device = device

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        module.to(self._device)
        return send_to_device(args, self._device), send_to_device(kwargs, self._device)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        module.to("cpu")
        return output
