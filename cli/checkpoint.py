"""Which checkpoint a stack runs, looked at before anything starts. Loads nothing; the workers judge the weights."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import httpx

from cli.data_folder import PROJECT, DataFolder

TRAINED_MINIATURE = PROJECT / "checkpoints" / "miniature"

_PARTS = ("vision_language_encoder", "processor", "transformer", "text_encoder", "tokenizer", "vae", "scheduler")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_TIMEOUT_S = 10.0


class CheckpointError(Exception):
    """The checkpoint cannot be used; the message says why."""


def named_checkpoint(option: str | None, environ: Mapping[str, str] = os.environ, trained: Path = TRAINED_MINIATURE) -> str | None:
    """
    The checkpoint that was asked for, as an absolute folder or a hub id; None for the random miniature, which is built when needed.

    The order: the option, `GLMQ_CHECKPOINT`, the trained miniature that glmq comes with.

    Raises:
        CheckpointError: what was named is not there, or is no checkpoint.
    """
    named = option or environ.get("GLMQ_CHECKPOINT")
    if named is None:
        return str(trained) if (trained / "model_index.json").exists() else None
    folder = Path(named).expanduser().absolute()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder)
    # `some/folder` has the form of a hub id too; a folder `some` beside us tells what was meant.
    if folder.exists() or not _HUB_ID.fullmatch(named) or folder.parent.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}")
    _check_hub_id(named, environ)
    return named


def random_miniature(data: DataFolder) -> Path:
    """Where the random miniature of a stack is, or will be; another place when its recipe has changed."""
    recipe = hashlib.sha256((PROJECT / "checkpoints" / "random_miniature.py").read_bytes()).hexdigest()
    return data.checkpoints / f"random-miniature-{recipe[:8]}"


def _check_folder(folder: Path) -> None:
    missing = [name for name in ("model_index.json", *_PARTS) if not (folder / name).exists()]
    if missing:
        raise CheckpointError(f"{folder} is no GLM-Image checkpoint: {', '.join(missing)} missing")


def _check_hub_id(hub_id: str, environ: Mapping[str, str]) -> None:
    home = Path(environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(environ.get("HF_HUB_CACHE") or home / "hub")
    if (cache / f"models--{hub_id.replace('/', '--')}" / "snapshots").is_dir():
        return
    hub = environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        status = httpx.get(f"{hub}/api/models/{hub_id}", timeout=_HUB_TIMEOUT_S, follow_redirects=True).status_code
    except httpx.HTTPError as error:
        raise CheckpointError(f"{hub_id} is neither a folder here nor downloaded yet, and {hub} cannot be reached: {error}") from None
    if status != httpx.codes.OK:
        raise CheckpointError(f"{hub_id} is no folder here, and {hub} does not know it (HTTP {status})")
