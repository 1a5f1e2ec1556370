"""
Nets and their companions from a checkpoint folder onto a device, or a clear refusal to start. For GPU workers only: needs torch.

From local safetensors only, and each part through the class that the caller names, so that loading runs no code of the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from shared.errors import StartupError
from shared.settings import WorkerSettings

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""No float16: the VAE overflows to NaN in it."""

_ATTENTION_PACKAGES = {
    "flash": ("flash_attn", "pip install flash-attn"),
    "flash_3": ("flash_attn_interface", "build flash-attention's hopper/ from source"),
    "sage": ("sageattention", "pip install sageattention"),
    "xformers": ("xformers", "pip install xformers"),
}
"""What each kind of attention is imported from, and how it is got."""


@dataclass(frozen=True)
class NetOptions:
    """
    What an operator may choose about how nets run; the defaults are the nets as they were published.

    The fields are those of `WorkerSettings`, where they are explained.
    """

    cpu_offload: str = "off"
    attention: str = "auto"
    compile: str = "off"
    quantization: str = "none"
    lora_dir: str = ""
    lora_memory_gib: float = 4.0

    @classmethod
    def read(cls, settings: WorkerSettings) -> NetOptions:
        """The options among a worker's settings."""
        return cls(
            cpu_offload=settings.cpu_offload,
            attention=settings.attention,
            compile=settings.compile,
            quantization=settings.quantization,
            lora_dir=settings.lora_dir,
            lora_memory_gib=settings.lora_memory_gib,
        )

    def check(self, device: torch.device) -> None:
        """
        Refuse what this device cannot do, before minutes are spent on loading.

        Raises:
            StartupError: names the variable.
        """
        if self.cpu_offload != "off" and device.type != "cuda":
            raise StartupError(f"GLMQ_CPU_OFFLOAD={self.cpu_offload} is for cuda devices; this worker runs on {device}")
        if self.cpu_offload == "all" and self.quantization != "none":
            raise StartupError("GLMQ_CPU_OFFLOAD=all and GLMQ_QUANTIZATION exclude each other: quantised weights are not moved in parts")
        if self.attention in _ATTENTION_PACKAGES:
            package, remedy = _ATTENTION_PACKAGES[self.attention]
            if device.type != "cuda":
                raise StartupError(f"GLMQ_ATTENTION={self.attention} is for cuda devices; this worker runs on {device}")
            if find_spec(package) is None:
                raise StartupError(f"GLMQ_ATTENTION={self.attention} needs the package {package}: {remedy}")


def choose_device(name: str) -> torch.device:
    """
    `auto` is cuda where there is one, else cpu.

    Raises:
        StartupError: this torch has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # The number finds out what the name alone does not tell: a device that is not there, or has no memory (`meta`).
        number = torch.zeros(1, device=name)
        number.item()
    except (RuntimeError, AssertionError) as error:
        raise StartupError(f"GLMQ_DEVICE={name!r} cannot be used here: {error}") from error
    return number.device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """
    `auto` is bfloat16 on cuda, float32 elsewhere.

    Raises:
        StartupError: neither of the two, nor `auto`.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise StartupError(f"dtype {name!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def load_part(part: Any, folder: Path, **options: Any) -> Any:
    """
    Load a tokenizer, processor or scheduler.

    Raises:
        StartupError: it is missing or broken.
    """
    if not folder.is_dir():
        raise StartupError(f"the checkpoint has no {folder.name}/ in {folder.parent}; it needs the layout of zai-org/GLM-Image")
    try:
        return part.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # the libraries raise a dozen types for a broken file; each means the same here
        raise StartupError(f"cannot load {folder}: {error}") from error


def load_net(part: Any, folder: Path, device: torch.device, dtype: torch.dtype, **options: Any) -> Any:
    """
    Load a net for inference; `options` are for its `from_pretrained`.

    Raises:
        StartupError: it is missing or broken, or its weights are not those of its config.
    """
    net, info = load_part(part, folder, use_safetensors=True, dtype=dtype, output_loading_info=True, **options)
    # Both libraries fill a missing weight with random numbers and only print a warning.
    if wrong := {kind: sorted(map(str, info[kind]))[:3] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]}:
        raise StartupError(f"the weights in {folder} are not those of its config: {wrong}")
    return net.to(device).eval().requires_grad_(False)
