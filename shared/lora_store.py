"""
The folder of LoRA adapters as seen from outside: the names it has, the files of each half, and a digest of all that counts.

`<folder>/<name>/ar` and `<folder>/<name>/decoder`, at least one of the two, each in peft's format (adapter_config.json and
adapter_model.safetensors) or, for the decoder, in diffusers' (pytorch_lora_weights.safetensors). Reads names, sizes and bytes; knows no
tensors. Nothing outside the folder is ever opened, whatever its links say, and never a pickle.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.errors import PermanentWorkError, StartupError
from shared.lora import LORA_NAME

Half = Literal["ar", "decoder"]

HALVES: tuple[Half, ...] = ("ar", "decoder")

MAX_ADAPTERS = 64
"""Guess, unmeasured: each costs a look-up per layer, and a folder with more is more likely the wrong folder."""

MAX_FILE_BYTES = 4 << 30
"""An adapter of rank 256 for every linear layer of the published AR model has 3.2 GB in float32."""

_CONFIG = "adapter_config.json"
_PEFT_WEIGHTS = "adapter_model.safetensors"
_DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class AdapterFiles:
    """One half of an adapter. `config` is None in diffusers' format, which has its numbers in the header of the weights."""

    name: str
    config: Path | None
    weights: Path


def list_loras(lora_dir: str) -> tuple[str, ...]:
    """
    The names of all adapters in the folder, of either half, sorted; none if no folder is named.

    Raises:
        StartupError: no such folder, too many adapters, or one whose name nobody could ask for.
    """
    if not lora_dir:
        return ()
    folder = Path(lora_dir)
    try:
        children = [child for child in folder.iterdir() if _has_half(child)]
    except OSError as error:
        raise StartupError(f"GLMQ_LORA_DIR={lora_dir!r} cannot be read: {error.strerror}") from error
    names = sorted(child.name for child in children)
    if wrong := [name for name in names if not re.fullmatch(LORA_NAME, name)]:
        raise StartupError(f"GLMQ_LORA_DIR: the adapter {wrong[0]!r} must be renamed; names are a-z, 0-9, '.', '_' and '-', at most 64")
    if len(names) > MAX_ADAPTERS:
        raise StartupError(f"GLMQ_LORA_DIR={lora_dir!r} has {len(names)} adapters; at most {MAX_ADAPTERS} are loaded")
    return tuple(names)


def lora_digest(lora_dir: str) -> str:
    """
    16 hex digits of every adapter's name and content, both halves; empty where there are no adapters.

    Part of the model's revision (`read_revision`), so that both kinds of worker agree on the adapters' content and no picture that an
    older adapter drew is taken for that of a newer one of the same name.

    Raises:
        StartupError: as `list_loras`, or a file cannot be read.
    """
    names = list_loras(lora_dir)
    if not names:
        return ""
    digest = hashlib.sha256()
    for name in names:
        for half in HALVES:
            digest.update(f"{name}\0{half}\0".encode())
            try:
                files = find_adapter(lora_dir, name, half)
                for file in (files.config, files.weights) if files else ():
                    for block in _blocks(file):
                        digest.update(block)
            except PermanentWorkError as error:
                # No request can use it, so its content counts for nothing but the reason.
                digest.update(error.detail.encode())
            except OSError as error:
                raise StartupError(f"GLMQ_LORA_DIR: the {half} half of adapter {name!r} cannot be read: {error}") from error
    return digest.hexdigest()[:16]


def find_adapter(lora_dir: str, name: str, half: Half) -> AdapterFiles | None:
    """
    The files of one half of an adapter; None if it leaves this half alone.

    Raises:
        PermanentWorkError: `lora_broken`: it has the folder, but not what belongs there.
    """
    root = Path(lora_dir).resolve()
    folder = root / name / half
    if not folder.is_dir():
        return None
    if (folder / _PEFT_WEIGHTS).exists() or half == "ar":
        config, weights = _inside(root, folder / _CONFIG, name), _inside(root, folder / _PEFT_WEIGHTS, name)
        return AdapterFiles(name, config, weights)
    return AdapterFiles(name, None, _inside(root, folder / _DIFFUSERS_WEIGHTS, name))


def _inside(root: Path, file: Path, name: str) -> Path:
    shown = file.relative_to(root)
    # Not by resolve(), which raises where links lead round in a circle.
    real = Path(os.path.realpath(file))
    if not real.is_file():
        hint = " (pickled weights are never loaded)" if any(file.parent.glob("*.bin")) else ""
        raise PermanentWorkError("lora_broken", f"LoRA adapter {name!r} has no file {shown}{hint}")
    if not real.is_relative_to(root):
        raise PermanentWorkError("lora_broken", f"LoRA adapter {name!r}: {shown} leads out of the folder of adapters")
    if real.stat().st_size > MAX_FILE_BYTES:
        raise PermanentWorkError("lora_broken", f"LoRA adapter {name!r}: {shown} is larger than {MAX_FILE_BYTES >> 30} GiB")
    return real


def _blocks(file: Path | None) -> Iterator[bytes]:
    if file is None:
        return
    yield f"{file.name}\0{file.stat().st_size}\0".encode()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            yield block


def _has_half(child: Path) -> bool:
    """Is it an adapter? What else lies there (`lost+found`, notes) is nobody's business."""
    try:
        return any((child / half).is_dir() for half in HALVES)
    except PermissionError:
        return False
