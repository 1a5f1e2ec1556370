"""
What the AR stage leaves behind, as safetensors of a few KiB: a token grid for the decoder, and the ids written so far for a successor.

Knows the format and how to refuse a wrong one; knows neither S3 nor torch. Needs numpy, which the GPU workers have.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.errors import TokenGridError

TokenIds = list[list[int]]
"""`token_h` rows of `token_w` ids."""

_FORMAT = "glmq-token-grid"
_VERSION = 1
_WRITTEN = "written"
_MAX_BYTES = 1 << 20
"""Checked before anything is parsed; the largest honest grid with 16 sources is 140 KiB."""


@dataclass(frozen=True)
class TokenGridArtifact:
    """The target grid, the grids of the source images, and what they came from."""

    token_ids: TokenIds
    source_token_ids: tuple[TokenIds, ...]
    prompt_sha256: str
    seed: int
    temperature: float
    top_p: float
    codebook_size: int
    model_revision: str

    def to_bytes(self) -> bytes:
        """Encode; equal artifacts give equal bytes."""
        tensors = {"target": self.token_ids, **{f"source.{index}": ids for index, ids in enumerate(self.source_token_ids)}}
        made_from = {
            "version": _VERSION,
            "prompt_sha256": self.prompt_sha256,
            "seed": self.seed,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "codebook_size": self.codebook_size,
            "model_revision": self.model_revision,
        }
        # One entry of metadata: the library writes several in random order, and equal grids would differ in bytes.
        return save({name: np.array(ids, np.int16) for name, ids in tensors.items()}, {_FORMAT: json.dumps(made_from)})

    @classmethod
    def from_bytes(cls, data: bytes) -> TokenGridArtifact:
        """
        Decode and check the form: names, shapes, types, and every id within the codebook.

        Raises:
            TokenGridError: anything else than what `to_bytes` writes.
        """
        if len(data) > _MAX_BYTES:
            raise TokenGridError("artifact_broken", f"a token grid of {len(data)} bytes; at most {_MAX_BYTES} are believed")
        try:
            made_from = _metadata(data)
            if made_from["version"] != _VERSION:
                raise ValueError(f"version {made_from['version']}, this is {_VERSION}")
            codebook_size = int(made_from["codebook_size"])
            tensors = {name: _unpack(tensor, codebook_size) for name, tensor in load(data).items()}
            target = tensors.pop("target")
            return cls(
                token_ids=target,
                # In order of index; a missing or foreign name is a KeyError.
                source_token_ids=tuple(tensors[f"source.{index}"] for index in range(len(tensors))),
                prompt_sha256=str(made_from["prompt_sha256"]),
                seed=int(made_from["seed"]),
                temperature=float(made_from["temperature"]),
                top_p=float(made_from["top_p"]),
                codebook_size=codebook_size,
                model_revision=str(made_from["model_revision"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, SafetensorError) as error:
            raise TokenGridError("artifact_broken", f"not a token grid: {error}") from error

    def check(self, token_h: int, token_w: int, num_sources: int, codebook_size: int, model_revision: str) -> None:
        """
        Refuse a grid that was made for something else.

        Raises:
            TokenGridError: another size, number of sources, codebook or model revision.
        """
        shape = (len(self.token_ids), len(self.token_ids[0]))
        if shape != (token_h, token_w):
            raise TokenGridError("artifact_mismatch", f"the grid is {shape[0]}x{shape[1]} tokens, the image needs {token_h}x{token_w}")
        if len(self.source_token_ids) != num_sources:
            raise TokenGridError("artifact_mismatch", f"the grid has {len(self.source_token_ids)} sources, the image {num_sources}")
        if self.codebook_size != codebook_size:
            raise TokenGridError("artifact_mismatch", f"the grid's codebook has {self.codebook_size} ids, the decoder's {codebook_size}")
        if self.model_revision != model_revision:
            raise TokenGridError("artifact_mismatch", f"the grid is of model {self.model_revision}, the decoder loaded {model_revision}")


def pack_written(token_ids: Sequence[int], seed: int) -> bytes:
    """The ids that an unfinished grid of this seed has so far, draft first, as its AR worker leaves them for a successor."""
    return save({_WRITTEN: np.array(token_ids, np.int16), "seed": np.array([seed], np.int64)})


def unpack_written(data: bytes, seed: int, codebook_size: int, num_tokens: int) -> tuple[int, ...]:
    """
    Decode what `pack_written` wrote.

    Args:
        seed: of the grid; the ids of a draft that was rejected have another.
        num_tokens: of the whole grid, draft included; more than these cannot have been written.
    Raises:
        TokenGridError: anything else than ids of the codebook, too many of them, or those of another seed.
    """
    if len(data) > _MAX_BYTES:
        raise TokenGridError("artifact_broken", f"a checkpoint of {len(data)} bytes; at most {_MAX_BYTES} are believed")
    try:
        tensors = load(data)
        ids, made_for = tensors[_WRITTEN], int(tensors["seed"][0])
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError, SafetensorError) as error:
        raise TokenGridError("artifact_broken", f"not a checkpoint of a token grid: {error}") from error
    if made_for != seed:
        raise TokenGridError("artifact_mismatch", f"the checkpoint is of seed {made_for}, the grid of {seed}")
    if ids.dtype != np.int16 or ids.ndim != 1 or ids.size > num_tokens or (ids.size and not 0 <= ids.min() <= ids.max() < codebook_size):
        raise TokenGridError("artifact_mismatch", f"a checkpoint of {ids.size} ids of type {ids.dtype} does not fit {num_tokens} tokens")
    written: list[int] = ids.tolist()
    return tuple(written)


def _unpack(tensor: np.ndarray, codebook_size: int) -> TokenIds:
    if tensor.dtype != np.int16 or tensor.ndim != 2 or tensor.size == 0:
        raise ValueError(f"tensor of type {tensor.dtype} and shape {tensor.shape}")
    if tensor.min() < 0 or tensor.max() >= codebook_size:
        raise ValueError(f"ids from {tensor.min()} to {tensor.max()} in a codebook of {codebook_size}")
    ids: TokenIds = tensor.tolist()
    return ids


def _metadata(data: bytes) -> dict[str, Any]:
    """Our entry of the header's `__metadata__`, which `load` does not return."""
    length = int.from_bytes(data[:8], "little")
    made_from = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_FORMAT])
    if not isinstance(made_from, dict):
        raise TypeError("metadata is not an object")
    return made_from
