"""
What the engine shows of a picture before its end: the latents so far, from which a successor goes on, and previews, or why one is missing.

Knows the form of a checkpoint and how to refuse a wrong one; not where it is stored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from services.decoder_worker import vae
from shared.errors import TokenGridError

_FORMAT = "glmq-latents"
_VERSION = 1
_MAX_BYTES = 32 << 20
"""Checked before anything is parsed. A 2048x2048 picture of the published model has 4 MiB."""


@dataclass(frozen=True, eq=False)
class LatentsSoFar:
    """
    A picture after `num_done` steps.

    Attributes:
        latents: [C, H, W] float32.
        made_for: `ImageRequest.digest()`; another request cannot go on from here.
    """

    num_done: int
    latents: np.ndarray
    made_for: str

    def to_bytes(self) -> bytes:
        """Encode as safetensors; equal latents give equal bytes."""
        about = json.dumps({"version": _VERSION, "num_done": self.num_done, "made_for": self.made_for})
        return save({"latents": np.ascontiguousarray(self.latents)}, {_FORMAT: about})

    @classmethod
    def from_bytes(cls, data: bytes) -> LatentsSoFar:
        """
        Decode and check everything that can be checked without the request.

        Raises:
            TokenGridError: anything else than what `to_bytes` writes. A checkpoint only saves time: draw without it.
        """
        if len(data) > _MAX_BYTES:
            raise TokenGridError("artifact_broken", f"latents of {len(data)} bytes; at most {_MAX_BYTES} are believed")
        try:
            about = _metadata(data)
            if about["version"] != _VERSION:
                raise ValueError(f"version {about['version']}, this is {_VERSION}")
            tensors = load(data)
            latents = tensors.pop("latents")
            if tensors or latents.dtype != np.float32 or latents.ndim != 3 or latents.size == 0:
                raise ValueError(f"latents are {latents.dtype} of shape {latents.shape}, beside {sorted(tensors)}")
            if not np.isfinite(latents).all():
                raise ValueError("latents are not finite")
            num_done, made_for = about["num_done"], about["made_for"]
            if type(num_done) is not int or num_done < 1 or not isinstance(made_for, str):
                raise ValueError(f"num_done is {num_done!r}, made_for {made_for!r}")
            return cls(num_done, latents, made_for)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, SafetensorError) as error:
            raise TokenGridError("artifact_broken", f"not latents so far: {error}") from error


@dataclass(frozen=True, eq=False)
class Preview:
    """What a picture looked like after `num_done` steps: [3, h, w] float32 on the CPU, 0..1, smaller than the picture itself."""

    num_done: int
    pixels: Tensor

    def to_pil(self) -> Image.Image:
        """As 8-bit RGB."""
        return vae.to_pil(self.pixels)


@dataclass(frozen=True)
class PreviewLost:
    """The preview after `num_done` steps could not be made. The engine has no log of its own: whoever is shown this writes it down."""

    num_done: int
    error: str


Interim = LatentsSoFar | Preview | PreviewLost


def _metadata(data: bytes) -> dict[str, Any]:
    """Our entry of the header's `__metadata__`, which `load` does not return."""
    length = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_FORMAT])
    if not isinstance(about, dict):
        raise TypeError("metadata is not an object")
    return about
