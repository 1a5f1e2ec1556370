"""
How many decoder workers a stack runs on one machine. Loads nothing.

One decoder worker does the arithmetic of one core (several threads slow small nets down), or of one GPU. The AR worker's share is
small, because it serves many requests at once: so a machine's cores are the decoders', and one AR worker feeds them all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cli.supervisor import StackError

VARIABLE = "GLMQ_DECODER_WORKERS"

MAX_DECODERS = 64

_MOST_BY_DEFAULT = 4
"""Each holds half a gigabyte: torch and the libraries around it."""

_SMALL_BYTES = 256 << 20
"""Weights of a miniature. Of a real model no second copy is loaded unasked."""


def num_decoders(checkpoint: str, environ: Mapping[str, str] = os.environ, gpu: Path = Path("/dev/nvidiactl")) -> int:
    """
    What `GLMQ_DECODER_WORKERS` says; by default one per core for a miniature on a CPU, at most four, and one for everything else.

    Args:
        checkpoint: a folder, there or still to be made, or a hub id.
        gpu: there where a GPU's driver is.
    Raises:
        StackError: the variable holds something else than a whole number from 1 to `MAX_DECODERS`.
    """
    named = environ.get(VARIABLE)
    if named is not None:
        if not (named.isascii() and named.isdigit() and 1 <= int(named) <= MAX_DECODERS):
            raise StackError(f"{VARIABLE} must be a whole number from 1 to {MAX_DECODERS}, not {named!r}")
        return int(named)
    folder = Path(checkpoint)
    is_small = folder.is_absolute() and sum(file.stat().st_size for file in folder.rglob("*.safetensors")) <= _SMALL_BYTES
    on_cpu = environ.get("GLMQ_DEVICE", "auto") == "cpu" or not gpu.exists()
    return min(_num_cores(), _MOST_BY_DEFAULT) if is_small and on_cpu else 1


def _num_cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
